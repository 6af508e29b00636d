"""What the options of the offline methods open, to be tested like their defaults."""

from __future__ import annotations

from tests.schemes.variants import OFFLINE, base

TWO_TEACHERS = "teacher.name=[resnet20,convnet]"
VARIANTS: dict[str, list[str]] = {
    "offline-kd-two-teachers": [*OFFLINE, TWO_TEACHERS, "teacher.weights=[1,3]"],
    "offline-kd-two-teachers-hint": [*OFFLINE, TWO_TEACHERS, "losses.feature=hint"],
    "offline-kd-hint-rkd": [*OFFLINE, "teacher=convnet", "losses.feature=hint", "losses.relation=rkd"],
    "offline-kd-at-fsp": [*OFFLINE, "losses.feature=at", "losses.relation=fsp", "losses.response=logit_mse"],
    "offline-kd-fsp-adapters": [*OFFLINE, "teacher=convnet", "losses.relation=fsp", "losses.response=none"],
    "offline-camkd-from-the-start": [*base("offline", "camkd"), "scheme.feature_start_epoch=0"],
    "offline-partial_teacher-layer2-hint": [
        *base("offline", "partial_teacher"),
        "scheme.trained_from=layer2",
        "losses.feature=hint",
    ],
    "offline-partial_teacher-all": [*base("offline", "partial_teacher"), "scheme.trained_from=all"],
    "offline-dpkd-two-teachers-hint": [
        *[*base("offline", "dpkd"), TWO_TEACHERS, "scheme.confidence=max_probability", "losses.feature=hint"]
    ],
}
REFUSED: dict[tuple[str, str], str] = {}
"""Pairs of method and architecture that a builder refuses, with a part of what it says."""
