"""DDGSD: two views of each image teach each other, and the means of their features approach each other."""

from __future__ import annotations

import math

import pytest
import torch

from kdschemes.schemes.self_distillation.ddgsd import mean_gap
from tests.losses import oracles
from tests.losses.oracles import Array
from tests.schemes.cases import START, base, batch_for, build
from tests.schemes.formulas import Formula, Seen, array
from tests.schemes.self_distillation.cases import forward_passes, outputs_of
from tests.schemes.self_distillation.formulas import last_feature, pooled

DDGSD = base("self", "ddgsd")


def ddgsd_total(
    views: tuple[Array, Array], features: tuple[Array, Array], labels: list[int], *, temperature: float, gap: float
) -> float:
    """CE of both views, KD from each to the other, and the weighted distance of the mean features by channel."""
    first, second = views
    target = oracles.one_hot(labels, first.shape[1])
    total = oracles.cross_entropy(first, target) + oracles.cross_entropy(second, target)
    total += oracles.kd(first, second, temperature=temperature) + oracles.kd(second, first, temperature=temperature)
    means = [[math.fsum(row[d] for row in rows) / len(rows) for d in range(rows.shape[1])] for rows in features]
    return total + gap * math.fsum((a - b) ** 2 for a, b in zip(*means, strict=True))


def expected_scalar_gap(features: tuple[Array, Array]) -> float:
    means = [math.fsum(rows.ravel()) / rows.size for rows in features]
    return (means[0] - means[1]) ** 2


def expected_total(seen: Seen) -> float:
    names = ("student", "student/view1")
    features = (pooled(last_feature(seen, names[0])), pooled(last_feature(seen, names[1])))
    scalar, weight = seen.config.scheme.mean_distance == "scalar", seen.config.scheme.mean_distance_weight
    value = ddgsd_total(
        (seen.logits(names[0]), seen.logits(names[1])),
        features,
        seen.labels,
        temperature=seen.config.losses.response.temperature,
        gap=0.0 if scalar else weight,
    )
    return value + (weight * expected_scalar_gap(features) if scalar else 0.0)


FORMULA: Formula = expected_total
EXACT = {
    "ddgsd-scalar": [*DDGSD, "scheme.mean_distance=scalar", "scheme.mean_distance_weight=50"],
    "ddgsd-other": [*DDGSD, "scheme.mean_distance_weight=7", "losses.response.temperature=2"],
}
VARIANTS = {
    "self-ddgsd-hint-rkd": [*DDGSD, "losses.feature=hint", "losses.relation=rkd", "scheme.mean_distance=scalar"],
}


def test_a_step_takes_one_forward_pass() -> None:
    scheme = build(*DDGSD).train()
    scheme(batch_for(scheme), START)
    assert forward_passes(scheme) == 1


@pytest.mark.parametrize("form", ["channels", "scalar"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_distance_of_mean_features(form: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(5, 3, generator=generator).to(dtype).requires_grad_() for _ in range(2))
    value = mean_gap(a, b, form=form)  # type: ignore[arg-type]
    pair = array(a), array(b)
    scalar = expected_scalar_gap(pair)
    channels = sum(float(x) ** 2 for x in pair[0].mean(0) - pair[1].mean(0))
    assert value.item() == pytest.approx(scalar if form == "scalar" else channels, rel=1e-5)
    value.backward()
    assert a.grad is not None
    assert b.grad is not None
    assert torch.equal(a.grad, -b.grad)
    assert bool(a.grad.any())


def test_both_views_learn_from_the_distance_and_each_from_the_other() -> None:
    scheme = build(*base("self", "ddgsd")).train()
    batch = batch_for(scheme)
    out = outputs_of(scheme, batch)
    terms = {term.name: term for term in scheme.terms}
    for name, reached in {
        "kd/student->student/view1": (False, True),
        "kd/student/view1->student": (True, False),
        "gap/student-student/view1": (True, True),
    }.items():
        inputs = [list(out[view].features.values())[-1] for view in ("student", "student/view1")]
        inputs = inputs if name.startswith("gap") else [out[view].logits for view in ("student", "student/view1")]
        gradients = torch.autograd.grad(terms[name](out, batch), inputs, retain_graph=True, allow_unused=True)
        assert tuple(g is not None and bool(g.any()) for g in gradients) == reached
