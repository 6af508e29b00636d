"""The totals of the self-distillation methods of one plain network, and other values of their options to try."""

from __future__ import annotations

import math

import torch

from kdschemes.config.schemes import self_distillation as options
from kdschemes.core.terms import Transfer
from tests.losses import oracles, oracles_response
from tests.schemes.formulas import Formula, Seen, array
from tests.schemes.self_distillation import oracles as oracles_self
from tests.schemes.variants import base


def hard(seen: Seen) -> float:
    student = seen.logits("student")
    return oracles.cross_entropy(student, oracles.one_hot(seen.labels, student.shape[1]))


def pooled(features: torch.Tensor) -> oracles.Array:
    return array(features).mean(axis=(2, 3))


def last(seen: Seen, name: str) -> torch.Tensor:
    return list(seen.out[name].features.values())[-1]


def ddgsd(seen: Seen) -> float:
    names = ("student", "student/view1")
    features = (pooled(last(seen, names[0])), pooled(last(seen, names[1])))
    scalar, weight = seen.config.scheme.mean_distance == "scalar", seen.config.scheme.mean_distance_weight
    value = oracles_self.ddgsd(
        (seen.logits(names[0]), seen.logits(names[1])),
        features,
        seen.labels,
        temperature=seen.config.losses.response.temperature,
        gap=0.0 if scalar else weight,
    )
    return value + (weight * oracles_self.ddgsd_scalar_gap(features) if scalar else 0.0)


def cskd(seen: Seen) -> float:
    temperature, weight = seen.config.losses.response.temperature, seen.config.losses.response.weight
    names = ("student", "student/classmate")
    soft = oracles.kd(seen.logits(names[0]), seen.logits(names[1]), temperature=temperature)
    return hard(seen) + weight * soft


def pskd(seen: Seen) -> float:
    """Progress tells of 10 epochs; the past of the first one is the label."""
    epoch = math.floor(seen.progress.epoch)
    past = oracles_self.probabilities(seen.logits("past"))
    if epoch == 0:
        past = oracles.one_hot(seen.labels, past.shape[1])
    alpha = seen.config.scheme.alpha * (epoch + 1) / 10
    return oracles_self.pskd(seen.logits("student"), past, seen.labels, alpha=alpha)


def dlb(seen: Seen) -> float:
    before = [int(label) for label in seen.batch.aux_batches["previous"].labels]
    names = ("student", "student/previous", "past")
    return oracles_self.dlb(
        *(seen.logits(name) for name in names),
        seen.labels,
        before,
        temperature=seen.config.losses.response.temperature,
    )


def mean_teacher(seen: Seen) -> float:
    response, epoch = seen.config.losses.response, seen.progress.epoch
    ramp = math.exp(-5 * (1 - min(epoch / response.ramp_epochs, 1)) ** 2) if response.schedule == "sigmoid" else 1.0
    soft = oracles.kd(seen.logits("student"), seen.logits("average"), temperature=response.temperature)
    return hard(seen) + ramp * response.weight * soft


def zipf(seen: Seen) -> float:
    chosen, scores = seen.config.scheme, seen.logits("student")
    if chosen.votes == "dense":
        classifier = seen.scheme.nodes["student"].network.fc
        weights = (array(classifier.weight), array(classifier.bias))
        scores = oracles_self.votes(array(last(seen, "student")), *weights, factor=chosen.upsample)
    soft = oracles_self.zipf(seen.logits("student"), scores, seen.labels, power=chosen.power)
    return hard(seen) + chosen.weight * soft


def uskd(seen: Seen) -> float:
    (term,) = (term for term in seen.scheme.terms if isinstance(term, Transfer))
    chosen, layer = seen.config.losses.response, term.loss.weak
    features = pooled(list(seen.out["student"].features.values())[-2])
    weak = features @ array(layer.weight).T + array(layer.bias)
    settings = {key: getattr(chosen, key) for key in ("alpha", "beta", "mu", "smoothing", "rank")}
    soft = oracles_self.uskd(seen.logits("student"), weak, seen.labels, **settings)
    return seen.config.scheme.ce_weight * hard(seen) + chosen.weight * soft


def tfkd_reg(seen: Seen) -> float:
    chosen = seen.config.losses.response
    settings = {key: getattr(chosen, key) for key in ("temperature", "label_prob", "multiplier")}
    soft = oracles_response.tfkd_reg(seen.logits("student"), seen.labels, **settings)
    return seen.config.scheme.ce_weight * hard(seen) + chosen.weight * soft


FORMULAS: dict[type, Formula] = {
    options.SelfDDGSD: ddgsd,
    options.SelfCSKD: cskd,
    options.SelfPSKD: pskd,
    options.SelfDLB: dlb,
    options.SelfMeanTeacher: mean_teacher,
    options.SelfZipf: zipf,
    options.SelfUSKD: uskd,
    options.SelfTfKDReg: tfkd_reg,
}
EXACT: dict[str, list[str]] = {
    "ddgsd-scalar": [*base("self", "ddgsd"), "scheme.mean_distance=scalar", "scheme.mean_distance_weight=50"],
    "ddgsd-other": [*base("self", "ddgsd"), "scheme.mean_distance_weight=7", "losses.response.temperature=2"],
    "cskd-other": [*base("self", "cskd"), "losses.response.weight=3", "losses.response.temperature=1"],
    "pskd-other": [*base("self", "pskd"), "scheme.alpha=1"],
    "dlb-other": [*base("self", "dlb"), "losses.response.temperature=1.5"],
    "mean_teacher-other": [
        *base("self", "mean_teacher"),
        "scheme.view=shared",
        "scheme.decay=0.5",
        "losses.response.ramp_epochs=5",
    ],
    "mean_teacher-constant": [
        *base("self", "mean_teacher"),
        "scheme.warm_up=false",
        "losses.response.schedule=constant",
    ],
    "zipf-logits": [*base("self", "zipf"), "scheme.votes=logits", "scheme.power=0.5", "scheme.weight=2"],
    "zipf-plain": [*base("self", "zipf"), "scheme.upsample=1", "scheme.power=2", "scheme.weight=2"],
    "uskd-cifar": [
        *base("self", "uskd"),
        "losses.response.alpha=0.1",
        "losses.response.mu=0.1",
        "scheme.ce_weight=0.7",
    ],
    "tfkd_reg-mobile": [
        *base("self", "tfkd_reg"),
        "scheme.ce_weight=0.05",
        "losses.response={weight: 0.95, temperature: 40, multiplier: 1}",
    ],
}
