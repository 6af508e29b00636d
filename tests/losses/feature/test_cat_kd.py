"""Class attention transfer."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kdschemes.config.losses import feature as config
from kdschemes.core.loss import Endpoint, Loss
from kdschemes.core.types import DataSpec
from kdschemes.errors import UserError
from kdschemes.losses.build import build_loss
from kdschemes.losses.feature.cat_kd import cat_kd, class_activation
from tests.losses.cases import Flags, MapCase, Reference
from tests.losses.formulas import Array, pool
from tests.losses.inputs import gradients, normal
from tests.losses.stubs import (
    BIG,
    SMALL,
    StubNetwork,
    output,
    side,
    value_of,
)


def formula_of_maps(features: Array, classifier: Array) -> Array:
    n, _, height, width = features.shape
    out = np.zeros((n, len(classifier), height, width))
    for i, c, y, x in np.ndindex(*out.shape):
        out[i, c, y, x] = math.fsum(classifier[c] * features[i, :, y, x])
    return out


def formula(student: Array, teacher: Array, *, resolution: int, normalize: bool) -> float:
    maps = []
    for pooled in (pool(x, resolution, resolution) for x in (student, teacher)):
        for i, c in np.ndindex(*pooled.shape[:2]):
            length = math.sqrt(math.fsum(pooled[i, c].ravel() ** 2))
            if normalize and length:
                pooled[i, c] /= length
        maps.append(pooled)
    return math.fsum(((maps[0] - maps[1]) ** 2).ravel()) / maps[0].size


CASES = {
    "cat_kd": MapCase(cat_kd, partial(formula, resolution=2, normalize=False)),
    "cat_kd, normalized": MapCase(
        partial(cat_kd, normalize=True), partial(formula, resolution=2, normalize=True), scale_free=True
    ),
}
OPTIONS = [config.CATKD(normalize=True)]
FLAGS = Flags(student_classifier=True)
REFERENCES: dict[str, Reference] = {
    "CAT_KD": lambda x, p: cat_kd(x["s"], x["t"], resolution=p["res"], normalize=p["norm"])
}


def made(options: Any, student: Endpoint | None = None, teacher: Endpoint | None = None) -> Loss[Any]:
    torch.manual_seed(0)
    return build_loss(
        options, student=student or side(SMALL), teacher=teacher or side(BIG, frozen=True), data_spec=DataSpec(7, 3, 8)
    )


@pytest.mark.parametrize(
    ("student", "teacher"), [((3, 5, 8, 8), (3, 5, 8, 8)), ((2, 4, 6, 3), (2, 4, 5, 7)), ((1, 3, 2, 2), (1, 3, 1, 4))]
)
@pytest.mark.parametrize("resolution", [1, 2, 3])
@pytest.mark.parametrize("normalize", [True, False])
def test_value_equals_the_formula(
    student: tuple[int, ...], teacher: tuple[int, ...], resolution: int, normalize: bool
) -> None:
    s, t = normal(0, *student, scale=3.0), normal(1, *teacher)
    value = cat_kd(s, t, resolution=resolution, normalize=normalize)
    truth = formula(s.numpy(), t.numpy(), resolution=resolution, normalize=normalize)
    assert value.item() == pytest.approx(truth, rel=1e-10, abs=1e-25)


def test_class_activation_maps_average_to_the_logits() -> None:
    f, layer = normal(2, 3, 6, 4, 5), nn.Linear(6, 4).double()
    maps = class_activation(f, layer.weight)
    torch.testing.assert_close(
        maps.detach(), torch.from_numpy(formula_of_maps(f.numpy(), layer.weight.detach().numpy()))
    )
    torch.testing.assert_close(maps.mean((2, 3)) + layer.bias, layer(f.mean((2, 3))))
    torch.testing.assert_close(class_activation(f.to(memory_format=torch.channels_last), layer.weight), maps)


def test_properties() -> None:
    s, t = normal(9, 4, 5, 6, 4).requires_grad_(), normal(10, 4, 5, 3, 2).requires_grad_()
    order, classes = torch.tensor([2, 0, 3, 1]), torch.tensor([4, 2, 0, 1, 3])
    for normalize in (True, False):
        value = cat_kd(s, t, normalize=normalize)
        torch.testing.assert_close(cat_kd(s[order], t[order], normalize=normalize), value)
        torch.testing.assert_close(cat_kd(s[:, classes], t[:, classes], normalize=normalize), value)
        rows = [cat_kd(s[i : i + 1], t[i : i + 1], normalize=normalize) for i in range(4)]
        torch.testing.assert_close(torch.stack(rows).mean(), value)
        equal = cat_kd(t.clone(), t, normalize=normalize)
        assert equal == 0
        assert gradients(equal, t)[0].abs().max() == 0
        assert torch.autograd.gradcheck(lambda a, b, n=normalize: cat_kd(a, b, normalize=n), (s, t))
    torch.testing.assert_close(cat_kd(1e3 * s, 1e-3 * t, normalize=True), cat_kd(s, t, normalize=True))
    weights = normal(11, 3, 5).requires_grad_()
    assert torch.autograd.gradcheck(class_activation, (s, weights))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_of_the_maps_and_the_loss(dtype: torch.dtype) -> None:
    def values(s: Tensor, t: Tensor, w: Tensor) -> list[Tensor]:
        maps = class_activation(s, w), class_activation(t, w)
        return [cat_kd(*maps), cat_kd(*maps, normalize=True)]

    half = [x.to(dtype) for x in (normal(14, 4, 32, 8, 8).relu(), normal(15, 4, 32, 4, 4).relu(), normal(16, 10, 32))]
    truth = [v.item() for v in values(*(x.double() for x in half))]
    plain = values(*half)
    with torch.autocast("cpu", dtype=dtype):
        inside = values(*half)
    for found in (plain, inside):
        assert all(v.dtype == torch.float32 for v in found)
        assert [v.item() for v in found] == pytest.approx(truth, rel=1e-2)


def test_zeros_and_extremes_are_finite() -> None:
    some, zeros = normal(17, 2, 3, 4, 4).float(), torch.zeros(2, 3, 4, 4)
    for ours in (zeros, some * 1e15, some * 1e-30, zeros + 1000.0):
        for theirs in (zeros, some):
            s, t = ours.clone().requires_grad_(), theirs.clone().requires_grad_()
            for value in (cat_kd(s, t, normalize=True), cat_kd(s, t)):
                assert value.isfinite()
                assert all(g.isfinite().all() for g in gradients(value, s, t))
    s = zeros.clone().requires_grad_()
    assert gradients(cat_kd(s, some, normalize=True), s)[0].abs().max() == 0


def test_the_modules_value_is_that_of_the_function() -> None:
    ours, theirs = side(SMALL), side(BIG, frozen=True)
    s, t = output(SMALL, 1), output(BIG, 51)
    f, g = s.features["block3"], t.features["layer3"]
    assert isinstance(ours.network, StubNetwork)
    assert isinstance(theirs.network, StubNetwork)
    assert ours.network.fc is not None
    assert theirs.network.fc is not None
    expected = cat_kd(class_activation(f, ours.network.fc.weight), class_activation(g, theirs.network.fc.weight))
    assert value_of(made(config.CATKD(), ours, theirs), s, t) == expected


def test_weights_are_read_from_the_live_classifier() -> None:
    ours, theirs = side(SMALL), side(BIG, frozen=True)
    loss = made(config.CATKD(), ours, theirs)
    s, t = output(SMALL, 2), output(BIG, 52)
    before = value_of(loss, s, t)
    for network in (ours.network, theirs.network):
        assert network is not None
        with torch.no_grad():
            network.to(torch.bfloat16)
            for p in network.parameters():
                p.mul_(2.0)
    assert value_of(loss, s, t).item() == pytest.approx(4.0 * before.item(), rel=1e-2)


@pytest.mark.parametrize(
    ("options", "student", "teacher", "message"),
    [
        (config.CATKD(), side(SMALL, classified=False), None, r"cat_kd .*the student's linear classifier"),
        (config.CATKD(), None, side(BIG, classified=False), r"cat_kd .*the teacher's linear classifier"),
        (config.CATKD(normalize=True), side({"v": (8, 1, 1)}), None, r"normalize=true.*'v' is 1x1"),
        (config.CATKD(normalize=True, resolution=1), None, None, r"resolution=1.*normalize=false"),
    ],
)
def test_undefined_losses_are_refused_when_built(options: Any, student: Any, teacher: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        made(options, student, teacher)
    assert "\n" not in str(error.value)
