"""Losses between logits, and of logits and labels."""

from kdschemes.losses.response.soft import cross_entropy, kd, logit_mse, standardise

__all__ = ["cross_entropy", "kd", "logit_mse", "standardise"]
