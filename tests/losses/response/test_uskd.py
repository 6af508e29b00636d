"""Self-distillation by soft labels of the student and of a weak head."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kdschemes.config.losses import response as config
from kdschemes.core.types import Batch
from kdschemes.errors import UserError
from kdschemes.losses.response.uskd import USKD, Rank, uskd, uskd_non_target, uskd_target, uskd_weak
from tests.losses.cases import Flags, Inputs, LogitCase, Parameters, Reference
from tests.losses.formulas import Array, log_softmax, softmax
from tests.losses.inputs import gradients, logits
from tests.losses.stubs import BIG, SMALL, batch, build, output, same


def formula_target(student: Array, labels: list[int]) -> float:
    p = [softmax(z)[y] for z, y in zip(student, labels, strict=True)]
    mean = sum(q * q for q in p) / len(p)
    return -math.fsum((q * q + 1 - mean) * math.log(q) for q in p) / len(p)


def formula_weak(weak: Array, labels: list[int], *, smoothing: float) -> float:
    c = weak.shape[1]
    total = 0.0
    for z, y in zip(weak, labels, strict=True):
        target = [(1 - smoothing) * (i == y) + smoothing / c for i in range(c)]
        total -= math.fsum(t * q for t, q in zip(target, log_softmax(z), strict=True))
    return total / len(weak)


def formula_non_target(student: Array, weak: Array, labels: list[int], *, rank: str) -> float:
    total = 0.0
    for z, w, y in zip(student, weak, labels, strict=True):
        ours = log_softmax(z) if rank == "reference" else softmax(z)
        theirs = softmax(w)
        score = theirs / (1 - theirs[y] + 1e-6) + ours / (1 - ours[y] + 1e-6)
        zipf = {c: float(np.float32(1) / np.float32(r)) for r, c in enumerate(np.argsort(-score, kind="stable"), 1)}
        others = [c for c in range(len(z)) if c != y]
        mass = math.fsum(zipf[c] for c in others)
        log_q = log_softmax(z[others])
        total -= math.fsum(zipf[c] / mass * q for c, q in zip(others, log_q, strict=True))
    return total / len(student)


def self_taught(rank: Rank) -> LogitCase:
    return LogitCase(
        lambda z, w, y: uskd(z, w, y, alpha=1.0, beta=0.1, mu=0.5, rank=rank),
        student_differentiable=False,
        teacher_differentiable=False,
        by_sample=False,
        zero=False,
        rel=1e-3,
    )


CASES = {"uskd": self_taught("reference"), "uskd-probabilities": self_taught("probabilities")}
OPTIONS = [config.USKD(mu=0.3)]
FLAGS = Flags(teacher_gradient=False, reads_teacher=False)


def self_labels(x: Inputs, p: Parameters) -> Tensor:
    weak = x["f"] @ x["W"].mT + x["b"]
    return uskd(x["s"], weak, x["y"], alpha=p["alpha"], beta=p["beta"], mu=p["mu"], rank="reference")


REFERENCES: dict[str, Reference] = {"USKD.cls_KD": self_labels}


def labels(seed: int, n: int = 6, c: int = 10) -> Tensor:
    return torch.randint(0, c, (n,), generator=torch.Generator().manual_seed(seed))


SIZES = pytest.mark.parametrize(("n", "c"), [(6, 10), (1, 5), (7, 2), (4, 100), (9, 3)])


@SIZES
@pytest.mark.parametrize("rank", ["reference", "probabilities"])
@pytest.mark.parametrize("scale", [0.1, 3.0, 10.0])
def test_value_equals_the_formula(n: int, c: int, rank: Rank, scale: float) -> None:
    z, w, y = logits(28, n, c, scale), logits(29, n, c, scale), labels(30, n, c)
    target = formula_target(z.numpy(), y.tolist())
    weak = formula_weak(w.numpy(), y.tolist(), smoothing=0.1)
    non_target = formula_non_target(z.numpy(), w.numpy(), y.tolist(), rank=rank)
    assert uskd_target(z, y).item() == pytest.approx(target, rel=1e-10)
    assert uskd_weak(w, y).item() == pytest.approx(weak, rel=1e-10)
    assert uskd_non_target(z, w, y, rank=rank).item() == pytest.approx(non_target, rel=1e-10, abs=1e-15)
    value = uskd(z, w, y, alpha=0.3, beta=0.2, mu=0.7, rank=rank)
    assert value.item() == pytest.approx(0.3 * target + 0.2 * non_target + 0.7 * weak, rel=1e-10)


def test_the_soft_labels_pass_no_gradient() -> None:
    z, w, y = logits(31).requires_grad_(), logits(32).requires_grad_(), labels(33)
    p = torch.softmax(z, 1).gather(1, y[:, None]).squeeze(1)
    weights = (p**2 + 1 - (p**2).mean()).detach()
    (ours,) = gradients(uskd_target(z, y), z)
    (truth,) = gradients(-(weights * p.log()).mean(), z)
    torch.testing.assert_close(ours, truth)
    (g,) = torch.autograd.grad(uskd_non_target(z, w, y, rank="reference"), (z,))
    assert g.gather(1, y[:, None]).abs().max() == 0, "the label's own logit does not belong to the others' distribution"
    torch.testing.assert_close(g.sum(1), torch.zeros(6, dtype=torch.float64))
    with pytest.raises(RuntimeError, match=r"not have been used"):
        torch.autograd.grad(uskd_non_target(z, w, y, rank="reference"), (w,))


def test_two_classes_leave_no_other_class_to_rank() -> None:
    z, w, y = logits(34, c=2).requires_grad_(), logits(35, c=2), labels(36, c=2)
    value = uskd_non_target(z, w, y, rank="probabilities")
    assert value.item() == 0.0
    assert gradients(value, z)[0].abs().max() == 0.0


@pytest.mark.parametrize(("rank", "ranks"), [("probabilities", [3, 4, 2]), ("reference", [2, 4, 3])])
def test_both_ways_to_rank(rank: Rank, ranks: list[int]) -> None:
    """By probabilities the weak head prevails here, by log-probabilities the student; the label has rank 1."""
    z = torch.tensor([[9.0, 0.6, 0.0, 0.0]], dtype=torch.float64)
    w = torch.tensor([[0.1, 0.2, 0.3, 0.4]], dtype=torch.float64).log()
    soft = 1.0 / torch.tensor(ranks)
    expected = -(soft / soft.sum() * torch.log_softmax(z[0, 1:], 0)).sum()
    assert uskd_non_target(z, w, torch.tensor([0]), rank=rank).item() == pytest.approx(expected.item(), rel=1e-7)


@pytest.mark.parametrize("rank", ["reference", "probabilities"])
def test_gradients_of_the_parts(rank: Rank) -> None:
    z, w, y = logits(37, 4, 5).requires_grad_(), logits(38, 4, 5), torch.arange(4)
    assert torch.autograd.gradcheck(lambda a: uskd_non_target(a, w, y, rank=rank), z)
    assert torch.autograd.gradcheck(lambda b: uskd_weak(b, y), w.clone().requires_grad_())
    (whole,) = gradients(uskd(z, w, y, alpha=1.0, beta=0.1, mu=0.5, rank=rank), z)
    (parts,) = gradients(uskd_target(z, y) + 0.1 * uskd_non_target(z, w, y, rank=rank), z)
    torch.testing.assert_close(whole, parts)


@pytest.mark.parametrize(
    ("stage", "shapes", "found"),
    [
        ("penultimate", SMALL, "block2"),
        ("middle", SMALL, "block2"),
        ("middle", {**SMALL, "block4": (9, 2, 2)}, "block2"),
        ("penultimate", {**SMALL, "block4": (9, 2, 2)}, "block3"),
        ("block1", SMALL, "block1"),
        ("penultimate", {"only": (5,)}, "only"),
    ],
)
def test_the_module_reads_a_shallower_stage(stage: str, shapes: Any, found: str) -> None:
    loss = build(config.USKD(stage=stage), shapes)
    assert isinstance(loss, USKD)
    assert loss.stage == found
    s = output(shapes, 20)
    loss(s, output(BIG, 21), batch(), same).backward()
    reached = {name for name, f in s.features.items() if f.grad is not None}
    assert reached == {found}


def test_the_module_does_not_read_the_teacher() -> None:
    loss, s = build(config.USKD()), output(SMALL, 22)
    assert loss(s, output(BIG, 23), batch(), same) == loss(s, output(BIG, 24), batch(), same)
    other = Batch(torch.zeros(5, 3, 8, 8), torch.full((5,), 4), torch.arange(5))
    assert loss(s, output(BIG, 23), other, same) != loss(s, output(BIG, 23), batch(), same)


@pytest.mark.parametrize(
    ("options", "student", "message"),
    [
        (config.USKD(stage="blok1"), SMALL, r"student stage 'blok1'.*'block1'"),
        (config.USKD(), {}, r"student has no features"),
    ],
)
def test_undefined_losses_are_refused_when_built(options: Any, student: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        build(options, student)
    assert "\n" not in str(error.value)
