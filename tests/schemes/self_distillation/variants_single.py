"""What the options of the self-distillation methods of one plain network open, to be tested like their defaults."""

from __future__ import annotations

from tests.schemes.variants import base

VARIANTS: dict[str, list[str]] = {
    "self-ddgsd-hint-rkd": [
        *base("self", "ddgsd"),
        "losses.feature=hint",
        "losses.relation=rkd",
        "scheme.mean_distance=scalar",
    ],
    "self-cskd-average": [*base("self", "cskd"), "train.ema=0.9", "losses.response=dist"],
    "self-pskd-ctkd": [*base("self", "pskd"), "losses.response=ctkd"],
    "self-dlb-dist": [*base("self", "dlb"), "losses.response=dist"],
    "self-mean_teacher-at": [*base("self", "mean_teacher"), "losses.feature=at", "scheme.view=shared"],
    "self-zipf-logits": [*base("self", "zipf"), "scheme.votes=logits"],
}
VOTES = "scheme.votes=dense needs a linear classifier on the averaged last map"
REFUSED: dict[tuple[str, str], str] = {
    ("self-zipf", "timm/mobilenetv3_small_050"): VOTES,
    ("self-zipf", "timm/test_vit"): VOTES,
}
"""Pairs of method and architecture that a builder refuses, with a part of what it says."""
