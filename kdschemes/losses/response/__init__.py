"""Losses between logits, and of logits and labels."""

from kdschemes.core.cross_entropy import cross_entropy
from kdschemes.losses.response.ctkd import ctkd, curriculum_strength, learned_temperature, reverse_gradient
from kdschemes.losses.response.dist import dist
from kdschemes.losses.response.dkd import dkd
from kdschemes.losses.response.kd import kd
from kdschemes.losses.response.logit_mse import logit_mse
from kdschemes.losses.response.mlkd import confidence_masks, mlkd
from kdschemes.losses.response.nkd import nkd
from kdschemes.losses.response.soft_ce import soft_ce
from kdschemes.losses.response.srd import srd, srd_features
from kdschemes.losses.response.standardise import standardise
from kdschemes.losses.response.tfkd_reg import tfkd_reg
from kdschemes.losses.response.ttm import ttm
from kdschemes.losses.response.uskd import uskd, uskd_non_target, uskd_target, uskd_weak
from kdschemes.losses.response.wsld import wsld
from kdschemes.losses.response.wttm import wttm

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
