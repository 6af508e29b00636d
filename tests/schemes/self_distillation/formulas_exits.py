"""The totals of the self-distillation methods between exits or stages, and other values of their options to try."""

from __future__ import annotations

from itertools import pairwise

from torch import nn

from kdschemes.config.schemes import self_distillation as exits
from tests.losses import oracles
from tests.schemes.formulas import Formula, Seen, array, last
from tests.schemes.self_distillation import oracles_exits as oracles_self_exits
from tests.schemes.variants import SELF, base

AUTHORS, LUANYUNTENG = [*SELF, "scheme.variant=authors"], [*SELF, "scheme.variant=luanyunteng"]
MULTI_EXIT, SAD, FRSKD = (base("self", method) for method in ("multi_exit", "sad", "frskd"))


def byot(seen: Seen) -> float:
    scheme, response = seen.config.scheme, seen.config.losses.response
    outputs = [last(seen.out[name]) for name in ("student", "student/exit1", "student/exit2")]
    if scheme.variant != "ours":
        pooled = [(logits, feature.mean(axis=(2, 3))) for logits, feature in outputs]
        formula = oracles_self_exits.byot_luanyunteng
        if scheme.variant == "authors":
            formula = oracles_self_exits.byot_authors
            (term,) = (term for term in seen.scheme.terms if term.name.startswith("pooled/"))
            adapter = term.loss.adapter
            assert isinstance(adapter, nn.Linear)
            feature = pooled[1][1] @ array(adapter.weight).T + array(adapter.bias)
            pooled[1] = pooled[1][0], feature
        return formula(pooled[0], pooled[1:], seen.labels, alpha=scheme.alpha, beta=scheme.beta)
    return oracles.byot(
        outputs[0],
        outputs[1:],
        seen.labels,
        alpha=scheme.alpha,
        temperature=response.temperature,
        hint_weight=seen.config.losses.feature.weight,
    )


def multi_exit(seen: Seen) -> float:
    scheme = seen.config.scheme
    return scheme.scale * oracles_self_exits.multi_exit(
        seen.logits("student"),
        [seen.logits(name) for name in ("student/exit1", "student/exit2")],
        seen.labels,
        alpha=scheme.alpha,
        last=1 - scheme.alpha if scheme.final_exit_weight is None else scheme.final_exit_weight,
        temperature=seen.config.losses.response.temperature,
    )


def sad(seen: Seen) -> float:
    scheme, features = seen.config.scheme, seen.out["student"].features
    names = list(features) if scheme.stages == "all" else scheme.stages
    total = oracles.supervised([seen.logits("student")], seen.labels, smoothing=0.0)
    weight = scheme.weight if seen.progress.fraction >= scheme.start else 0.0
    for shallow, deep in pairwise(names):
        total += weight * oracles_self_exits.self_attention(
            array(features[shallow]),
            array(features[deep]),
            channel_reduction=scheme.channel_reduction,
            upsample=scheme.upsample,
            spatial_reduction=scheme.spatial_reduction,
        )
    return total


def frskd(seen: Seen) -> float:
    losses = seen.config.losses
    student, teacher = (
        (seen.logits(name), [array(feature) for feature in seen.out[name].features.values()])
        for name in ("student", "self_teacher")
    )
    return oracles_self_exits.frskd(
        student,
        teacher,
        seen.labels,
        temperature=losses.response.temperature,
        alpha=losses.response.weight,
        beta=losses.feature.weight,
    )


FORMULAS: dict[type, Formula] = {
    exits.SelfBYOT: byot,
    exits.SelfMultiExit: multi_exit,
    exits.SelfSAD: sad,
    exits.SelfFRSKD: frskd,
}
EXACT = {
    "byot-other": [*SELF, "scheme.alpha=0.2", "losses.response.temperature=1.5", "losses.feature.weight=2"],
    "byot-authors": AUTHORS,
    "byot-luanyunteng": [*LUANYUNTENG, "scheme.beta=0.01"],
    "multi-exit-other": [*MULTI_EXIT, "scheme.alpha=0.3", "scheme.final_exit_weight=1", "scheme.scale=0.8"],
    "multi-exit-constant": [*MULTI_EXIT, "scheme.growth=1", "losses.response.temperature=4"],
    "sad-original": [*SAD, "scheme.variant=original", "scheme.start=0.2", "scheme.weight=3"],
    "sad-sums": [*SAD, "scheme.spatial_reduction=sum", "scheme.channel_reduction=sum", "scheme.detach=false"],
    "sad-two-stages": [*SAD, "scheme.stages=[layer1,layer3]", "scheme.upsample=attention"],
    "frskd-other": [*FRSKD, "model=convnet", "losses.response.temperature=2", "losses.feature.weight=7"],
}
