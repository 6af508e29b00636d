"""The table of loss modules, and `build_loss`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from kdschemes.cards.read import register_card
from kdschemes.config.losses import KINDS, Ramp, feature, relation, response
from kdschemes.config.plugins import register
from kdschemes.core.loss import Endpoint, Loss
from kdschemes.core.types import DataSpec
from kdschemes.errors import UserError, unknown
from kdschemes.losses.feature.ab import AB
from kdschemes.losses.feature.at import AT
from kdschemes.losses.feature.cat_kd import CATKD
from kdschemes.losses.feature.cwd import CWD
from kdschemes.losses.feature.ft import FT
from kdschemes.losses.feature.hint import Hint
from kdschemes.losses.feature.ickd import ICKD
from kdschemes.losses.feature.nst import NST
from kdschemes.losses.feature.ofd import OFD
from kdschemes.losses.feature.pad import PAD
from kdschemes.losses.feature.pkd import PKD
from kdschemes.losses.feature.reviewkd import ReviewKD
from kdschemes.losses.feature.simkd import SimKD
from kdschemes.losses.feature.srrl import SRRL
from kdschemes.losses.feature.vid import VID
from kdschemes.losses.logit_correlation import batch_correlation, class_correlation
from kdschemes.losses.relation.cc import CC
from kdschemes.losses.relation.crd import CRD
from kdschemes.losses.relation.fsp import FSP
from kdschemes.losses.relation.irg import IRG
from kdschemes.losses.relation.pkt import PKT
from kdschemes.losses.relation.rkd import RKD
from kdschemes.losses.relation.sp import SP
from kdschemes.losses.response.base import LogitLoss
from kdschemes.losses.response.ctkd import CTKD
from kdschemes.losses.response.dist import dist
from kdschemes.losses.response.dkd import dkd
from kdschemes.losses.response.hard import hard
from kdschemes.losses.response.kd import kd
from kdschemes.losses.response.logit_mse import logit_mse
from kdschemes.losses.response.mld import mld
from kdschemes.losses.response.mlkd import mlkd
from kdschemes.losses.response.nkd import nkd
from kdschemes.losses.response.normkd import normkd
from kdschemes.losses.response.rld import rld
from kdschemes.losses.response.soft_ce import soft_ce
from kdschemes.losses.response.srd import SRD
from kdschemes.losses.response.tfkd_reg import TFKDReg
from kdschemes.losses.response.ttm import ttm
from kdschemes.losses.response.uskd import USKD
from kdschemes.losses.response.wsld import wsld
from kdschemes.losses.response.wttm import wttm

MODULES: dict[type, Callable[..., Loss[Any]]] = {
    response.KD: partial(LogitLoss, kd),
    response.SoftCE: partial(LogitLoss, soft_ce),
    response.LogitMSE: partial(LogitLoss, logit_mse),
    response.DKD: partial(LogitLoss, dkd, labels=True),
    response.NKD: partial(LogitLoss, nkd, labels=True),
    response.DIST: partial(LogitLoss, dist, gather=True),
    response.WSLD: partial(LogitLoss, wsld, labels=True),
    response.TFKDReg: TFKDReg,
    response.TTM: partial(LogitLoss, ttm),
    response.WTTM: partial(LogitLoss, wttm),
    response.CTKD: CTKD,
    response.MLKD: partial(LogitLoss, mlkd, gather=True),
    response.SRD: SRD,
    response.USKD: USKD,
    response.MLD: partial(LogitLoss, mld),
    response.NormKD: partial(LogitLoss, normkd),
    response.RLD: partial(LogitLoss, rld, labels=True),
    response.Hard: partial(LogitLoss, hard),
    feature.Hint: Hint,
    feature.AT: AT,
    feature.NST: NST,
    feature.FT: FT,
    feature.AB: AB,
    feature.OFD: OFD,
    feature.VID: VID,
    feature.ReviewKD: ReviewKD,
    feature.CWD: CWD,
    feature.PKD: PKD,
    feature.PAD: PAD,
    feature.ICKD: ICKD,
    feature.SRRL: SRRL,
    feature.CATKD: CATKD,
    feature.SimKD: SimKD,
    relation.RKD: RKD,
    relation.FSP: FSP,
    relation.SP: SP,
    relation.CC: CC,
    relation.PKT: PKT,
    relation.CRD: CRD,
    relation.IRG: IRG,
    relation.BatchCorrelation: partial(LogitLoss, batch_correlation, gather=True),
    relation.ClassCorrelation: partial(LogitLoss, class_correlation, gather=True),
}
"""The constructor of each loss module, by the options class in `kdschemes.config.losses`."""


def register_loss(options: type, module: Callable[..., Loss[Any]], *, kind: str, card: str | None = None) -> None:
    """Make a loss available to every scheme as `losses.KIND=NAME`.

    `options` is a frozen dataclass, a subclass of `Ramp` with a `name` and a `weight`; `module` is called as
    `module(options, student=, teacher=, data_spec=)`, as a `Loss` is; `card` is a card's text, for `kdschemes methods`
    and `kdschemes cite`.

    Raises:
        UserError: another loss has the name, there is no such kind, or `options` are no options of a loss.
    """
    if kind not in KINDS:
        raise unknown("kind of loss", kind, KINDS)
    if not issubclass(options, Ramp) or not {"name", "weight"} <= options.__dataclass_fields__.keys():
        raise UserError(f"{options.__name__} is not a dataclass of a loss: it needs the base Ramp, a name and a weight")
    name: str = options.name  # type: ignore[attr-defined]
    register(KINDS[kind], name, options, f"{kind} loss", [table for own, table in KINDS.items() if own != kind])
    MODULES[options] = module
    register_card(kind, name, options, card)


def build_loss(options: Any, *, student: Endpoint, teacher: Endpoint, data_spec: DataSpec) -> Loss[Any]:
    """Return the loss for `options`, with projections shaped for the two networks.

    Raises:
        UserError: a stage does not exist, or the loss is not defined for the two networks.
    """
    return MODULES[type(options)](options, student=student, teacher=teacher, data_spec=data_spec)
