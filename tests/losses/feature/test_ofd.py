"""Overhaul of feature distillation."""

from __future__ import annotations

import math
from functools import partial
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kdschemes.config.losses import feature as config
from kdschemes.core.loss import Endpoint
from kdschemes.errors import UserError
from kdschemes.losses.build import build_loss
from kdschemes.losses.feature.ofd import OFD, ofd, ofd_margin
from kdschemes.losses.stages import match_size
from kdschemes.models import create_model, stages
from tests.losses.cases import Flags, Inputs, MapCase, Parameters, Reference
from tests.losses.formulas import Array, to_smaller
from tests.losses.stubs import (
    BIG,
    SMALL,
    data_spec,
    output,
    value_of,
)


def formula(student: Array, teacher: Array, *, margin: Array) -> float:
    total = 0.0
    student, teacher = to_smaller(student, teacher)
    for index in np.ndindex(*student.shape):
        s, t, m = student[index], teacher[index], margin[index[1]]
        if t > 0 or (m < t <= 0 and s > t):
            total += (s - t) ** 2
        elif t <= m and s > m:
            total += (s - m) ** 2
    return float(total / len(student))


def formula_of_margin(weight: float, bias: float) -> float:
    std = abs(weight)
    if std == 0:
        return min(bias, 0.0)
    mass = 0.5 * math.erfc(bias / std / math.sqrt(2))
    if mass <= 1e-3:
        return -3 * std
    return bias - std * NormalDist().pdf(bias / std) / mass


WEIGHT = torch.linspace(-1.5, 2.0, 6, dtype=torch.float64)
BIAS = torch.linspace(0.8, -0.7, 6, dtype=torch.float64)
MARGIN = ofd_margin(WEIGHT, BIAS)
CASES = {"ofd": MapCase(partial(ofd, margin=MARGIN), partial(formula, margin=MARGIN.numpy()), channel_order_free=False)}
OPTIONS = [config.OFD(scale=3.0)]
FLAGS = Flags(teacher_tokens=False)


def overhaul(x: Inputs, p: Parameters) -> Tensor:
    """The references keep margins in float32."""
    margin = ofd_margin(x["bn_w"], x["bn_b"]).float()
    return ofd(x["s"], x["t"], margin=margin.to(x["s"].dtype))


REFERENCES: dict[str, Reference] = {
    "OFD.mdistiller": overhaul,
    "OFD.original": lambda x, p: 0.001 * overhaul(x, p),
}


def single(x: float) -> Tensor:
    return torch.full((1, 1, 1, 1), x, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize(
    ("student", "teacher", "value", "slope"),
    [
        (2.0, 3.0, 1.0, -2.0),
        (5.0, 3.0, 4.0, 4.0),
        (-4.0, 3.0, 49.0, -14.0),
        (0.5, -0.5, 1.0, 2.0),
        (-0.7, -0.5, 0.0, 0.0),
        (0.5, -9.0, 1.5**2, 3.0),
        (-2.0, -9.0, 0.0, 0.0),
        (-1.0, -9.0, 0.0, 0.0),
    ],
)
def test_value_and_gradient_by_region(student: float, teacher: float, value: float, slope: float) -> None:
    s, t = single(student), single(teacher)
    margin = torch.tensor([-1.0], dtype=torch.float64)
    loss = ofd(s, t, margin=margin)
    found, theirs = torch.autograd.grad(loss, (s, t))
    assert (loss.item(), found.item()) == pytest.approx((value, slope))
    assert theirs.item() == pytest.approx(-slope if teacher > -1 else 0.0)


def test_margins_equal_the_formula_and_a_sample_mean() -> None:
    weight = torch.tensor([1.0, -1.0, 0.5, 2.0, 0.3, 0.1, 1e-3, 1e3], dtype=torch.float64)
    bias = torch.tensor([0.0, 0.3, -1.0, 1.0, 0.9, 0.4, -7.0, 5.0], dtype=torch.float64)
    margins = ofd_margin(weight, bias)
    expected = [formula_of_margin(w, b) for w, b in zip(weight.tolist(), bias.tolist(), strict=True)]
    assert margins.tolist() == pytest.approx(expected, rel=1e-10)
    assert margins[5].item() == pytest.approx(-0.3)
    assert margins[0].item() == pytest.approx(-math.sqrt(2 / math.pi))
    x = weight[3] * torch.randn(400_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + bias[3]
    assert margins[3].item() == pytest.approx(x[x < 0].mean().item(), rel=1e-2)


def test_margins_at_the_edges() -> None:
    weight = torch.tensor([0.0, 0.0, 0.0, 1e-300, 1e-300, 1.0, 1e-30, 1.0], dtype=torch.float64)
    bias = torch.tensor([2.0, -2.0, 0.0, 2.0, -2.0, -1e6, 1e6, 38.0], dtype=torch.float64)
    margins = ofd_margin(weight, bias)
    assert margins.tolist() == pytest.approx([0.0, -2.0, 0.0, 0.0, -2.0, -1e6, 0.0, -3.0], abs=1e-20)
    assert (margins <= 0).all()
    half = ofd_margin(torch.nn.Parameter(torch.tensor([0.5, 0.0]).half()), torch.zeros(2).half())
    assert half.dtype == torch.float32
    assert not half.requires_grad
    assert half.tolist() == pytest.approx([-0.5 * math.sqrt(2 / math.pi), 0.0])


def teacher_network() -> Any:
    network = create_model("resnet20", num_classes=7, channels=3, image_size=8)
    for number, norm in enumerate(network.activated.values()):
        nn.init.uniform_(norm.weight, -1.0, 1.0, generator=torch.Generator().manual_seed(number))
        nn.init.uniform_(norm.bias, -1.0, 1.0, generator=torch.Generator().manual_seed(9 - number))
    return network


def built(options: Any, shapes: Any, network: Any = None) -> Any:
    torch.manual_seed(0)
    return build_loss(options, student=Endpoint(SMALL), teacher=Endpoint(shapes, network), data_spec=data_spec())


def test_the_module_takes_the_margins_of_the_teachers_batch_norms() -> None:
    network = teacher_network()
    shapes = {stage.name: stage.shape for stage in stages(network, 3, 8)}
    loss = built(config.OFD(scale=3.0), shapes, network)
    assert isinstance(loss, OFD)
    assert [name for name, _ in loss.named_buffers() if "margin" in name] == ["margin0", "margin1", "margin2"]
    assert {id(p) for p in loss.parameters()}.isdisjoint({id(p) for p in network.parameters()})
    s, t = output(SMALL, 8), output(shapes, 9)
    expected = torch.zeros(())
    for (a, b), connector, weight in zip(loss.pairs, loss.connectors, (0.25, 0.5, 1.0), strict=True):
        norm = network.activated[b]
        margin = ofd_margin(norm.weight, norm.bias)
        ours, theirs = match_size(s.preactivations[a], t.preactivations[b])
        expected = expected + 3.0 * weight * ofd(connector(ours), theirs, margin=margin)
    value = value_of(loss, s, t)
    torch.testing.assert_close(value, expected)
    value.backward()
    assert all(p.grad is not None and p.grad.any() for p in loss.parameters())
    assert all(x.grad is not None and x.grad.any() for x in s.preactivations.values())


def test_a_teacher_without_such_stages_is_refused() -> None:
    with pytest.raises(UserError, match=r"^ofd .*batch norm"):
        built(config.OFD(), BIG)
    network = teacher_network()
    shapes = {"stem": (4, 8, 8), **{stage.name: stage.shape for stage in stages(network, 3, 8)}}
    with pytest.raises(UserError, match=r"'stem'.*layer1, layer2, layer3"):
        built(config.OFD(stages=["block1:stem"]), shapes, network)
