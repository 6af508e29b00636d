"""What our functions call each reference of the logit losses: (inputs by name, parameters) to the loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from torch import Tensor

from kdschemes.core.cross_entropy import cross_entropy
from kdschemes.losses.response.dist import dist
from kdschemes.losses.response.dkd import dkd
from kdschemes.losses.response.kd import kd
from kdschemes.losses.response.nkd import nkd
from kdschemes.losses.response.standardize import standardize
from kdschemes.losses.response.tfkd_reg import tfkd_reg
from kdschemes.losses.response.wsld import wsld

Case = dict[str, Any]
Inputs = dict[str, Tensor]
Reference = Callable[[Inputs, Case], Tensor]


def soft(x: Inputs, p: Case, **conventions: Any) -> Tensor:
    return kd(x["s"], x["t"], temperature=float(p["T"]), **conventions)


def and_hard(share: float, term: Tensor, x: Inputs) -> Tensor:
    return share * term + (1 - share) * cross_entropy(x["s"], x["y"])


def standardized(x: Inputs) -> Inputs:
    return {**x, "s": standardize(x["s"]), "t": standardize(x["t"])}


def decoupled(x: Inputs, p: Case) -> Tensor:
    return dkd(x["s"], x["t"], x["y"], temperature=float(p["T"]), alpha=p["alpha"], beta=p["beta"])


def relations(x: Inputs, p: Case, epsilon: Literal["none", "added", "clamped"] = "added", scale: bool = True) -> Tensor:
    return dist(x["s"], x["t"], temperature=float(p["T"]), beta=1.0, gamma=1.0, epsilon=epsilon, scale=scale)


def smoothed_by_single_precision(x: Inputs, p: Case) -> Tensor:
    """label_smoothing=0.1 over the others, but for the reference's rounding of its targets to float32."""
    others = x["s"].shape[1] - 1
    on, off = (float(np.float32(share)) for share in (0.9, 0.1 / others))
    spread = cross_entropy(x["s"], x["y"], label_smoothing=1.0, label_smoothing_over="others")
    return on * cross_entropy(x["s"], x["y"]) + off * others * spread


REFERENCES: dict[str, Reference] = {
    "KD.RepDistiller": soft,
    "KD.mdistiller": soft,
    "KD.mmrazor": soft,
    "KD.sota": soft,
    "KD.attention-transfer": lambda x, p: and_hard(p["alpha"], soft(x, p), x),
    "KD.torchdistill": lambda x, p: and_hard(1 - p["alpha"], soft(x, p), x),
    "KD.torchdistill_alpha0": lambda x, p: soft(x, p, scale=False),
    "KD.haitongli": lambda x, p: and_hard(p["alpha"], soft(x, p, reduction="mean"), x),
    "KD.Teacher-free": lambda x, p: and_hard(p["alpha"], soft(x, p, reduction="mean"), x),
    "TF-KD_self": lambda x, p: and_hard(p["alpha"], p["m"] * soft(x, p, reduction="mean"), x),
    "TF-KD_reg": lambda x, p: and_hard(
        p["alpha"], tfkd_reg(x["s"], x["y"], temperature=float(p["T"]), label_prob=0.99, multiplier=p["m"]), x
    ),
    "LSKD_KD": lambda x, p: soft(standardized(x), p),
    "LSKD_DKD": lambda x, p: decoupled(standardized(x), p),
    "LSKD.torchdistill": lambda x, p: and_hard(1 - p["alpha"], soft(standardized(x), p), x),
    "DKD.mdistiller": decoupled,
    "DKD.mmrazor": decoupled,
    "NKD.cls_KD": lambda x, p: nkd(x["s"], x["t"], x["y"], temperature=float(p["T"]), gamma=p["gamma"]),
    "DIST.sota": relations,
    "DIST.mmrazor": relations,
    "DIST.DIST_KD_seg": lambda x, p: relations(x, {"T": 1.0}, scale=False),
    "DIST.torchdistill": lambda x, p: relations(x, p, "clamped"),
    "WSLD.mmrazor": lambda x, p: wsld(x["s"], x["t"], x["y"], temperature=float(p["T"])),
    "LabelSmooth.Teacher-free": smoothed_by_single_precision,
}
