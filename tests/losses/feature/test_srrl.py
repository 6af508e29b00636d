"""Softmax regression representation learning."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from kdschemes.config.losses import feature as config
from kdschemes.core.loss import Endpoint, Loss
from kdschemes.core.types import DataSpec
from kdschemes.errors import UserError
from kdschemes.losses.build import build_loss
from kdschemes.losses.feature.hint import hint
from kdschemes.losses.feature.srrl import SRRL, srrl
from tests.losses.formulas import Array
from tests.losses.inputs import normal
from tests.losses.stubs import (
    BIG,
    SMALL,
    StubNetwork,
    output,
    side,
    value_of,
)


def formula(student: Array, teacher: Array, weight: Array, bias: Array, *, alpha: float, beta: float) -> float:
    """Feature matching, and the difference of the logits that the classifier gives of the two."""
    n, d = student.shape
    features, logits = 0.0, 0.0
    for s, t in zip(student, teacher, strict=True):
        features += math.fsum((s - t) ** 2)
        for w, b in zip(weight, bias, strict=True):
            logits += ((w @ s + b) - (w @ t + b)) ** 2
    return alpha * features / (n * d) + beta * logits / (n * len(weight))


def made(options: Any, student: Endpoint | None = None, teacher: Endpoint | None = None) -> Loss[Any]:
    torch.manual_seed(0)
    return build_loss(
        options, student=student or side(SMALL), teacher=teacher or side(BIG, frozen=True), data_spec=DataSpec(7, 3, 8)
    )


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (0.0, 2.0), (3.0, 0.0)])
def test_value_equals_the_formula(alpha: float, beta: float) -> None:
    s, t, weight, bias = normal(3, 4, 6), normal(4, 4, 6), normal(5, 7, 6), normal(6, 7)
    truth = formula(*(x.numpy() for x in (s, t, weight, bias)), alpha=alpha, beta=beta)
    assert srrl(s, t, classifier=weight, alpha=alpha, beta=beta).item() == pytest.approx(truth, rel=1e-10)
    near = t.float() + 1e-4 * s.float()
    exact = formula(near.double().numpy(), t.float().double().numpy(), weight.numpy(), bias.numpy(), alpha=1, beta=1)
    assert srrl(near, t.float(), classifier=weight.float()).item() == pytest.approx(exact, rel=1e-4)


def test_gradients() -> None:
    a, b = normal(12, 3, 5).requires_grad_(), normal(13, 3, 5).requires_grad_()
    weights = normal(11, 3, 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, y, w: srrl(x, y, classifier=w), (a, b, weights))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision(dtype: torch.dtype) -> None:
    def value(s: Tensor, t: Tensor, w: Tensor) -> Tensor:
        pooled = s.mean((2, 3), dtype=torch.promote_types(s.dtype, torch.float32)), t[:, :, 0, 0]
        return srrl(*pooled, classifier=w)

    half = [x.to(dtype) for x in (normal(14, 4, 32, 8, 8).relu(), normal(15, 4, 32, 4, 4).relu(), normal(16, 10, 32))]
    truth = value(*(x.double() for x in half)).item()
    plain = value(*half)
    with torch.autocast("cpu", dtype=dtype):
        inside = value(*half)
    for found in (plain, inside):
        assert found.dtype == torch.float32
        assert found.item() == pytest.approx(truth, rel=1e-2)


def test_the_modules_value_is_that_of_the_function() -> None:
    ours, theirs = side(SMALL), side(BIG, frozen=True)
    s, t = output(SMALL, 1), output(BIG, 51)
    f, g = s.features["block3"], t.features["layer3"]
    assert isinstance(theirs.network, StubNetwork)
    assert theirs.network.fc is not None
    loss = made(config.SRRL(alpha=2.0, beta=0.5), ours, theirs)
    assert isinstance(loss, SRRL)
    adapted = loss.connector(f).mean((2, 3))
    logits = theirs.network.fc(adapted), theirs.network.fc(g.mean((2, 3)))
    torch.testing.assert_close(value_of(loss, s, t), 2 * hint(adapted, g.mean((2, 3))) + 0.5 * hint(*logits))


@pytest.mark.parametrize(
    ("options", "student", "teacher", "message"),
    [
        (config.SRRL(), None, side(BIG, classified=False), r"srrl .*the teacher's linear classifier"),
        (config.SRRL(), None, Endpoint(BIG), r"srrl .*the teacher's linear classifier"),
        (config.SRRL(alpha=0.0, beta=0.0), None, None, r"alpha=0.*beta=0"),
    ],
)
def test_undefined_losses_are_refused_when_built(options: Any, student: Any, teacher: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        made(options, student, teacher)
    assert "\n" not in str(error.value)
