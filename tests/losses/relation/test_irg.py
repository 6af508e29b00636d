"""Instance relationship graph."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kdschemes.config.losses import relation as config
from kdschemes.errors import UserError
from kdschemes.losses.relation.irg import irg_edges, irg_transformation
from tests.losses.cases import RowCase
from tests.losses.formulas import Array, length
from tests.losses.inputs import normal
from tests.losses.stubs import BIG, SMALL, batch, build, output, same, value_of


def relative_to_largest(distances: Array) -> Array:
    return distances / distances.max() if distances.max() else distances


def average_channels(features: Array, channels: int) -> Array:
    """Group i averages channels floor(i C / c) to ceil((i + 1) C / c)."""
    every = features.shape[1]
    groups = [slice(i * every // channels, -(-(i + 1) * every // channels)) for i in range(channels)]
    return np.stack([features[:, group].mean(axis=1) for group in groups], axis=1)


def formula_of_edges(features: Array) -> Array:
    n = len(features)
    return relative_to_largest(np.array([[length(features[i] - features[j]) ** 2 for j in range(n)] for i in range(n)]))


def formula_of_transformation(a: Array, b: Array) -> Array:
    """Of maps that already have the same height and width."""
    channels = min(a.shape[1], b.shape[1])
    gap = average_channels(a, channels) - average_channels(b, channels)
    return relative_to_largest(np.array([length(sample) ** 2 for sample in gap]))


def formula(
    logits: tuple[Array, Array],
    student: list[Array],
    teacher: list[Array],
    *,
    vertices: float = 0.1,
    edges: float = 5.0,
    transformations: float = 5.0,
) -> float:
    """The three parts of lists of maps of one size by stage: means of squared differences."""

    def graphs(maps: list[Array]) -> list[Array]:
        return [formula_of_edges(f) for f in [*maps, maps[-1].mean(axis=(2, 3))]]

    def steps(maps: list[Array]) -> list[Array]:
        return [formula_of_transformation(a, b) for a, b in pairwise(maps)]

    def gap(ours: list[Array], theirs: list[Array]) -> float:
        return float(np.mean([np.mean((a - b) ** 2) for a, b in zip(ours, theirs, strict=True)]))

    return (
        vertices * gap([logits[0]], [logits[1]])
        + edges * gap(graphs(student), graphs(teacher))
        + transformations * gap(steps(student), steps(teacher))
    )


def edges(student: Tensor, teacher: Tensor) -> Tensor:
    return (irg_edges(student) - irg_edges(teacher)).square().mean()


CASES = {
    "irg's edges": RowCase(
        edges, lambda s, t: ((formula_of_edges(s) - formula_of_edges(t)) ** 2).mean(), scale_free=True, rel=3e-2
    )
}
OPTIONS = [config.IRG(vertices=0.0, edges=2.0), config.IRG(edges=0.0, transformations=3.0)]


@pytest.mark.parametrize("channels", [(4, 4), (4, 8), (6, 3), (3, 7)])
def test_transformation_equals_the_formula(channels: tuple[int, int]) -> None:
    a, b = normal(31, 5, channels[0], 6, 4), normal(32, 5, channels[1], 6, 4)
    truth = torch.from_numpy(formula_of_transformation(a.numpy(), b.numpy()))
    torch.testing.assert_close(irg_transformation(a, b), truth)
    torch.testing.assert_close(irg_transformation(1e20 * a.float(), 1e20 * b.float()), truth.float())
    larger = a.repeat_interleave(2, dim=2).repeat_interleave(3, dim=3)
    torch.testing.assert_close(irg_transformation(larger, b), truth)
    torch.testing.assert_close(irg_transformation(a.to(memory_format=torch.channels_last), b), truth)
    assert torch.autograd.gradcheck(irg_transformation, (a[:3].requires_grad_(), b[:3].requires_grad_()))


def test_equal_samples_and_of_one() -> None:
    same = normal(33, 1, 4, 3, 3).expand(5, -1, -1, -1).clone().requires_grad_()
    (gradient,) = torch.autograd.grad(irg_edges(same).sum() + irg_transformation(same, same).sum(), same)
    assert (irg_edges(same) == 0).all()
    assert (irg_transformation(same, same) == 0).all()
    assert (gradient == 0).all()
    assert irg_edges(same[:1]).tolist() == [[0.0]]
    assert irg_transformation(same[:1], same[:1] + 1.0).tolist() == [1.0]


def test_edges_of_offset_features_lose_no_digits() -> None:
    x = normal(34, 16, 64)
    torch.testing.assert_close(irg_edges((x + 1000.0).float()).double(), irg_edges(x), rtol=1e-3, atol=1e-4)
    offset = (x + 1000.0).float()
    torch.testing.assert_close(irg_edges(offset).double(), irg_edges(offset.double()), rtol=1e-5, atol=1e-6)


def test_edges_of_any_layout() -> None:
    s = normal(23, 4, 6, 5, 3)
    torch.testing.assert_close(irg_edges(s.to(memory_format=torch.channels_last)), irg_edges(s.flatten(1)))


def test_the_modules_value_equals_the_formula() -> None:
    shapes = {"s1": (4, 3, 4), "s2": (8, 3, 4), "s3": (6, 3, 4)}, {"t1": (5, 2, 2), "t2": (10, 2, 2), "t3": (12, 2, 2)}
    s, t = output(shapes[0], 2), output(shapes[1], 3)
    arrays = [[f.detach().double().numpy() for f in o.features.values()] for o in (s, t)]
    logits = s.logits.detach().double().numpy(), t.logits.detach().double().numpy()
    for weights in ({}, {"vertices": 0.0, "edges": 2.0}, {"edges": 0.0, "transformations": 3.0}):
        value = build(config.IRG(**weights), *shapes)(s, t, batch(), same)
        assert value.item() == pytest.approx(formula(logits, *arrays, **weights), rel=1e-5)
    last_two = build(config.IRG(stages=["s2:t2", "s3:t3"]), *shapes)(s, t, batch(), same)
    assert last_two.item() == pytest.approx(formula(logits, arrays[0][1:], arrays[1][1:]), rel=1e-5)
    vertices = build(config.IRG(vertices=1.0, edges=0.0, transformations=0.0), {"v": (8,)}, {"w": (3,)})
    s, t = output({"v": (8,)}, 4), output({"w": (3,)}, 5)
    torch.testing.assert_close(vertices(s, t, batch(), same), (s.logits - t.logits).square().mean())


def test_a_single_sample_has_only_a_vertex() -> None:
    loss, s, t = build(config.IRG(vertices=0.0)), output(SMALL, 10, n=1), output(BIG, 11, n=1)
    value = value_of(loss, s, t)
    value.backward()
    assert value == 0
    for x in (*s.features.values(), *t.features.values(), *loss.parameters()):
        assert x.grad is None or not x.grad.any()


@pytest.mark.parametrize(
    ("options", "student", "teacher", "message"),
    [
        (config.IRG(vertices=0.0, edges=0.0, transformations=0.0), SMALL, BIG, r"irg .*=0"),
        (config.IRG(stages="last"), SMALL, BIG, r"irg .*block3:layer3.*transformations=0"),
        (config.IRG(), {"u": (8,), "v": (8,)}, BIG, r"irg .*'u' is a vector"),
    ],
)
def test_undefined_losses_are_refused_when_built(options: Any, student: Any, teacher: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        build(options, student, teacher)
    assert "\n" not in str(error.value)
