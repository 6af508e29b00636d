"""Cross-entropy with the teacher's softened output."""

from __future__ import annotations

import pytest
import torch

from kdschemes.config.losses import response as config
from kdschemes.losses.response.kd import kd
from kdschemes.losses.response.soft_ce import soft_ce
from tests.losses import formulas
from tests.losses.cases import LogitCase
from tests.losses.inputs import gradient, logits_and_labels

CASES = {"soft_ce": LogitCase(lambda z, v, y: soft_ce(z, v, temperature=2.0), zero=False)}
OPTIONS = [config.SoftCE(temperature=3.0), config.SoftCE(scale=False)]


SIZES = pytest.mark.parametrize(("n", "c"), [(6, 10), (1, 4), (5, 2), (2, 100)])


@SIZES
@pytest.mark.parametrize("temperature", [1.0, 4.0, 100.0])
@pytest.mark.parametrize("scale", [0.1, 1.0, 50.0])
def test_value_equals_the_formula(n: int, c: int, temperature: float, scale: float) -> None:
    z, v, _ = logits_and_labels(4, n, c, scale)
    value = soft_ce(z, v, temperature=temperature)
    assert value.item() == pytest.approx(formulas.soft_ce(z.numpy(), v.numpy(), temperature=temperature), rel=1e-10)


def test_is_kd_plus_the_teachers_entropy() -> None:
    z, v, _ = logits_and_labels(5)
    z.requires_grad_()
    p = torch.softmax(v / 3.0, dim=1)
    entropy = 9.0 * -(p * p.log()).sum(dim=1).mean()
    value, plain = soft_ce(z, v, temperature=3.0), kd(z, v, temperature=3.0)
    torch.testing.assert_close(value, plain + entropy)
    torch.testing.assert_close(gradient(value, z), gradient(plain, z))
    torch.testing.assert_close(soft_ce(z, v, temperature=3.0, scale=False) * 9.0, value)
