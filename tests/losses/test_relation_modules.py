"""The modules of SP, CC, PKT, IRG and of RKD's and FSP's options: their values, their parameters, what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kdschemes.config.losses import relation as config
from kdschemes.core.loss import Endpoint, Loss
from kdschemes.core.types import Batch, DataSpec, Output
from kdschemes.errors import UserError
from kdschemes.losses.build import build_loss
from kdschemes.losses.relation.cc import kernel_congruence, neighbor_congruence
from kdschemes.losses.relation.pkt import probabilistic_transfer
from kdschemes.losses.relation.rkd import rkd_angle, rkd_distance
from kdschemes.losses.relation.sp import similarity_preserving
from kdschemes.losses.rows import unit_rows
from tests.losses import oracles_relation as oracles

STUDENT = {"s1": (4, 6, 6), "s2": (8, 3, 3), "s3": (6, 3, 3)}
TEACHER = {"t1": (5, 4, 6), "t2": (10, 4, 2), "t3": (12, 2, 2)}
TOKENS = {"a": (9, 6), "b": (9, 6)}
OPTIONS = {
    "rkd": config.RKD(normalize=True),
    "fsp": config.FSP(pooling="max", distance="column_norms"),
    "sp": config.SP(),
    "sp_l1": config.SP(row_norm="l1"),
    "cc": config.CC(),
    "kernel": config.CC(variant="kernel"),
    "pkt": config.PKT(),
    "irg": config.IRG(),
}
SPANNING = sorted(OPTIONS.keys() - {"fsp"})


def output(shapes: dict[str, tuple[int, ...]], seed: int, n: int = 5) -> Output:
    generator = torch.Generator().manual_seed(seed)
    features = {name: torch.randn(n, *shape, generator=generator).requires_grad_() for name, shape in shapes.items()}
    return Output(torch.randn(n, 7, generator=generator).requires_grad_(), features)


def batch(n: int = 5) -> Batch:
    return Batch(torch.zeros(n, 3, 8, 8), torch.zeros(n, dtype=torch.long), torch.arange(n))


def build(options: Any, student: Any = STUDENT, teacher: Any = TEACHER) -> Loss[Any]:
    torch.manual_seed(0)
    return build_loss(options, student=Endpoint(student), teacher=Endpoint(teacher), data_spec=DataSpec(7, 3, 8))


def same(x: Tensor) -> Tensor:
    return x


def part(whole: Output, rows: slice) -> Output:
    return Output(whole.logits[rows], {name: f[rows] for name, f in whole.features.items()})


def test_values_are_those_of_the_functions() -> None:
    s, t = output(STUDENT, 0), output(TEACHER, 1)
    f, g = s.features["s3"], t.features["t3"]
    ours, theirs = f.mean((2, 3)), g.mean((2, 3))
    units = unit_rows(ours), unit_rows(theirs)
    cc = build(OPTIONS["cc"])
    first, second = (m for m in cc.modules() if isinstance(m, torch.nn.Linear))
    expected = {
        "rkd": 25 * rkd_distance(*units) + 50 * rkd_angle(*units),
        "sp": similarity_preserving(f, g),
        "sp_l1": similarity_preserving(f, g, row_norm="l1"),
        "cc": neighbor_congruence(first(ours), second(theirs)),
        "kernel": kernel_congruence(ours, theirs, gamma=0.4, order=2),
        "pkt": probabilistic_transfer(ours, theirs),
    }
    for name, truth in expected.items():
        torch.testing.assert_close((cc if name == "cc" else build(OPTIONS[name]))(s, t, batch(), same), truth)
    assert (first.in_features, second.in_features, first.out_features) == (6, 12, 128)
    assert not list(build(OPTIONS["kernel"]).parameters())
    two = build(config.PKT(stages=["s1:t2", "s3:t3"], eps=1e-2))(s, t, batch(), same)
    means = s.features["s1"].mean((2, 3)), t.features["t2"].mean((2, 3))
    truth = sum(probabilistic_transfer(a, b, eps=1e-2) for a, b in (means, (ours, theirs)))
    torch.testing.assert_close(two, truth)


def test_irg_equals_the_oracle() -> None:
    shapes = {"s1": (4, 3, 4), "s2": (8, 3, 4), "s3": (6, 3, 4)}, {"t1": (5, 2, 2), "t2": (10, 2, 2), "t3": (12, 2, 2)}
    s, t = output(shapes[0], 2), output(shapes[1], 3)
    arrays = [[f.detach().double().numpy() for f in o.features.values()] for o in (s, t)]
    logits = s.logits.detach().double().numpy(), t.logits.detach().double().numpy()
    for weights in ({}, {"vertices": 0.0, "edges": 2.0}, {"edges": 0.0, "transformations": 3.0}):
        value = build(config.IRG(**weights), *shapes)(s, t, batch(), same)
        assert value.item() == pytest.approx(oracles.irg(logits, *arrays, **weights), rel=1e-5)
    last_two = build(config.IRG(stages=["s2:t2", "s3:t3"]), *shapes)(s, t, batch(), same)
    assert last_two.item() == pytest.approx(oracles.irg(logits, arrays[0][1:], arrays[1][1:]), rel=1e-5)
    vertices = build(config.IRG(vertices=1.0, edges=0.0, transformations=0.0), {"v": (8,)}, {"w": (3,)})
    s, t = output({"v": (8,)}, 4), output({"w": (3,)}, 5)
    torch.testing.assert_close(vertices(s, t, batch(), same), (s.logits - t.logits).square().mean())


@pytest.mark.parametrize("name", OPTIONS)
def test_student_and_parameters_learn(name: str) -> None:
    for student, teacher in ((STUDENT, TEACHER), (TOKENS, TEACHER), (STUDENT, TOKENS)):
        loss = build(OPTIONS[name], student, teacher)
        s, t = output(student, 6), output(teacher, 7)
        value = loss(s, t, batch(), same)
        value.backward()
        assert value > 0
        assert all(p.grad is not None and p.grad.any() for p in loss.parameters())
        assert any(f.grad is not None and f.grad.any() for f in s.features.values())


@pytest.mark.parametrize("name", SPANNING)
def test_processes_compute_one_value_together(name: str) -> None:
    loss = build(OPTIONS[name])
    s, t = output(STUDENT, 8, n=6), output(TEACHER, 9, n=6)
    rest: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        rest.append(x.detach())
        return x

    value = loss(s, t, batch(6), same)
    with torch.no_grad():
        loss(part(s, slice(3, 6)), part(t, slice(3, 6)), batch(3), keep)
    others = iter(rest)
    half = loss(part(s, slice(0, 3)), part(t, slice(0, 3)), batch(3), lambda x: torch.cat([x, next(others)]))
    torch.testing.assert_close(half, value)
    leaf = next(reversed(s.features.values()))
    whole, mine = (torch.autograd.grad(x, leaf)[0] for x in (value, half))
    torch.testing.assert_close(mine[:3], whole[:3])


@pytest.mark.parametrize("name", SPANNING)
def test_a_batch_of_one(name: str) -> None:
    s, t = output(STUDENT, 10, n=1), output(TEACHER, 11, n=1)
    options = config.IRG(vertices=0.0) if name == "irg" else OPTIONS[name]
    loss = build(options)
    value = loss(s, t, batch(1), same)
    value.backward()
    assert value == 0
    for x in (*s.features.values(), *t.features.values(), *loss.parameters()):
        assert x.grad is None or not x.grad.any()


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(name: str, dtype: torch.dtype) -> None:
    loss = build(OPTIONS[name])
    s, t = output(STUDENT, 12, n=16).detach(), output(TEACHER, 13, n=16).detach()
    plain = loss(s, t, batch(16), same)
    halves = [Output(o.logits.to(dtype), {k: f.to(dtype) for k, f in o.features.items()}) for o in (s, t)]
    with torch.autocast("cpu", dtype=dtype):
        values = [loss(s, t, batch(16), same), loss(*halves, batch(16), same)]
    for value in values:
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(plain.item(), rel=1e-2)


@pytest.mark.parametrize(
    ("options", "student", "message"),
    [
        (config.IRG(vertices=0.0, edges=0.0, transformations=0.0), STUDENT, r"compares nothing"),
        (config.IRG(stages="last"), STUDENT, r"irg needs at least two stage pairs, got s3:t3.*transformations=0"),
        (config.IRG(), {"u": (8,), "v": (8,)}, r"irg needs a map, but stage 'u' is a vector"),
        (config.SP(), {}, r"the student has no features"),
        (config.CC(stages=["s9:t1"]), STUDENT, r"student stage 's9'"),
    ],
)
def test_what_cannot_be_defined_is_refused_when_built(options: Any, student: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        build(options, student=student)
    assert "\n" not in str(error.value)
