"""The totals of the offline methods, and other values of their options to try."""

from __future__ import annotations

import oracles
from formulas import Formula, Seen
from variants import OFFLINE

from kdschemes.config.schemes import offline as options


def kd(seen: Seen) -> float:
    config = seen.config
    several = isinstance(config.teacher.name, list)
    teachers = [seen.logits(name) for name in (("teacher0", "teacher1") if several else ("teacher",))]
    weights = config.teacher.weights or [1.0] * len(teachers)
    temperature, alpha = config.losses.response.temperature, config.scheme.alpha
    return oracles.offline_kd(
        seen.logits("student"), teachers, weights, seen.labels, alpha=alpha, temperature=temperature
    )


FORMULAS: dict[type, Formula] = {options.OfflineKD: kd}
EXACT = {
    "kd-other": [*OFFLINE, "scheme.alpha=0.3", "losses.response.temperature=2"],
    "kd-two-teachers": [*OFFLINE, "teacher.name=[resnet20,convnet]", "teacher.weights=[1,3]"],
}
