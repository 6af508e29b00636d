"""Losses between channels and of predicted uncertainty: against loop oracles, and where references fail."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdschemes.config.losses import feature as config
from kdschemes.core.loss import Loss
from kdschemes.core.types import Batch, DataSpec, Output
from kdschemes.errors import UserError
from kdschemes.losses.build import build_loss
from kdschemes.losses.feature.cwd import cwd
from kdschemes.losses.feature.ickd import channel_correlation, ickd
from kdschemes.losses.feature.pad import pad
from kdschemes.losses.feature.pkd import pkd
from tests.losses import oracles_channels as oracle
from tests.losses.stub_networks import side

MAPS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cwd": partial(cwd, temperature=4.0),
    "cwd at 1": partial(cwd, temperature=1.0),
    "pkd": pkd,
    "ickd": ickd,
}
SHAPES = [((3, 5, 4, 4), (3, 5, 4, 4)), ((2, 3, 8, 6), (2, 3, 4, 3)), ((1, 4, 3, 7), (1, 4, 6, 2))]
SMALL = {"block1": (4, 8, 8), "block2": (6, 4, 4), "block3": (8, 4, 4)}
BIG = {"stem": (4, 16, 16), "layer1": (8, 8, 8), "layer2": (6, 4, 4), "layer3": (12, 2, 4)}


def random(seed: int, *shape: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradients(value: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(value, inputs)


@pytest.mark.parametrize(("student", "teacher"), SHAPES)
@pytest.mark.parametrize("scale", [0.1, 1.0, 20.0])
def test_values_equal_the_oracles(student: tuple[int, ...], teacher: tuple[int, ...], scale: float) -> None:
    s, t = random(0, *student, scale=scale), random(1, *teacher, scale=scale)
    arrays = s.numpy(), t.numpy()
    for temperature in (1.0, 4.0, 50.0):
        truth = oracle.cwd(*arrays, temperature=temperature)
        assert cwd(s, t, temperature=temperature).item() == pytest.approx(truth, rel=1e-10)
    assert pkd(s, t).item() == pytest.approx(oracle.pkd(*arrays), rel=1e-10)
    assert pkd(s, t, eps=0.3).item() == pytest.approx(oracle.pkd(*arrays, eps=0.3), rel=1e-10)
    assert ickd(s, t).item() == pytest.approx(oracle.ickd(*arrays), rel=1e-10)
    embeddings = random(2, 4, 6, scale=scale), random(3, 4, 6, scale=scale), random(4, 4, 6)
    value = pad(*embeddings[:2], log_variance=embeddings[2])
    assert value.item() == pytest.approx(oracle.pad(*(e.numpy() for e in embeddings)), rel=1e-10)


def test_pkd_is_nearly_one_minus_the_correlation() -> None:
    s, t = random(5, 4, 3, 5, 5), random(6, 4, 3, 5, 5)
    m = s.numel() / 3
    truth = (1.0 - oracle.pearson(s.numpy(), t.numpy())) * (m - 1) / m
    assert pkd(s, t).item() == pytest.approx(truth, rel=1e-5)
    assert pkd(-2.0 * t, t).item() == pytest.approx(2.0 * (m - 1) / m, rel=1e-5)


@pytest.mark.parametrize("name", MAPS)
def test_properties(name: str) -> None:
    loss = MAPS[name]
    s, t = random(7, 4, 5, 6, 4).requires_grad_(), random(8, 4, 5, 6, 4).requires_grad_()
    value = loss(s, t)
    assert value > 0
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(loss(s[order], t[order]), value)
    channels = torch.tensor([4, 2, 0, 1, 3])
    torch.testing.assert_close(loss(s[:, channels], t[:, channels]), value)
    torch.testing.assert_close(loss(s.flip(2, 3), t.flip(2, 3)), value)
    torch.testing.assert_close(loss(s.transpose(2, 3), t.transpose(2, 3)), value)
    last = torch.channels_last
    torch.testing.assert_close(loss(s.to(memory_format=last), t.to(memory_format=last)), value)
    equal = loss(t.clone(), t)
    assert equal.item() == 0.0
    assert all(g.abs().max() == 0 for g in gradients(equal, t))
    a, b = random(9, 2, 3, 2, 3).requires_grad_(), random(10, 2, 3, 3, 2).requires_grad_()
    assert torch.autograd.gradcheck(loss, (a, b))


def test_invariances() -> None:
    s, t = random(11, 3, 4, 5, 5), random(12, 3, 4, 5, 5)
    by_channel = random(13, 1, 4, 1, 1)
    torch.testing.assert_close(cwd(s + random(14, 3, 4, 1, 1), t, temperature=2.0), cwd(s, t, temperature=2.0))
    torch.testing.assert_close(cwd(3 * s, 3 * t, temperature=6.0), 9 * cwd(s, t, temperature=2.0))
    torch.testing.assert_close(pkd(s * by_channel.abs() + by_channel, t), pkd(s, t), rtol=1e-4, atol=1e-8)
    torch.testing.assert_close(ickd(s * random(15, 3, 1, 1, 1), t), ickd(s, t))
    rotation = torch.linalg.qr(random(16, 25, 25))[0]
    turned = (s.flatten(2) @ rotation).unflatten(2, (5, 5))
    torch.testing.assert_close(ickd(turned, t), ickd(s, t))
    torch.testing.assert_close(channel_correlation(s).norm(dim=2), torch.ones(3, 4, dtype=torch.float64))


@pytest.mark.parametrize("name", [name for name in MAPS if name != "pkd"])
def test_the_batch_is_averaged(name: str) -> None:
    s, t = random(17, 5, 4, 6, 6), random(18, 5, 4, 3, 3)
    rows = [MAPS[name](s[i : i + 1], t[i : i + 1]) for i in range(5)]
    torch.testing.assert_close(torch.stack(rows).mean(), MAPS[name](s, t))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", MAPS)
def test_half_precision(name: str, dtype: torch.dtype) -> None:
    s, t = random(19, 4, 32, 8, 8, scale=3.0).relu().to(dtype), random(20, 4, 32, 4, 4, scale=3.0).relu().to(dtype)
    exact = [x.double().requires_grad_() for x in (s, t)]
    truth = MAPS[name](*exact)
    norms = [g.norm().item() for g in gradients(truth, *exact)]
    half = [x.requires_grad_() for x in (s, t)]
    plain = MAPS[name](*half)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = MAPS[name](*half)
    for value in (plain, inside):
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(truth.item(), rel=1e-5)
        found = gradients(value, *half)
        assert [g.dtype for g in found] == [dtype, dtype]
        assert [g.double().norm().item() for g in found] == pytest.approx(norms, rel=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", MAPS)
def test_hard_inputs_give_finite_values_and_gradients(name: str, dtype: torch.dtype) -> None:
    zeros = torch.zeros(3, 4, 4, 4, dtype=dtype)
    some = random(21, 3, 4, 4, 4).to(dtype)
    dead = torch.cat([zeros[:, :2], some[:, 2:]], dim=1)
    constant = torch.cat([some[:, :2], torch.full_like(some[:, 2:], 0.1)], dim=1)
    one_off = zeros.clone()
    one_off[0, 0, 0, 0] = 1000.0
    for s in (zeros, dead, constant, one_off, some * 1000, some * 1e-30, some + 104.0):
        for t in (zeros, some, dead):
            ours, theirs = s.clone().requires_grad_(), t.clone().requires_grad_()
            value = MAPS[name](ours, theirs)
            assert value.isfinite()
            assert all(g.isfinite().all() for g in gradients(value, ours, theirs))


@pytest.mark.parametrize("scale", [1e15, 1e-10])
def test_features_of_any_scale(scale: float) -> None:
    s, t = random(22, 3, 4, 5, 5), random(23, 3, 4, 5, 5)
    ours = (s * scale).float().requires_grad_()
    truth = oracle.ickd(s.numpy(), t.numpy())
    assert ickd(ours, t.float()).item() == pytest.approx(truth, rel=1e-5)
    if scale > 1:
        assert pkd(ours, t.float()).item() == pytest.approx(oracle.pkd(s.numpy(), t.numpy()), rel=1e-4)
        assert gradients(pkd(ours, t.float()), ours)[0].norm() > 0
    assert gradients(ickd(ours, t.float()), ours)[0].isfinite().all()


def test_constant_channels_and_single_values_have_no_gradient() -> None:
    s = torch.full((2, 3, 4, 4), 0.1, requires_grad=True)
    t = random(24, 2, 3, 4, 4).float()
    value = pkd(s, t)
    assert value.item() == pytest.approx(0.5 * 31 / 32, rel=1e-5)
    assert gradients(value, s)[0].abs().max() == 0
    a, b = random(25, 1, 3, 1, 1).requires_grad_(), random(26, 1, 3, 1, 1)
    for loss in (pkd, partial(cwd, temperature=4.0)):
        single = loss(a, b)
        assert single.item() == 0.0
        assert gradients(single, a)[0].abs().max() == 0


def test_offsets_cost_no_precision() -> None:
    s, t = random(27, 4, 3, 6, 6).float(), random(28, 4, 3, 6, 6).float()
    ours, theirs = s + 1000.0, t + 1000.0
    arrays = ours.double().numpy(), theirs.double().numpy()
    assert pkd(ours, theirs).item() == pytest.approx(oracle.pkd(*arrays), rel=1e-4)
    assert cwd(ours, theirs, temperature=4.0).item() == pytest.approx(oracle.cwd(*arrays, temperature=4.0), rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_pad_at_any_log_variance(dtype: torch.dtype) -> None:
    s, t = random(29, 4, 5).to(dtype).requires_grad_(), random(30, 4, 5).to(dtype)
    gap = (s - t).detach().double()
    for v in (-1000.0, -50.0, -13.8, 0.0, 30.0, 88.0, 100.0, 1000.0):
        log_variance = torch.full((4, 5), v, dtype=dtype, requires_grad=True)
        value = pad(s, t, log_variance=log_variance)
        exact = log_variance.detach().double()
        truth = (gap.square() * torch.exp(-torch.logaddexp(exact, torch.tensor(1e-6).double().log())) + exact).mean()
        assert value.item() == pytest.approx(truth.item(), rel=2e-2 if dtype == torch.bfloat16 else 1e-5)
        assert all(g.isfinite().all() for g in gradients(value, s, log_variance))


def test_pad_is_a_likelihood_whose_best_variance_is_the_squared_error() -> None:
    s, t = random(31, 6, 4).requires_grad_(), random(32, 6, 4)
    v = (s - t).detach().square().log().requires_grad_()
    value = pad(s, t, log_variance=v, eps=1e-12)
    (gradient,) = gradients(value, v)
    assert gradient.abs().max() < 1e-7
    assert torch.autograd.gradcheck(
        lambda a, b, c: pad(a, b, log_variance=c), (s, t.requires_grad_(), random(33, 6, 4).requires_grad_())
    )
    assert pad(t, t, log_variance=torch.zeros_like(t)) == 0


def output(shapes: dict[str, tuple[int, ...]], seed: int, n: int = 5) -> Output:
    features = {
        name: random(seed + k, n, *shape).float().requires_grad_() for k, (name, shape) in enumerate(shapes.items())
    }
    return Output(random(seed, n, 7).float().requires_grad_(), features)


def build(options: Any, student: Any = SMALL, teacher: Any = BIG) -> Loss[Any]:
    torch.manual_seed(0)
    return build_loss(options, student=side(student), teacher=side(teacher), data_spec=DataSpec(7, 3, 8))


def value_of(
    loss: Loss[Any], student: Output, teacher: Output, gather: Callable[[Tensor], Tensor] = lambda x: x
) -> Tensor:
    n = len(student.logits)
    batch = Batch(torch.zeros(n, 3, 8, 8), torch.zeros(n, dtype=torch.long), torch.arange(n))
    found = loss(student, teacher, batch, gather)
    assert isinstance(found, Tensor)
    return found


CHANNELS = [
    config.CWD(),
    config.CWD(stages="last"),
    config.PKD(),
    config.ICKD(),
    config.PAD(),
    config.PAD(stages="all"),
]


@pytest.mark.parametrize("options", CHANNELS, ids=str)
@pytest.mark.parametrize(
    ("student", "teacher"),
    [(SMALL, BIG), (BIG, SMALL), ({"tokens": (16, 6)}, {"map": (9, 4, 3)}), ({"map": (9, 4, 3)}, {"tokens": (16, 6)})],
)
def test_modules_teach_the_student_and_each_of_their_projections(options: Any, student: Any, teacher: Any) -> None:
    loss = build(options, student, teacher)
    s, t = output(student, 0), output(teacher, 50)
    value = value_of(loss, s, t)
    value.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in loss.parameters())
    assert any(f.grad is not None and f.grad.abs().sum() > 0 for f in s.features.values())
    assert any(f.grad is not None and f.grad.abs().sum() > 0 for f in t.features.values())


def test_values_of_modules_without_projections_are_those_of_the_functions() -> None:
    s, t = output(SMALL, 1), output(SMALL, 51)
    f, g = s.features, t.features
    assert value_of(build(config.CWD(temperature=2.0, stages="last"), teacher=SMALL), s, t) == cwd(
        f["block3"], g["block3"], temperature=2.0
    )
    total = torch.stack([pkd(f[name], g[name], eps=0.1) for name in SMALL]).sum()
    assert value_of(build(config.PKD(eps=0.1), teacher=SMALL), s, t) == total
    loss = build(config.PAD(stages="last"), teacher=SMALL)
    assert [tuple(p.shape) for p in loss.parameters()] == [(8, 8), (8,), (8,)]


@pytest.mark.parametrize("options", [config.PKD(), config.ICKD(), config.PAD()])
def test_vectors(options: Any) -> None:
    vectors, others = {"v": (6,)}, {"w": (4,)}
    s, t = output(vectors, 2), output(others, 52)
    value = value_of(build(options, vectors, others), s, t)
    value.backward()
    gradient = s.features["v"].grad
    assert gradient is not None
    assert gradient.abs().sum() > 0


def test_pkd_gathers_the_maps_of_all_processes() -> None:
    loss = build(config.PKD(stages="last"))
    s, t = output(SMALL, 3, n=6), output(BIG, 53, n=6)
    whole = value_of(loss, s, t)
    halves = [Output(o.logits[:3], {name: f[:3] for name, f in o.features.items()}) for o in (s, t)]
    rest = [Output(o.logits[3:], {name: f[3:] for name, f in o.features.items()}) for o in (s, t)]
    others: list[Tensor] = []
    value_of(loss, *rest, gather=lambda x: others.append(x) or x)
    missing = iter(others)
    torch.testing.assert_close(value_of(loss, *halves, gather=lambda x: torch.cat([x, next(missing)])), whole)


def test_pad_takes_a_batch_of_one() -> None:
    loss = build(config.PAD()).train()
    value = value_of(loss, output(SMALL, 4, n=1), output(BIG, 54, n=1))
    assert value.isfinite()
    (norm,) = (m for m in loss.modules() if isinstance(m, nn.BatchNorm1d))
    assert norm.num_batches_tracked == 0


@pytest.mark.parametrize(
    ("options", "student", "teacher", "message"),
    [
        (config.CWD(), {"v": (8,)}, BIG, r"cwd needs a map, but stage 'v' is a vector of 8"),
        (config.CWD(stages="last"), {"v": (8, 1, 1)}, BIG, r"'v:layer3' compares 1x1 maps"),
        (config.CWD(), {"u": (8, 1, 1), "v": (8, 1, 1)}, BIG, r"compares 1x1 maps"),
        (config.PKD(), {"x": (10, 4)}, BIG, r"stage 'x' is 10 tokens"),
        (config.ICKD(), {}, BIG, r"the student has no features"),
        (config.PAD(stages=["block9:layer1"]), SMALL, BIG, r"student stage 'block9'"),
    ],
)
def test_what_cannot_be_defined_is_refused_when_built(options: Any, student: Any, teacher: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        build(options, student, teacher)
    assert "\n" not in str(error.value)


def test_all_pairs_leave_out_maps_of_one_position() -> None:
    shapes = {"deep": (8, 2, 2), "deepest": (8, 1, 1)}
    loss = build(config.CWD(), shapes, shapes)
    assert loss.pairs == [("deep", "deep")]
