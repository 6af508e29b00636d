"""Knowledge distillation from one or several teachers."""

from __future__ import annotations

from tests.schemes.cases import OFFLINE
from tests.schemes.formulas import Formula
from tests.schemes.offline.cases import TWO_TEACHERS, several_teachers

FORMULA: Formula = several_teachers
EXACT = {
    "kd-other": [*OFFLINE, "scheme.alpha=0.3", "losses.response.temperature=2"],
    "kd-two-teachers": [*OFFLINE, TWO_TEACHERS, "teacher.weights=[1,3]"],
}
VARIANTS = {
    "offline-kd-two-teachers": [*OFFLINE, TWO_TEACHERS, "teacher.weights=[1,3]"],
    "offline-kd-two-teachers-hint": [*OFFLINE, TWO_TEACHERS, "losses.feature=hint"],
    "offline-kd-hint-rkd": [*OFFLINE, "teacher=convnet", "losses.feature=hint", "losses.relation=rkd"],
    "offline-kd-at-fsp": [*OFFLINE, "losses.feature=at", "losses.relation=fsp", "losses.response=logit_mse"],
    "offline-kd-fsp-adapters": [*OFFLINE, "teacher=convnet", "losses.relation=fsp", "losses.response=none"],
    "offline-kd-plain-view": [*OFFLINE, "teacher.view=plain", "losses.feature=hint"],
}
