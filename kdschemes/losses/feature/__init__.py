"""Losses between the features of one stage of the student and one of the teacher."""

from kdschemes.losses.feature.maps import attention_map, attention_transfer, hint, match_size

__all__ = ["attention_map", "attention_transfer", "hint", "match_size"]
