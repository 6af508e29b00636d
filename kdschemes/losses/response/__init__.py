"""Losses between logits, and of logits and labels."""

from kdschemes.losses.response.ctkd import ctkd, curriculum_strength, learned_temperature, reverse_gradient
from kdschemes.losses.response.decoupled import dkd, nkd
from kdschemes.losses.response.dist import dist
from kdschemes.losses.response.hand_made import tfkd_reg
from kdschemes.losses.response.mlkd import confidence_masks, mlkd
from kdschemes.losses.response.soft import cross_entropy, kd, logit_mse, soft_ce, standardise
from kdschemes.losses.response.srd import srd, srd_features
from kdschemes.losses.response.ttm import ttm, wttm
from kdschemes.losses.response.uskd import uskd, uskd_non_target, uskd_target, uskd_weak
from kdschemes.losses.response.weighted import wsld

__all__ = [
    "confidence_masks",
    "cross_entropy",
    "ctkd",
    "curriculum_strength",
    "dist",
    "dkd",
    "kd",
    "learned_temperature",
    "logit_mse",
    "mlkd",
    "nkd",
    "reverse_gradient",
    "soft_ce",
    "srd",
    "srd_features",
    "standardise",
    "tfkd_reg",
    "ttm",
    "uskd",
    "uskd_non_target",
    "uskd_target",
    "uskd_weak",
    "wsld",
    "wttm",
]
