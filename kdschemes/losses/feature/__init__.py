"""Losses between the features of one stage of the student and one of the teacher."""

from kdschemes.losses.feature.activation import ab, ofd, ofd_margin
from kdschemes.losses.feature.channels import channel_correlation, cwd, ickd, pkd
from kdschemes.losses.feature.classifier import cat_kd, class_activation, simkd, srrl
from kdschemes.losses.feature.factor import ft
from kdschemes.losses.feature.maps import attention_map, attention_transfer, hint, match_size
from kdschemes.losses.feature.nst import nst
from kdschemes.losses.feature.prime_aware import pad
from kdschemes.losses.feature.review import hcl
from kdschemes.losses.feature.variational import vid, vid_raw_variance

__all__ = [
    "ab",
    "attention_map",
    "attention_transfer",
    "cat_kd",
    "channel_correlation",
    "class_activation",
    "cwd",
    "ft",
    "hcl",
    "hint",
    "ickd",
    "match_size",
    "nst",
    "ofd",
    "ofd_margin",
    "pad",
    "pkd",
    "simkd",
    "srrl",
    "vid",
    "vid_raw_variance",
]
