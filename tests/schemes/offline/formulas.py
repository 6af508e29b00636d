"""The totals of the offline methods, and other values of their options to try."""

from __future__ import annotations

from kdschemes.config.schemes import offline as options
from tests.losses import oracles
from tests.schemes.formulas import Formula, Seen, array
from tests.schemes.offline import oracles as oracles_offline
from tests.schemes.variants import OFFLINE, base

TWO_TEACHERS = "teacher.name=[resnet20,convnet]"


def kd(seen: Seen) -> float:
    config = seen.config
    several = isinstance(config.teacher.name, list)
    teachers = [seen.logits(name) for name in (("teacher0", "teacher1") if several else ("teacher",))]
    weights = config.teacher.weights or [1.0] * len(teachers)
    temperature, alpha = config.losses.response.temperature, config.scheme.alpha
    return oracles.offline_kd(
        seen.logits("student"), teachers, weights, seen.labels, alpha=alpha, temperature=temperature
    )


def camkd(seen: Seen) -> float:
    names, scheme = ["teacher0", "teacher1"], seen.config.scheme
    begun = seen.progress.epoch >= scheme.feature_start_epoch
    read = [seen.out[f"student/{name}"] for name in names]
    return oracles_offline.camkd(
        seen.logits("student"),
        [seen.logits(name) for name in names],
        [(array(output.logits), array(output.features["embedded"])) for output in read],
        [array(list(seen.out[name].features.values())[-1]) for name in names],
        seen.labels,
        temperature=scheme.temperature,
        weights=(scheme.ce_weight, scheme.alpha, scheme.beta if begun else 0.0),
    )


def partial_teacher(seen: Seen) -> float:
    scheme, temperature = seen.config.scheme, seen.config.losses.response.temperature
    student, teacher = seen.logits("student"), seen.logits("teacher")
    ours = {"hard": scheme.ce_weight, "alpha": scheme.alpha, "temperature": temperature}
    theirs = {"hard": scheme.teacher_ce_weight, "alpha": scheme.teacher_alpha, "temperature": temperature}
    there = oracles_offline.hard_and_soft(student, teacher, seen.labels, **ours)
    return there + oracles_offline.hard_and_soft(teacher, student, seen.labels, **theirs)


def dpkd(seen: Seen) -> float:
    scheme = seen.config.scheme
    several = isinstance(seen.config.teacher.name, list)
    members = [seen.logits(name) for name in ("start", *(("teacher0", "teacher1") if several else ("teacher",)))]
    target = oracles_offline.most_confident(members, seen.labels, scheme.confidence)
    weights = {"hard": 1.0 - scheme.alpha, "alpha": scheme.alpha}
    temperature = seen.config.losses.response.temperature
    return oracles_offline.hard_and_soft(
        seen.logits("student"), target, seen.labels, **weights, temperature=temperature
    )


FORMULAS: dict[type, Formula] = {
    options.OfflineKD: kd,
    options.OfflineTAKD: kd,
    options.OfflineCAMKD: camkd,
    options.OfflinePartialTeacher: partial_teacher,
    options.OfflineDPKD: dpkd,
}
EXACT = {
    "kd-other": [*OFFLINE, "scheme.alpha=0.3", "losses.response.temperature=2"],
    "kd-two-teachers": [*OFFLINE, TWO_TEACHERS, "teacher.weights=[1,3]"],
    "takd-other": [*base("offline", "takd"), "scheme.assistants=[resnet56,convnet]", "scheme.alpha=0.4"],
    "camkd-other": [
        *[
            *base("offline", "camkd"),
            "scheme.feature_start_epoch=0",
            "scheme.temperature=2",
            "scheme.grad_through_weights=false",
        ],
        *["scheme.ce_weight=0.5", "scheme.alpha=0.3", "scheme.beta=7"],
    ],
    "partial_teacher-other": [
        *[
            *base("offline", "partial_teacher"),
            "scheme.trained_from=layer2",
            "scheme.alpha=0.6",
            "scheme.ce_weight=0.2",
        ],
        *["scheme.teacher_ce_weight=0.3", "scheme.teacher_alpha=0.7", "losses.response.temperature=2"],
    ],
    "partial_teacher-all": [*base("offline", "partial_teacher"), "scheme.trained_from=all"],
    "dpkd-other": [
        *[*base("offline", "dpkd"), "scheme.confidence=max_probability", "scheme.alpha=0.3"],
        *["losses.response.temperature=3", TWO_TEACHERS],
    ],
}
