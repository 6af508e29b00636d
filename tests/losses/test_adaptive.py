"""Adaptive logit losses: against the loop oracle, their limits and invariances, and at the edges of precision."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from kdschemes.losses.logit_correlation import batch_correlation, class_correlation
from kdschemes.losses.response.ctkd import ctkd, curriculum_strength, learned_temperature, reverse_gradient
from kdschemes.losses.response.kd import kd
from kdschemes.losses.response.mlkd import Masks, confidence_masks, mlkd
from kdschemes.losses.response.srd import srd, srd_features
from kdschemes.losses.response.ttm import ttm
from kdschemes.losses.response.uskd import Rank, uskd, uskd_non_target, uskd_target, uskd_weak
from kdschemes.losses.response.wttm import wttm
from tests.losses import oracles, oracles_adaptive

Two = Callable[[Tensor, Tensor], Tensor]
RANKS: tuple[Rank, Rank] = ("probabilities", "reference")


def logits(seed: int, n: int = 6, c: int = 10, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(n, c, generator=generator, dtype=torch.float64)


def labels(seed: int, n: int = 6, c: int = 10) -> Tensor:
    return torch.randint(0, c, (n,), generator=torch.Generator().manual_seed(seed))


def gradients(loss: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, inputs)


def levels(student: Tensor, teacher: Tensor, masks: Masks = "share") -> Tensor:
    return mlkd(student, teacher, temperatures=[2.0, 4.0], instance=1.0, batch=2.0, classes=3.0, masks=masks)


def at(loss: Callable[..., Tensor], temperature: float) -> Two:
    return lambda z, v: loss(z, v, temperature=temperature)


def self_taught(rank: Rank) -> Two:
    """USKD of the student's logits against weak ones, the labels fixed."""
    return lambda z, w: uskd(z, w, torch.arange(len(z)) % z.shape[1], alpha=1.0, beta=0.1, mu=0.5, rank=rank)


TAUGHT: dict[str, Two] = {
    "ttm": at(ttm, 3.0),
    "wttm": at(wttm, 3.0),
    "ctkd": lambda z, v: ctkd(z, v, temperature=torch.tensor(3.0, dtype=z.dtype)),
    "batch_correlation": at(batch_correlation, 2.0),
    "class_correlation": at(class_correlation, 2.0),
    "mlkd": levels,
    "mlkd_select": lambda z, v: levels(z, v, "select"),
    "mlkd_none": lambda z, v: levels(z, v, "none"),
}
ALL: dict[str, Two] = {
    **TAUGHT,
    "uskd": self_taught("reference"),
    "uskd_probabilities": self_taught("probabilities"),
    "srd": lambda z, v: srd(z, v, student_logits=z, teacher_logits=v, exponent=4.0, temperature=1.0),
}

SIZES = pytest.mark.parametrize(("n", "c"), [(6, 10), (1, 5), (7, 2), (4, 100), (9, 3)])


@SIZES
@pytest.mark.parametrize("scale", [0.1, 3.0, 30.0])
@pytest.mark.parametrize("temperature", [1.0, 4.0, 10.0])
def test_teacher_matching_equals_the_oracle(n: int, c: int, scale: float, temperature: float) -> None:
    z, v = logits(0, n, c, scale), logits(1, n, c, scale)
    for ours, theirs in ((ttm, oracles_adaptive.ttm), (wttm, oracles_adaptive.wttm)):
        truth = theirs(z.numpy(), v.numpy(), temperature=temperature)
        assert ours(z, v, temperature=temperature).item() == pytest.approx(truth, rel=1e-10)


def test_ttm_is_zero_where_the_student_is_the_softened_teacher() -> None:
    v, t = logits(2, scale=4.0), 5.0
    z = (v / t).requires_grad_()
    for loss in (ttm, wttm):
        value = loss(z, v, temperature=t)
        assert value.item() == pytest.approx(0.0, abs=1e-28)
        assert gradients(value, z)[0].abs().max() < 1e-15
    assert ttm(v, v, temperature=t) > 0


def test_ttm_is_kd_with_a_renyi_entropy() -> None:
    """D(p_T || q) = T D(p_T || q_T) - (T - 1) H_{1/T}(q) + (T - 1) H(p_T), the paper's decomposition."""
    z, v, t = logits(3, n=1), logits(4, n=1), 4.0
    q, p_t = torch.softmax(z, 1), torch.softmax(v / t, 1)
    renyi = torch.log((q ** (1 / t)).sum()) / (1 - 1 / t)
    shannon = -(p_t * p_t.log()).sum()
    expected = t * kd(z, v, temperature=t) / t**2 - (t - 1) * renyi + (t - 1) * shannon
    torch.testing.assert_close(ttm(z, v, temperature=t), expected)


def test_wttm_weighs_by_the_power_sum_which_gets_no_gradient() -> None:
    z, v, t = logits(5).requires_grad_(), logits(6, scale=3.0).requires_grad_(), 4.0
    weights = (torch.softmax(v, 1) ** (1 / t)).sum(1).detach()
    rows = torch.stack([ttm(z[i : i + 1], v[i : i + 1], temperature=t) for i in range(6)])
    value = wttm(z, v, temperature=t)
    torch.testing.assert_close(value, (weights * rows).mean())
    for ours, truth in zip(gradients(value, z, v), gradients((weights * rows).mean(), z, v), strict=True):
        torch.testing.assert_close(ours, truth)
    uniform, sure = torch.zeros(1, 10), 1000.0 * torch.eye(10)[:1]
    for teacher, weight in ((uniform, 10 ** (1 - 1 / t)), (sure, 1.0)):
        student = torch.linspace(0, 1, 10)[None]
        ratio = wttm(student, teacher, temperature=t) / ttm(student, teacher, temperature=t)
        assert ratio.item() == pytest.approx(weight, rel=1e-5)


@SIZES
@pytest.mark.parametrize("temperature", [1.0, 4.0, 21.0])
def test_ctkd_is_kd_at_its_temperature(n: int, c: int, temperature: float) -> None:
    z, v = logits(7, n, c, 3.0), logits(8, n, c, 3.0)
    value = ctkd(z, v, temperature=torch.tensor(temperature))
    assert value.item() == pytest.approx(oracles.kd(z.numpy(), v.numpy(), temperature=temperature), rel=1e-10)
    assert value == kd(z, v, temperature=temperature)


def test_the_temperature_is_pushed_where_the_loss_is_larger() -> None:
    z, v = logits(9, scale=5.0), logits(10, scale=5.0)
    theta = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    plain = 1.0 + 20.0 * torch.sigmoid(theta)
    (slope,) = gradients(ctkd(z, v, temperature=plain), theta)
    for strength in (0.0, 0.3, 1.0):
        t = learned_temperature(theta, start=1.0, span=20.0, strength=strength)
        assert t.item() == plain.item()
        (reversed_slope,) = gradients(ctkd(z, v, temperature=t), theta)
        torch.testing.assert_close(reversed_slope, -strength * slope)
    step = theta - 1e-3 * reversed_slope
    raised = ctkd(z, v, temperature=1.0 + 20.0 * torch.sigmoid(step))
    assert raised > ctkd(z, v, temperature=plain)


def test_temperature_gradient() -> None:
    z, v, t = logits(11, 3, 4), logits(12, 3, 4), torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: ctkd(z, v, temperature=x), t)
    assert torch.autograd.gradcheck(lambda x: ctkd(100 * z, v, temperature=x), t)


@pytest.mark.parametrize(
    ("epoch", "strength"), [(0.0, 1), (0.99, 1), (1.0, 2), (4.5, 5), (9.0, 10), (9.99, 10), (10.0, 10), (200.0, 10)]
)
def test_curriculum_counts_epochs_from_one(epoch: float, strength: int) -> None:
    expected = 0.5 * (1 - math.cos(math.pi * strength / 10))
    assert curriculum_strength(epoch, epochs=10.0) == pytest.approx(expected)
    assert curriculum_strength(200.0, epochs=10.0) == 1.0


def test_reversal_keeps_values_and_shape() -> None:
    x = torch.randn(2, 3, requires_grad=True)
    y = reverse_gradient(x, strength=0.25)
    assert torch.equal(y, x)
    (g,) = torch.autograd.grad(y, x, torch.ones(2, 3))
    assert torch.equal(g, torch.full((2, 3), -0.25))


@SIZES
@pytest.mark.parametrize("scale", [0.1, 3.0, 30.0])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_correlations_equal_the_oracle(n: int, c: int, scale: float, temperature: float) -> None:
    z, v = logits(13, n, c, scale), logits(14, n, c, scale)
    arrays = z.numpy(), v.numpy()
    for ours, theirs, size in (
        (batch_correlation, oracles_adaptive.batch_correlation, n),
        (class_correlation, oracles_adaptive.class_correlation, c),
    ):
        value = ours(z, v, temperature=temperature)
        assert value.item() == pytest.approx(theirs(*arrays, temperature=temperature), rel=1e-10, abs=1e-25)
        keep = torch.arange(size) % 2 == 0
        kept = ours(z, v, temperature=temperature, keep=keep)
        truth = theirs(*arrays, temperature=temperature, keep=keep.numpy())
        assert kept.item() == pytest.approx(truth, rel=1e-10, abs=1e-25)
        rest = ours(z, v, temperature=temperature, keep=~keep)
        torch.testing.assert_close(kept + rest, value)


@pytest.mark.parametrize("loss", [batch_correlation, class_correlation])
def test_correlations_of_close_outputs_lose_no_digits(loss: Callable[..., Tensor]) -> None:
    """The difference of two float32 Gram matrices would be off by a percent and more."""
    v = logits(15, 8, 10).float()
    z = v + 1e-4 * logits(16, 8, 10).float()
    truth = loss(z.double(), v.double(), temperature=4.0).item()
    assert loss(z, v, temperature=4.0).item() == pytest.approx(truth, rel=1e-2)


@SIZES
@pytest.mark.parametrize("masks", ["share", "select", "none"])
def test_mlkd_equals_the_oracle(n: int, c: int, masks: Masks) -> None:
    z, v = logits(17, n, c, 3.0), logits(18, n, c, 3.0)
    truth = oracles_adaptive.mlkd(z.numpy(), v.numpy(), temperatures=[2.0, 4.0], levels=(1.0, 2.0, 3.0), masks=masks)
    assert levels(z, v, masks).item() == pytest.approx(truth, rel=1e-10)


def test_mlkd_levels_are_the_losses_of_their_own() -> None:
    z, v = logits(19), logits(20)
    only = {"instance": 0.0, "batch": 0.0, "classes": 0.0}
    for name, loss in (("instance", kd), ("batch", batch_correlation), ("classes", class_correlation)):
        value = mlkd(z, v, temperatures=[3.0], **{**only, name: 1.0}, masks="none")
        torch.testing.assert_close(value, loss(z, v, temperature=3.0))


@pytest.mark.parametrize("n", [1, 2, 5, 6])
def test_masks_keep_the_less_confident_half(n: int) -> None:
    teacher = logits(21, n, 7, 4.0)
    p = torch.softmax(teacher, 1)
    unsure, rare = confidence_masks(teacher)
    assert unsure.sum() == (n + 1) // 2
    assert rare.sum() == 4
    assert p.amax(1)[unsure].max() <= p.amax(1)[~unsure].min() if n > 1 else unsure.all()
    assert p.sum(0)[rare].max() < p.sum(0)[~rare].min()
    assert all(m.all() for m in confidence_masks(torch.zeros(n, 7)))


@pytest.mark.parametrize("exponent", [1.0, 2.0, 4.0])
@pytest.mark.parametrize(("n", "d"), [(8, 16), (1, 3), (5, 1)])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 50.0])
def test_srd_equals_the_oracle(n: int, d: int, exponent: float, scale: float) -> None:
    s, t = logits(22, n, d, scale), logits(23, n, d, scale)
    z, v = logits(24, n, 5, scale), logits(25, n, 5, scale)
    truth = oracles_adaptive.srd_features(s.numpy(), t.numpy(), exponent=exponent)
    assert srd_features(s, t, exponent=exponent).item() == pytest.approx(truth, rel=1e-10)
    value = srd(s, t, student_logits=z, teacher_logits=v, exponent=exponent, temperature=2.0)
    assert value.item() == pytest.approx(truth + oracles.kd(z.numpy(), v.numpy(), temperature=2.0) / 4, rel=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("exponent", [1.0, 4.0])
@pytest.mark.parametrize("gap", [0.0, 1e-30, 1e-12, 1e-6, 1e4, 1e30])
def test_srd_is_finite_whatever_the_difference(gap: float, exponent: float, dtype: torch.dtype) -> None:
    s, t = torch.full((3, 4), gap, dtype=dtype, requires_grad=True), torch.zeros(3, 4, dtype=dtype)
    value = srd_features(s, t, exponent=exponent)
    (g,) = gradients(value, s)
    assert value.isfinite()
    assert g.isfinite().all()
    if gap == 0.0:
        assert value.item() == pytest.approx(2 * math.log(1e-24))
        assert g.abs().max() == 0
    if gap >= 1e4:
        assert value.item() == pytest.approx(2 * math.log(12) + 2 * exponent * math.log(s[0, 0].item()), rel=1e-3)
        assert (gap * g).sum().item() == pytest.approx(2 * exponent, rel=2e-2)


def test_srd_scales_as_its_exponent() -> None:
    s, t = logits(26), logits(27)
    shift = srd_features(10 * s, 10 * t, exponent=4.0) - srd_features(s, t, exponent=4.0)
    assert shift.item() == pytest.approx(8 * math.log(10))
    torch.testing.assert_close(srd_features(s, t, exponent=4.0), srd_features(t, s, exponent=4.0))


@SIZES
@pytest.mark.parametrize("rank", ["reference", "probabilities"])
@pytest.mark.parametrize("scale", [0.1, 3.0, 10.0])
def test_uskd_equals_the_oracle(n: int, c: int, rank: Rank, scale: float) -> None:
    z, w, y = logits(28, n, c, scale), logits(29, n, c, scale), labels(30, n, c)
    target = oracles_adaptive.uskd_target(z.numpy(), y.tolist())
    weak = oracles_adaptive.uskd_weak(w.numpy(), y.tolist(), smoothing=0.1)
    non_target = oracles_adaptive.uskd_non_target(z.numpy(), w.numpy(), y.tolist(), rank=rank)
    assert uskd_target(z, y).item() == pytest.approx(target, rel=1e-10)
    assert uskd_weak(w, y).item() == pytest.approx(weak, rel=1e-10)
    assert uskd_non_target(z, w, y, rank=rank).item() == pytest.approx(non_target, rel=1e-10, abs=1e-15)
    value = uskd(z, w, y, alpha=0.3, beta=0.2, mu=0.7, rank=rank)
    assert value.item() == pytest.approx(0.3 * target + 0.2 * non_target + 0.7 * weak, rel=1e-10)


def test_uskd_stops_the_gradients_of_its_labels() -> None:
    z, w, y = logits(31).requires_grad_(), logits(32).requires_grad_(), labels(33)
    p = torch.softmax(z, 1).gather(1, y[:, None]).squeeze(1)
    weights = (p**2 + 1 - (p**2).mean()).detach()
    (ours,) = gradients(uskd_target(z, y), z)
    (truth,) = gradients(-(weights * p.log()).mean(), z)
    torch.testing.assert_close(ours, truth)
    (g,) = torch.autograd.grad(uskd_non_target(z, w, y, rank="reference"), (z,))
    assert g.gather(1, y[:, None]).abs().max() == 0, "the label's own logit is no part of the others' distribution"
    torch.testing.assert_close(g.sum(1), torch.zeros(6, dtype=torch.float64))
    with pytest.raises(RuntimeError, match=r"not have been used"):
        torch.autograd.grad(uskd_non_target(z, w, y, rank="reference"), (w,))


def test_uskd_with_two_classes_has_no_other_class_to_rank() -> None:
    z, w, y = logits(34, c=2).requires_grad_(), logits(35, c=2), labels(36, c=2)
    value = uskd_non_target(z, w, y, rank="probabilities")
    assert value.item() == 0.0
    assert gradients(value, z)[0].abs().max() == 0.0


@pytest.mark.parametrize(("rank", "ranks"), [("probabilities", [3, 4, 2]), ("reference", [2, 4, 3])])
def test_uskd_ranks_differ(rank: Rank, ranks: list[int]) -> None:
    """By probabilities the weak head prevails here, by log-probabilities the student; the label has rank 1."""
    z = torch.tensor([[9.0, 0.6, 0.0, 0.0]], dtype=torch.float64)
    w = torch.tensor([[0.1, 0.2, 0.3, 0.4]], dtype=torch.float64).log()
    soft = 1.0 / torch.tensor(ranks)
    expected = -(soft / soft.sum() * torch.log_softmax(z[0, 1:], 0)).sum()
    assert uskd_non_target(z, w, torch.tensor([0]), rank=rank).item() == pytest.approx(expected.item(), rel=1e-7)


@pytest.mark.parametrize("name", [*TAUGHT, "srd"])
def test_gradients_of_both_sides(name: str) -> None:
    z, v = logits(37, 4, 5).requires_grad_(), logits(38, 4, 5).requires_grad_()
    if name == "wttm":
        assert torch.autograd.gradcheck(lambda a: ALL[name](a, v), z)
    else:
        assert torch.autograd.gradcheck(ALL[name], (z, v))


@pytest.mark.parametrize("rank", ["reference", "probabilities"])
def test_gradients_of_uskd(rank: Rank) -> None:
    z, w, y = logits(37, 4, 5).requires_grad_(), logits(38, 4, 5), torch.arange(4)
    assert torch.autograd.gradcheck(lambda a: uskd_non_target(a, w, y, rank=rank), z)
    assert torch.autograd.gradcheck(lambda b: uskd_weak(b, y), w.clone().requires_grad_())
    (whole,) = gradients(uskd(z, w, y, alpha=1.0, beta=0.1, mu=0.5, rank=rank), z)
    (parts,) = gradients(uskd_target(z, y) + 0.1 * uskd_non_target(z, w, y, rank=rank), z)
    torch.testing.assert_close(whole, parts)


@pytest.mark.parametrize("name", TAUGHT)
def test_invariances(name: str) -> None:
    loss = TAUGHT[name]
    z, v, shift = logits(39), logits(40, scale=2.0), logits(41, c=1)
    samples, classes = torch.randperm(6), torch.randperm(10)
    value = loss(z, v)
    assert value > 0
    torch.testing.assert_close(loss(z + shift, v - shift), value)
    torch.testing.assert_close(loss(z[samples], v[samples]), value)
    torch.testing.assert_close(loss(z[:, classes], v[:, classes]), value)
    if "ttm" not in name:
        equal = v.clone().requires_grad_()
        at_equality = loss(equal, v)
        assert at_equality.item() == pytest.approx(0.0, abs=1e-25)
        assert gradients(at_equality, equal)[0].abs().max() < 1e-14


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [0.3, 1.0, 10.0])
def test_half_precision(name: str, dtype: torch.dtype, scale: float) -> None:
    z = logits(42, 8, 20, scale).to(dtype).requires_grad_()
    v = logits(43, 8, 20, scale).to(dtype)
    exact = z.detach().double().requires_grad_()
    truth, value = ALL[name](exact, v.double()), ALL[name](z, v)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(truth.item(), rel=1e-2)
    (g,), (expected,) = gradients(value, z), gradients(truth, exact)
    assert g.dtype == dtype
    if expected.norm() > 1e-4:
        assert g.double().norm().item() == pytest.approx(expected.norm().item(), rel=1e-2)
    plain = ALL[name](z.detach().float(), v.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert ALL[name](z.detach().float(), v.float()).item() == plain.item()


EXTREMES = [
    torch.tensor([[0.0, 104.0, 0.0], [1000.0, 0.0, 0.0], [0.0, 0.0, 0.0], [-1e4, 1e4, 0.0]]),
    torch.tensor([[0.0, 1000.0, -1000.0], [0.0, 1e4, 0.0], [5.0, 5.0, 5.0], [1e4, -1e4, 0.0]]),
    torch.zeros(4, 3),
]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("pair", [(0, 1), (1, 0), (0, 0), (0, 2), (2, 1), (2, 2)])
def test_extremes_are_finite(name: str, dtype: torch.dtype, pair: tuple[int, int]) -> None:
    z, v = (EXTREMES[i].to(dtype).clone().requires_grad_() for i in pair)
    value = ALL[name](z, v)
    assert value.isfinite()
    for g in torch.autograd.grad(value, (z, v)):
        assert g.isfinite().all()
    truth = ALL[name](z.detach().double(), v.detach().double())
    assert value.item() == pytest.approx(truth.item(), rel=1e-4, abs=1e-12)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("c", [2, 7])
def test_batch_of_one(name: str, c: int) -> None:
    z, v = logits(44, 1, c).requires_grad_(), logits(45, 1, c)
    value = ALL[name](z, v)
    assert value.isfinite()
    assert gradients(value, z)[0].isfinite().all()


@pytest.mark.parametrize("name", ALL)
def test_layout_does_not_matter(name: str) -> None:
    z, v = logits(46, 6, 8), logits(47, 6, 8)
    value = ALL[name](z, v)
    torch.testing.assert_close(ALL[name](z.t().contiguous().t(), v.repeat(1, 2)[:, 8:]), value)


def test_per_sample_losses_are_means_over_the_batch() -> None:
    z, v = logits(48, 8), logits(49, 8)
    for name in ("ttm", "wttm", "ctkd"):
        rows = [TAUGHT[name](z[i : i + 1], v[i : i + 1]) for i in range(8)]
        torch.testing.assert_close(TAUGHT[name](z, v), torch.stack(rows).mean())


def test_oracle_masks_by_the_same_median() -> None:
    assert np.percentile(np.array([1.0, 2.0, 4.0, 8.0]), 50) == 3.0 == torch.quantile(torch.tensor([1.0, 2, 4, 8]), 0.5)
