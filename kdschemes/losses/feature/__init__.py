"""Losses between the features of one stage of the student and one of the teacher."""

from kdschemes.losses.feature.ab import ab
from kdschemes.losses.feature.at import attention_map, attention_transfer
from kdschemes.losses.feature.cat_kd import cat_kd, class_activation
from kdschemes.losses.feature.cwd import cwd
from kdschemes.losses.feature.ft import ft
from kdschemes.losses.feature.hint import hint
from kdschemes.losses.feature.ickd import channel_correlation, ickd
from kdschemes.losses.feature.nst import nst
from kdschemes.losses.feature.ofd import ofd, ofd_margin
from kdschemes.losses.feature.pad import pad
from kdschemes.losses.feature.pkd import pkd
from kdschemes.losses.feature.reviewkd import hcl
from kdschemes.losses.feature.simkd import simkd
from kdschemes.losses.feature.srrl import srrl
from kdschemes.losses.feature.vid import vid, vid_raw_variance
from kdschemes.losses.stages import match_size

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
