"""Knowledge review."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from kdschemes.config.losses import feature as config
from kdschemes.errors import UserError
from kdschemes.losses.feature.reviewkd import Fusion, ReviewKD, hcl
from tests.losses import formulas
from tests.losses.cases import Flags, Inputs, MapCase, Parameters, Reference
from tests.losses.formulas import Array, pool
from tests.losses.inputs import normal
from tests.losses.stubs import (
    BIG,
    SMALL,
    N,
    build,
    output,
    value_of,
)


def formula_of_hcl(student: Array, teacher: Array) -> float:
    values, weights = [formulas.hint(student, teacher)], [1.0]
    for level in (4, 2, 1):
        if level < student.shape[2] and level < student.shape[3]:
            values.append(formulas.hint(pool(student, level, level), pool(teacher, level, level)))
            weights.append(weights[-1] / 2)
    return sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)


CASES = {"hcl": MapCase(hcl, formula_of_hcl, resizes=False)}
OPTIONS = [config.ReviewKD(pooled=False, width=3, preactivations="both")]
FLAGS = Flags(single_sample=False)


def fusion(x: Inputs, p: Parameters) -> Tensor:
    module = Fusion(x["s"].shape[1], x["W1"].shape[0], x["t"].shape[1]).to(x["s"].dtype)
    assert module.attention is not None
    convolutions = [m for part in (module.enter, module.leave) for m in part if isinstance(m, nn.Conv2d)]
    targets = [*(m.weight for m in convolutions), module.attention.weight, module.attention.bias]
    with torch.no_grad():
        for target, name in zip(targets, ("W1", "W2", "W3", "b3"), strict=True):
            assert target is not None
            target.copy_(x[name])
    compared, fused = module(x["s"], x["r"], (p["out"], p["out"]))
    return (compared * x["t"]).sum() + fused.square().mean()


REFERENCES: dict[str, Reference] = {
    "ReviewKD_ABF.mdistiller": fusion,
    "ReviewKD_hcl.mdistiller": lambda x, p: hcl(x["s"], x["t"]),
}


@pytest.mark.parametrize(("height", "width", "levels"), [(8, 8, 3), (4, 4, 2), (4, 9, 2), (9, 2, 1), (1, 7, 0)])
def test_hcl_takes_the_levels_that_are_smaller_than_the_map(height: int, width: int, levels: int) -> None:
    offset = torch.full((1, 1, height, width), 3.0)
    assert hcl(offset, 0 * offset).item() == pytest.approx(9.0)
    speckle = torch.zeros(1, 1, height, width)
    speckle[..., 0, 0], total = 1.0, 2 - 0.5**levels
    s = normal(9, 2, 3, height, width)
    assert hcl(s, 0 * s).item() == pytest.approx(formula_of_hcl(s.numpy(), 0 * s.numpy()), rel=1e-12)
    assert hcl(speckle, 0 * speckle).item() >= 1 / (height * width) / total


def test_the_module_fuses_from_the_deepest_level_to_the_shallowest() -> None:
    teacher = {name: shape for name, shape in BIG.items() if name != "stem"}
    loss = build(config.ReviewKD(), SMALL, teacher)
    assert isinstance(loss, ReviewKD)
    assert loss.reads_preactivations
    s, t = output(SMALL, 12), output(teacher, 13)
    ours = [*s.features.values(), s.features["block3"].mean((2, 3), keepdim=True)]
    theirs = [*t.preactivations.values(), t.features["layer3"].mean((2, 3), keepdim=True)]
    expected, fused = torch.zeros(()), None
    for number in (3, 2, 1, 0):
        fusion = loss.fusions[number]
        assert isinstance(fusion, Fusion)
        assert (fusion.attention is None) == (number == 3)
        compared, fused = fusion(ours[number], fused, tuple(theirs[number].shape[2:]))
        assert fused.shape == (N, 8, *theirs[number].shape[2:])
        expected = expected + hcl(compared, theirs[number])
    torch.testing.assert_close(value_of(loss, s, t), expected)


def test_options() -> None:
    s, t = output(SMALL, 14), output(BIG, 15)
    values = {}
    for choice in ("teacher", "both", "neither"):
        loss = build(config.ReviewKD(preactivations=choice, width=5, pooled=False))
        assert isinstance(loss, ReviewKD)
        assert len(loss.fusions) == 3
        assert {f.leave[0].in_channels for f in loss.fusions} == {5}
        values[choice] = value_of(loss, s, t).item()
    assert len(set(values.values())) == 3
    assert config.ReviewKD().schedule == "linear"
    with pytest.raises(UserError, match=r"reviewkd .*block3:layer3"):
        build(config.ReviewKD(stages="last"))


def test_a_fusion_weighs_both_maps_by_position() -> None:
    fusion = Fusion(3, 4, 5).double().eval()
    assert fusion.attention is not None
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64)
    deeper = torch.randn(2, 4, 2, 3, dtype=torch.float64)
    large = deeper.repeat_interleave(2, 2).repeat_interleave(2, 3)
    entered = fusion.enter(x)
    z = torch.einsum("oc,nchw->nohw", fusion.attention.weight[:, :, 0, 0], torch.cat([entered, large], 1))
    z = 1 / (1 + torch.exp(-z - fusion.attention.bias[:, None, None]))
    compared, fused = fusion(x, deeper, (4, 6))
    torch.testing.assert_close(fused, entered * z[:, :1] + large * z[:, 1:])
    torch.testing.assert_close(compared, fusion.leave(fused))
    assert [tuple(y.shape) for y in fusion(x, deeper, (3, 9))] == [(2, 5, 3, 9), (2, 4, 3, 9)]
