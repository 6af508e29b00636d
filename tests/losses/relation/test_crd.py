"""Contrastive representation distillation: the value, the draw of negatives, the memories, resumed training."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from kdschemes.config.losses.relation import CRD as Options
from kdschemes.core.loss import Endpoint
from kdschemes.core.types import Batch, DataSpec, Output
from kdschemes.errors import UserError
from kdschemes.losses.relation import crd as functions
from kdschemes.losses.relation.crd import (
    CRD,
    draw_others,
    log_normalizer,
    memory_similarities,
    noise_contrastive,
    refreshed_memory,
)
from kdschemes.losses.rows import unit_rows
from tests.losses.cases import Inputs, Parameters, Reference
from tests.losses.formulas import Array, dot, unit
from tests.losses.inputs import normal

POSITIONS, CLASSES, HELD_OUT = 60, 5, 6
LABELS = (torch.arange(POSITIONS) * 7 % CLASSES).masked_fill(torch.arange(POSITIONS) >= POSITIONS - HELD_OUT, -1)
STUDENT, TEACHER = {"s1": (4, 4, 4), "s2": (6, 2, 2)}, {"t1": (5, 4, 4), "t2": (9,)}


class Contrast:
    """Two memories, and Z from the first batch: the loss of one batch, after which the batch's rows are refreshed."""

    def __init__(
        self, student_memory: Array, teacher_memory: Array, *, temperature: float, momentum: float, population: int
    ) -> None:
        self.memories = {"student": student_memory.copy(), "teacher": teacher_memory.copy()}
        self.z: dict[str, float] = {}
        self.temperature = temperature
        self.momentum = momentum
        self.population = population

    def step(self, student: Array, teacher: Array, samples: Any) -> float:
        n, drawn = samples.shape
        share = (drawn - 1) / self.population
        total = 0.0
        embeddings = {"student": [unit(e) for e in student], "teacher": [unit(e) for e in teacher]}
        for side, other in (("student", "teacher"), ("teacher", "student")):
            scores = np.zeros((n, drawn))
            for i, k in np.ndindex(n, drawn):
                scores[i, k] = math.exp(
                    dot(embeddings[side][i], self.memories[other][samples[i, k]]) / self.temperature
                )
            self.z.setdefault(side, float(scores.mean()) * self.population)
            p = scores / self.z[side]
            for i in range(n):
                total -= math.log(p[i, 0] / (p[i, 0] + share + 1e-7)) / n
                for k in range(1, drawn):
                    total -= math.log(share / (p[i, k] + share + 1e-7)) / n
        for side in ("student", "teacher"):
            for i in range(n):
                row = samples[i, 0]
                old = self.memories[side][row]
                self.memories[side][row] = unit(self.momentum * old + (1 - self.momentum) * embeddings[side][i])
        return total


def contrast(x: Inputs, p: Parameters, *, steps: int) -> Tensor:
    """The loss of the same batch in step number `steps`; temperature and Z are float32 in the reference."""
    embeddings = {
        "s": unit_rows(functional.linear(x["s"], x["Ws"], x["bs"])),
        "t": unit_rows(functional.linear(x["t"], x["Wt"], x["bt"])),
    }
    memories = {"s": x["m1"].clone(), "t": x["m2"].clone()}
    temperature = torch.tensor(p["tau"]).item()
    normalizers: dict[str, Tensor] = {}
    total = x["s"].new_zeros(())
    for _ in range(steps):
        total = x["s"].new_zeros(())
        for side, other in (("s", "t"), ("t", "s")):
            scores = memory_similarities(embeddings[side], memories[other].clone(), x["idx"], temperature=temperature)
            first = log_normalizer(scores.detach(), population=p["n"])
            rounded = first.exp().float().to(first.dtype).log()
            total = total + noise_contrastive(scores, normalizers.setdefault(side, rounded), population=p["n"])
        for side, memory in memories.items():
            memory[x["y"]] = refreshed_memory(memory[x["y"]], embeddings[side].detach(), momentum=p["mom"])
    return total


REFERENCES: dict[str, Reference] = {
    "CRD.RepDistiller": lambda x, p: contrast(x, p, steps=1),
    "CRD.RepDistiller_step2": lambda x, p: contrast(x, p, steps=2),
}


def build(seed: int = 0, labels: Tensor | None = LABELS, **options: Any) -> CRD:
    torch.manual_seed(seed)
    chosen = Options(**{"negatives": 40, "dimension": 8, **options})
    return CRD(chosen, student=Endpoint(STUDENT), teacher=Endpoint(TEACHER), data_spec=DataSpec(CLASSES, 3, 8, labels))


def batch(*index: int) -> Batch:
    return Batch(torch.zeros(len(index), 3, 8, 8), torch.zeros(len(index), dtype=torch.long), torch.tensor(index))


def outputs(seed: int, n: int) -> tuple[Output, Output]:
    sides = []
    for shapes in (STUDENT, TEACHER):
        seed += 100
        sides.append(Output(torch.zeros(n, CLASSES), {k: normal(seed, n, *v).float() for k, v in shapes.items()}))
    return sides[0], sides[1]


def same(x: Tensor) -> Tensor:
    return x


def part(whole: Output, rows: slice) -> Output:
    return Output(whole.logits[rows], {name: f[rows] for name, f in whole.features.items()})


@pytest.mark.parametrize("population", [20, 7])
@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_steps_equal_the_formula(population: int, temperature: float) -> None:
    memories = [unit_rows(normal(seed, 20, 6)) for seed in (0, 1)]
    truth = Contrast(*(m.numpy() for m in memories), temperature=temperature, momentum=0.3, population=population)
    z: list[Tensor] = []
    for step in range(3):
        s, t = normal(10 + step, 4, 6), normal(20 + step, 4, 6)
        samples = torch.randint(20, (4, 12), generator=torch.Generator().manual_seed(step))
        samples[:, 0] = torch.tensor([3, 7, 0, 19])
        units = unit_rows(s), unit_rows(t)
        scores = [memory_similarities(units[i], memories[1 - i], samples, temperature=temperature) for i in range(2)]
        z = z or [log_normalizer(x, population=population) for x in scores]
        value = sum(noise_contrastive(x, log_z, population=population) for x, log_z in zip(scores, z, strict=True))
        assert float(value) == pytest.approx(truth.step(s.numpy(), t.numpy(), samples.numpy()), rel=1e-10)
        for i, side in enumerate(("student", "teacher")):
            memories[i][samples[:, 0]] = refreshed_memory(memories[i][samples[:, 0]], units[i], momentum=0.3)
            torch.testing.assert_close(memories[i], torch.from_numpy(truth.memories[side]))


def test_gradients_of_the_functions() -> None:
    samples = torch.tensor([[0, 3, 3, 5], [2, 1, 4, 4], [5, 0, 0, 1]])
    memory = unit_rows(normal(0, 6, 4))

    def loss(x: Tensor, log_z: Tensor) -> Tensor:
        scores = memory_similarities(unit_rows(x), memory, samples, temperature=0.2)
        return noise_contrastive(scores, log_z, population=6)

    assert torch.autograd.gradcheck(loss, (normal(1, 3, 4).requires_grad_(), normal(2, 1).sum().requires_grad_()))
    assert torch.autograd.gradcheck(lambda x: log_normalizer(x, population=6), normal(3, 3, 4).requires_grad_())
    assert torch.autograd.gradcheck(
        lambda x: refreshed_memory(memory[:3], x, momentum=0.5), normal(4, 3, 4).requires_grad_()
    )


@pytest.mark.parametrize("scale", [1.0, 100.0, 1e4, 1e8])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_no_similarity_is_too_large(scale: float, dtype: torch.dtype) -> None:
    scores = (scale * normal(5, 6, 9)).clamp(-6e4, 6e4).to(dtype).requires_grad_()
    for log_z in (0.0, log_normalizer(scores, population=50).item()):
        value = noise_contrastive(scores, torch.tensor(log_z), population=50)
        (gradient,) = torch.autograd.grad(value, scores)
        assert value.isfinite()
        assert gradient.isfinite().all()
    assert log_normalizer(scores, population=50).isfinite()


def test_computed_for_a_few_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    x, memory = normal(6, 7, 4).requires_grad_(), normal(7, 10, 4)
    samples = torch.randint(10, (7, 5), generator=torch.Generator().manual_seed(0))
    whole = memory_similarities(x, memory, samples, temperature=0.1)
    torch.testing.assert_close(whole, (x[:, None] * memory[samples]).sum(2) / 0.1)
    monkeypatch.setattr(functions, "_CHUNK_ELEMENTS", 25)
    chunked = memory_similarities(x, memory, samples, temperature=0.1)
    torch.testing.assert_close(chunked, whole)
    torch.testing.assert_close(*(torch.autograd.grad(y.square().sum(), x) for y in (chunked, whole)))


def test_a_memory_that_cancels_and_embeddings_of_zero() -> None:
    rows = unit_rows(normal(8, 3, 4))
    assert (refreshed_memory(rows, -rows, momentum=0.5) == 0).all()
    torch.testing.assert_close(refreshed_memory(rows, torch.zeros_like(rows), momentum=0.5), rows)
    loss = build(momentum=0.5)
    s, t = outputs(0, 4)
    for features in (s.features["s2"], t.features["t2"]):
        features[:2] = 0.0
        features.requires_grad_()
    with torch.no_grad():
        for contrast in loss.contrasts:
            contrast.embed_student.bias.zero_()
            contrast.embed_teacher.bias.zero_()
    value = loss(s, t, batch(0, 1, 2, 3), same)
    value.backward()
    assert value.isfinite()
    assert all(p.grad.isfinite().all() for p in [*loss.parameters(), s.features["s2"], t.features["t2"]])
    assert all(b.isfinite().all() for b in loss.buffers())


def drawn(index: Tensor, count: int, *, draw: int = 0, seed: int = 5, left_out: int = 0, first: int = 0) -> Tensor:
    return draw_others(
        torch.tensor(seed),
        torch.tensor(draw),
        index,
        count=count,
        pool=torch.arange(100, 110),
        first=torch.full_like(index, first),
        left_out=torch.full_like(index, left_out),
    )


def chi_square(counts: Tensor) -> float:
    """The statistic's distance from its mean, divided by its std."""
    expected = counts.sum() / len(counts)
    statistic = ((counts - expected) ** 2 / expected).sum().item()
    return abs(statistic - (len(counts) - 1)) / math.sqrt(2 * (len(counts) - 1))


def test_draws_are_even_and_independent() -> None:
    index = torch.arange(50)
    whole = drawn(index, 2000)
    assert chi_square((whole.flatten() - 100).bincount().double()) < 5
    without = drawn(index, 2000, left_out=3, first=4)
    assert set(without.unique().tolist()) == {100, 101, 102, 103, 107, 108, 109}
    assert chi_square((without.flatten() - 100).bincount()[[0, 1, 2, 3, 7, 8, 9]].double()) < 5
    pairs = (whole[:, :-1] - 100) * 10 + whole[:, 1:] - 100
    assert chi_square(pairs.flatten().bincount(minlength=100).double()) < 5
    next_draw, neighbors = drawn(index, 2000, draw=1), (whole[:-1] - 100) * 10 + whole[1:] - 100
    assert chi_square(((whole - 100) * 10 + next_draw - 100).flatten().bincount(minlength=100).double()) < 5
    assert chi_square(neighbors.flatten().bincount(minlength=100).double()) < 5


def test_a_draw_depends_on_seed_number_and_sample_alone() -> None:
    index = torch.tensor([3, 999_999, 0, 41])
    whole = drawn(index, 30)
    assert torch.equal(drawn(index[1:3], 30), whole[1:3])
    assert torch.equal(drawn(index, 10), whole[:, :10])
    assert not torch.equal(drawn(index, 30, draw=1), whole)
    assert not torch.equal(drawn(index, 30, seed=6), whole)
    assert not torch.equal(whole[0], whole[1])


@pytest.mark.parametrize("exclude_class", [True, False])
def test_negatives_are_training_samples_of_other_classes(exclude_class: bool) -> None:
    others = build(exclude_class=exclude_class).others
    index = torch.arange(POSITIONS - HELD_OUT)
    samples = others(index, 4000)
    assert samples.max() < POSITIONS - HELD_OUT
    for i in (0, 1, 17, 53):
        allowed = (LABELS >= 0) & ~LABELS.eq(LABELS[i]) if exclude_class else LABELS >= 0
        counts = samples[i].bincount(minlength=POSITIONS).double()
        assert torch.equal(counts > 0, allowed)
        assert chi_square(counts[allowed]) < 5


def test_more_negatives_than_samples() -> None:
    assert build(negatives=1000)(*outputs(0, 3), batch(0, 1, 2), same).isfinite()


def test_only_the_memories_of_the_batch_change() -> None:
    loss = build(stages=["s1:t1", "s2:t2"])
    before = {name: b.clone() for name, b in loss.named_buffers()}
    index = [7, 2, 51, 30]
    loss(*outputs(1, 4), batch(*index), same).backward()
    others = [i for i in range(POSITIONS) if i not in index]
    for name, buffer in loss.named_buffers():
        if name.endswith("memory"):
            assert torch.equal(buffer[others], before[name][others])
            assert (buffer[index] != before[name][index]).all()
            torch.testing.assert_close(buffer[index].norm(dim=1), torch.ones(4))
        elif name.endswith("draw"):
            assert buffer == before[name] + 1
        elif not name.endswith("log_normalizers"):
            assert torch.equal(buffer, before[name])
    bound = 1 / math.sqrt(8 / 3)
    memory = before["contrasts.0.student_memory"]
    assert memory.abs().max() <= bound
    assert memory.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)


def test_the_value_is_that_of_the_functions_and_z_stays() -> None:
    loss = build()
    (contrast,) = loss.contrasts
    (s, t), index = outputs(2, 4), torch.tensor([5, 6, 7, 8])
    memories = contrast.student_memory.clone(), contrast.teacher_memory.clone()
    population = POSITIONS - HELD_OUT
    samples = torch.cat([index[:, None], loss.others(index, 40)], 1)
    ours = unit_rows(contrast.embed_student(s.features["s2"].mean((2, 3))))
    theirs = unit_rows(contrast.embed_teacher(t.features["t2"]))
    truth = Contrast(*(m.double().numpy() for m in memories), temperature=0.07, momentum=0.5, population=population)
    arrays = [e.detach().double().numpy() for e in (ours, theirs)]
    value = loss(s, t, batch(5, 6, 7, 8), same)
    assert value.item() == pytest.approx(truth.step(*arrays, samples.numpy()), rel=1e-5)
    first = contrast.log_normalizers.clone()
    assert first.exp().tolist() == pytest.approx([truth.z["student"], truth.z["teacher"]], rel=1e-5)
    torch.testing.assert_close(contrast.student_memory.double(), torch.from_numpy(truth.memories["student"]))
    torch.testing.assert_close(contrast.teacher_memory.double(), torch.from_numpy(truth.memories["teacher"]))
    samples = torch.cat([index[:, None], loss.others(index, 40)], 1)
    again = loss(s, t, batch(5, 6, 7, 8), same)
    assert again.item() == pytest.approx(truth.step(*arrays, samples.numpy()), rel=1e-5)
    assert torch.equal(contrast.log_normalizers, first)


def test_evaluation_changes_nothing() -> None:
    loss = build().eval()
    before = {name: b.clone() for name, b in loss.named_buffers()}
    assert loss(*outputs(3, 4), batch(0, 1, 2, 3), same).isfinite()
    assert all(torch.equal(b, before[name]) for name, b in loss.named_buffers())


def train(loss: CRD, steps: range) -> list[float]:
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.1)
    values = []
    for step in steps:
        value = loss(*outputs(step, 4), batch(*(torch.arange(4) * 11 + step).remainder(54).tolist()), same)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    return values


def test_training_resumes_bit_for_bit() -> None:
    whole, resumed = build(seed=0), build(seed=1)
    first = train(whole, range(3))
    state = {name: x.clone() for name, x in whole.state_dict().items()}
    rest = train(whole, range(3, 6))
    resumed.load_state_dict(state)
    assert train(resumed, range(3, 6)) == rest
    assert all(torch.equal(a, b) for a, b in zip(whole.buffers(), resumed.buffers(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    assert train(build(seed=0), range(3)) == first
    assert train(build(seed=1), range(3)) != first


def test_two_processes_compute_what_one_does() -> None:
    one, two = build(), [build(), build()]
    for step in range(2):
        (s, t), index = outputs(step, 6), (9, 1, 30, 4, 22, 8)
        value = one(s, t, batch(*index), same)
        value.backward()
        for rank, (mine, theirs) in enumerate([(slice(0, 3), slice(3, 6)), (slice(3, 6), slice(0, 3))]):
            loss = two[rank]
            (contrast,) = loss.contrasts
            with torch.no_grad():
                rest = iter(
                    [
                        torch.tensor(index[theirs]),
                        contrast.embed_student(s.features["s2"][theirs].mean((2, 3))),
                        contrast.embed_teacher(t.features["t2"][theirs]),
                    ]
                )

            def gather(x: Tensor, rank: int = rank, rest: Any = rest) -> Tensor:
                return torch.cat([x, next(rest)] if rank == 0 else [next(rest), x])

            local = loss(part(s, mine), part(t, mine), batch(*index[mine]), gather)
            torch.testing.assert_close(local, value)
            local.backward()
        for buffers in zip(one.buffers(), *(loss.buffers() for loss in two), strict=True):
            torch.testing.assert_close(buffers[1], buffers[0])
            torch.testing.assert_close(buffers[2], buffers[0])
    for whole, *halves in zip(one.parameters(), *(loss.parameters() for loss in two), strict=True):
        torch.testing.assert_close(halves[0].grad + halves[1].grad, whole.grad)


def test_the_order_of_the_batch_does_not_matter() -> None:
    (s, t), order = outputs(4, 4), torch.tensor([2, 0, 3, 1])
    shuffled = [Output(o.logits[order], {name: f[order] for name, f in o.features.items()}) for o in (s, t)]
    a, b = build(), build()
    torch.testing.assert_close(a(s, t, batch(3, 6, 9, 12), same), b(*shuffled, batch(9, 3, 12, 6), same))
    for ours, theirs in zip(a.buffers(), b.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision(dtype: torch.dtype) -> None:
    s, t = outputs(5, 6)

    def run(convert: Any, autocast: bool) -> tuple[float, Tensor]:
        loss = build(negatives=2000)
        student = convert(s.features["s2"]).requires_grad_()
        with torch.autocast("cpu", dtype=dtype, enabled=autocast):
            value = loss(
                Output(s.logits, {**s.features, "s2": student}),
                Output(t.logits, {**t.features, "t2": convert(t.features["t2"])}),
                batch(*range(6)),
                same,
            )
        assert value.dtype == torch.float32
        value.backward()
        assert student.grad is not None
        return value.item(), student.grad.float()

    truth, exact = run(lambda x: x.clone(), False)
    for convert, autocast in (
        (lambda x: x.to(dtype), False),
        (lambda x: x.clone(), True),
        (lambda x: x.to(dtype), True),
    ):
        value, gradient = run(convert, autocast)
        assert value == pytest.approx(truth, rel=1e-2)
        assert gradient.norm().item() == pytest.approx(exact.norm().item(), rel=1e-2)


def test_every_parameter_learns() -> None:
    loss = build(stages="all")
    s, t = outputs(6, 4)
    for f in s.features.values():
        f.requires_grad_()
    loss(s, t, batch(0, 1, 2, 3), same).backward()
    assert len(loss.contrasts) == 2
    assert all(p.grad.any() for p in loss.parameters() if p.grad is not None)
    assert all(p.grad is not None for p in loss.parameters())
    assert all(f.grad is not None and f.grad.any() for f in s.features.values())


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, r"crd .*train_labels"),
        (torch.full((5,), -1), r"^crd .*training samples"),
        (torch.full((5,), 2), r"^crd .*exclude_class"),
    ],
)
def test_undefined_losses_are_refused_when_built(labels: Tensor | None, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        build(labels=labels)
    assert "\n" not in str(error.value)
    if labels is not None and labels.max() == 2:
        assert build(labels=labels, exclude_class=False)(*outputs(7, 2), batch(0, 1), same).isfinite()
