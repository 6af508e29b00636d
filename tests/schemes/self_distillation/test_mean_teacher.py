"""Mean teacher: an average of the network over training teaches it."""

from __future__ import annotations

import math

import pytest
import torch

from kdschemes.core.averages import Ema
from tests.losses import oracles
from tests.schemes.cases import START, base, batch_for, build, network_of
from tests.schemes.formulas import Formula, Seen
from tests.schemes.self_distillation.cases import forward_passes, outputs_of
from tests.schemes.self_distillation.formulas import hard

MEAN_TEACHER = base("self", "mean_teacher")


def expected_total(seen: Seen) -> float:
    response, epoch = seen.config.losses.response, seen.progress.epoch
    ramp = math.exp(-5 * (1 - min(epoch / response.ramp_epochs, 1)) ** 2) if response.schedule == "sigmoid" else 1.0
    soft = oracles.kd(seen.logits("student"), seen.logits("average"), temperature=response.temperature)
    return hard(seen) + ramp * response.weight * soft


FORMULA: Formula = expected_total
EXACT = {
    "mean_teacher-other": [*MEAN_TEACHER, "scheme.view=shared", "scheme.decay=0.5", "losses.response.ramp_epochs=5"],
    "mean_teacher-constant": [*MEAN_TEACHER, "scheme.warm_up=false", "losses.response.schedule=constant"],
}
VARIANTS = {"self-mean_teacher-at": [*MEAN_TEACHER, "losses.feature=at", "scheme.view=shared"]}


def test_a_step_takes_one_forward_pass_of_the_student() -> None:
    scheme = build(*MEAN_TEACHER).train()
    scheme(batch_for(scheme), START)
    assert forward_passes(scheme) == 1


@pytest.mark.parametrize("view", ["independent", "shared"])
def test_the_average_sees_its_view_without_gradient_and_follows_the_student(view: str) -> None:
    scheme = build(*base("self", "mean_teacher"), f"scheme.view={view}").train()
    node = scheme.nodes["average"]
    assert isinstance(node, Ema)
    assert scheme.heads == ("average", "student")
    batch = batch_for(scheme)
    out = outputs_of(scheme, batch)
    seen = batch.aux_batches["view1"] if view == "independent" else batch
    assert scheme.aux_batches == (("view1",) if view == "independent" else ())
    average = network_of(scheme, "average")
    assert torch.equal(out["average"].logits, average(seen.images))
    assert not out["average"].logits.requires_grad
    before, weight = average.fc.weight.clone(), network_of(scheme, "student").fc.weight
    with torch.no_grad():
        weight += 1.0
    scheme.after_step()
    torch.testing.assert_close(average.fc.weight, 0.5 * before + 0.5 * weight)
