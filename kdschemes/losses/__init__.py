"""Distillation losses by kind of knowledge: pure functions of tensors, and the modules that schemes are built from.

`response` compares logits, `feature` maps and vectors of single stages, `relation` pairs of samples or of stages.
Every function takes the student first and the teacher second, averages over the batch, computes in at least float32
without autocast, and propagates gradients to both sides: detaching the teacher is up to the caller. In formulas, z are
the student's logits, v the teacher's, y the labels, s and t features, T the temperature (> 0).

The functions can be imported from here: `from kdschemes.losses import dkd`.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_PLACES = {
    "ab": "feature.ab",
    "attention_transfer": "feature.at",
    "batch_correlation": "logit_correlation",
    "cat_kd": "feature.cat_kd",
    "class_correlation": "logit_correlation",
    "ctkd": "response.ctkd",
    "cwd": "feature.cwd",
    "dist": "response.dist",
    "dkd": "response.dkd",
    "fsp": "relation.fsp",
    "ft": "feature.ft",
    "hard": "response.hard",
    "hcl": "feature.reviewkd",
    "hint": "feature.hint",
    "ickd": "feature.ickd",
    "kd": "response.kd",
    "kernel_congruence": "relation.cc",
    "logit_mse": "response.logit_mse",
    "mld": "response.mld",
    "mlkd": "response.mlkd",
    "neighbor_congruence": "relation.cc",
    "nkd": "response.nkd",
    "normkd": "response.normkd",
    "nst": "feature.nst",
    "ofd": "feature.ofd",
    "pad": "feature.pad",
    "pkd": "feature.pkd",
    "probabilistic_transfer": "relation.pkt",
    "rkd_angle": "relation.rkd",
    "rkd_distance": "relation.rkd",
    "rld": "response.rld",
    "similarity_preserving": "relation.sp",
    "simkd": "feature.simkd",
    "soft_ce": "response.soft_ce",
    "srd": "response.srd",
    "srrl": "feature.srrl",
    "tfkd_reg": "response.tfkd_reg",
    "ttm": "response.ttm",
    "uskd": "response.uskd",
    "vid": "feature.vid",
    "wsld": "response.wsld",
    "wttm": "response.wttm",
}
"""The module of each public function."""

__all__ = [*_PLACES]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
