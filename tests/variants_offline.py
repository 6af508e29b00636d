"""What the options of the offline methods open, to be tested like their defaults."""

from __future__ import annotations

from variants import OFFLINE

VARIANTS: dict[str, list[str]] = {
    "offline-kd-two-teachers": [*OFFLINE, "teacher.name=[resnet20,convnet]", "teacher.weights=[1,3]"],
    "offline-kd-two-teachers-hint": [*OFFLINE, "teacher.name=[resnet20,convnet]", "losses.feature=hint"],
    "offline-kd-hint-rkd": [*OFFLINE, "teacher=convnet", "losses.feature=hint", "losses.relation=rkd"],
    "offline-kd-at-fsp": [*OFFLINE, "losses.feature=at", "losses.relation=fsp", "losses.response=logit_mse"],
    "offline-kd-fsp-adapters": [*OFFLINE, "teacher=convnet", "losses.relation=fsp", "losses.response=none"],
}
REFUSED: dict[tuple[str, str], str] = {}
"""Pairs of method and architecture that a builder refuses, with a part of what it says."""
