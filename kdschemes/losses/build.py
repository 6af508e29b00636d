"""The module of every loss, and how one is built."""

from __future__ import annotations

from typing import Any

from kdschemes.config.losses import feature, relation, response
from kdschemes.core.loss import Gather, Loss, Side, embedding
from kdschemes.core.types import Task
from kdschemes.losses.feature.ab import AB
from kdschemes.losses.feature.at import AT
from kdschemes.losses.feature.cat_kd import CATKD
from kdschemes.losses.feature.cwd import CWD
from kdschemes.losses.feature.ft import FEATURE_FACTOR
from kdschemes.losses.feature.hint import Hint
from kdschemes.losses.feature.ickd import ICKD
from kdschemes.losses.feature.nst import NST
from kdschemes.losses.feature.ofd import OFD
from kdschemes.losses.feature.pad import PAD
from kdschemes.losses.feature.pkd import PKD
from kdschemes.losses.feature.reviewkd import FEATURE_REVIEW
from kdschemes.losses.feature.simkd import SimKD
from kdschemes.losses.feature.srrl import SRRL
from kdschemes.losses.feature.vid import VID
from kdschemes.losses.relation.cc import CC
from kdschemes.losses.relation.crd import CRD
from kdschemes.losses.relation.fsp import FSP
from kdschemes.losses.relation.irg import IRG
from kdschemes.losses.relation.logit_correlation import BatchCorrelation, ClassCorrelation
from kdschemes.losses.relation.pkt import PKT
from kdschemes.losses.relation.rkd import RKD
from kdschemes.losses.relation.sp import SP
from kdschemes.losses.response.base import LogitLoss
from kdschemes.losses.response.ctkd import CTKD
from kdschemes.losses.response.dist import DIST
from kdschemes.losses.response.dkd import DKD
from kdschemes.losses.response.kd import KD
from kdschemes.losses.response.logit_mse import LogitMSE
from kdschemes.losses.response.mlkd import MLKD
from kdschemes.losses.response.nkd import NKD
from kdschemes.losses.response.soft_ce import SoftCE
from kdschemes.losses.response.srd import SRD
from kdschemes.losses.response.tfkd_reg import TFKDReg
from kdschemes.losses.response.ttm import TTM
from kdschemes.losses.response.uskd import USKD
from kdschemes.losses.response.wsld import WSLD
from kdschemes.losses.response.wttm import WTTM

__all__ = ["MODULES", "Gather", "LogitLoss", "Loss", "Side", "build_loss", "embedding"]

RESPONSE_SOFT: dict[type, type[Loss[Any]]] = {
    response.KD: KD,
    response.SoftCE: SoftCE,
    response.LogitMSE: LogitMSE,
    response.DKD: DKD,
    response.NKD: NKD,
    response.DIST: DIST,
    response.WSLD: WSLD,
    response.TFKDReg: TFKDReg,
}

RESPONSE_ADAPTIVE: dict[type, type[Loss[Any]]] = {
    response.TTM: TTM,
    response.WTTM: WTTM,
    response.CTKD: CTKD,
    response.MLKD: MLKD,
    response.SRD: SRD,
    response.USKD: USKD,
}

FEATURE_ACTIVATION: dict[type, type[Loss[Any]]] = {feature.AB: AB, feature.OFD: OFD}

FEATURE_MAPS: dict[type, type[Loss[Any]]] = {
    feature.Hint: Hint,
    feature.AT: AT,
    feature.NST: NST,
    feature.VID: VID,
    **FEATURE_FACTOR,
    **FEATURE_ACTIVATION,
    **FEATURE_REVIEW,
}

FEATURE_CLASSIFIER: dict[type, type[Loss[Any]]] = {feature.SRRL: SRRL, feature.CATKD: CATKD, feature.SimKD: SimKD}

FEATURE_CHANNELS: dict[type, type[Loss[Any]]] = {
    feature.CWD: CWD,
    feature.PKD: PKD,
    feature.PAD: PAD,
    feature.ICKD: ICKD,
    **FEATURE_CLASSIFIER,
}

RELATION: dict[type, type[Loss[Any]]] = {
    relation.RKD: RKD,
    relation.FSP: FSP,
    relation.SP: SP,
    relation.CC: CC,
    relation.PKT: PKT,
    relation.CRD: CRD,
    relation.IRG: IRG,
    relation.BatchCorrelation: BatchCorrelation,
    relation.ClassCorrelation: ClassCorrelation,
}

MODULES: dict[type, type[Loss[Any]]] = {
    **RESPONSE_SOFT,
    **RESPONSE_ADAPTIVE,
    **FEATURE_MAPS,
    **FEATURE_CHANNELS,
    **RELATION,
}
"""The module of every loss in the tables of `kdschemes.config.losses`."""


def build_loss(options: Any, *, student: Side, teacher: Side, task: Task) -> Loss[Any]:
    """Return the loss that `options` names, its projections shaped for the two networks.

    Raises:
        UserError: a stage that is not there, a loss that cannot be defined for the two.
    """
    return MODULES[type(options)](options, student=student, teacher=teacher, task=task)
