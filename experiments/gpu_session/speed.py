"""Part (b): our training loop against a bare loop and timm's distillation task, interleaved in one process.

All train the 1.2 M convnet under a ResNet-18 in bf16, with KD at alpha .9 and T 4 and SGD, on the same views.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from experiments.bench import OFFLINE, build, timed, train_one_epoch
from experiments.bench_students import MOST, students
from experiments.gpu_session.record import Item, Outcome, Task, run_part
from kdschemes.core.frozen import Frozen
from kdschemes.core.nodes import Network
from kdschemes.core.types import Batch
from kdschemes.schemes import build_scheme
from kdschemes.training.run import Run

ALPHA, TEMPERATURE = 0.9, 4.0

SMALL = ("teacher=resnet20", "model=resnet20")
"""The networks of a rehearsal."""

Contenders = Mapping[str, Callable[[int], object]]
"""What trains one epoch, given its number, by name."""


def items(task: Task) -> Mapping[str, Item]:
    """Return the comparisons, those without compilation, which takes long, first."""
    found: dict[str, Item] = {}
    for compiled in (False, True):
        for channels_last in (True, False):
            words = f"{'channels_last' if channels_last else 'contiguous'}{', compiled' if compiled else ''}"
            variant = [f"train.channels_last={str(channels_last).lower()}", f"train.compile={str(compiled).lower()}"]
            found[f"1 student, {words}"] = partial(one_student, variant=variant)
            found[f"20 students, {words}"] = partial(many_students, variant=variant)
    if task.rehearse:  # compiling takes minutes on a CPU
        return {name: item for name, item in found.items() if "compiled" not in name and "contiguous" not in name}
    order = sorted(found, key=lambda name: ("compiled" in name, "contiguous" in name, name))
    return {name: found[name] for name in order}


def sizes(task: Task) -> tuple[str, int, int, int]:
    """Return the precision, the samples of a step, the steps of a round and the rounds."""
    return ("fp32", 4, 1, 1) if task.rehearse else ("bf16", 128, 40, 5)


def one_student(task: Task, *, variant: Sequence[str]) -> Outcome:
    """Compare one student: ours, a bare loop, timm's task (if this timm has it)."""
    precision, size, steps, rounds = sizes(task)
    small = SMALL if task.rehearse else ()
    with tempfile.TemporaryDirectory() as folder:
        run = build(precision, size, steps, Path(folder), (*OFFLINE, *small, *variant))
        contenders: dict[str, Callable[[int], object]] = {
            "ours": partial(train_one_epoch, [run]),
            "bare": bare_loop(run, 1),
        }
        if (loop := timm_loop(run)) is not None:
            contenders["timm"] = loop
        found = interleaved(contenders, rounds)
    return outcome(found, size * steps, {f"{name}/ours": (name, "ours") for name in contenders if name != "ours"})


def many_students(task: Task, *, variant: Sequence[str]) -> Outcome:
    """Compare 20 students under one teacher: packed, a bare loop that shares the teacher, and 20 times one student."""
    precision, size, steps, rounds = sizes(task)
    steps = max(1, steps // 8)
    variant = [*(SMALL if task.rehearse else ()), *variant]
    with tempfile.TemporaryDirectory() as folder:
        runs = students(precision, size, steps, Path(folder), variant, 2 if task.rehearse else MOST)
        single = build(precision, size, steps, Path(folder) / "single", (*OFFLINE, *variant))
        count = len(runs)
        contenders: dict[str, Callable[[int], object]] = {
            "ours": partial(train_one_epoch, runs),
            "bare": bare_loop(single, count),
            "one of ours": partial(train_one_epoch, [single]),
        }
        if (loop := timm_loop(single)) is not None:
            contenders["one of timm's"] = loop
        found = interleaved(contenders, rounds)
    for name in ("one of ours", "one of timm's"):
        if name in found:
            found[f"{count} times {name}"] = [count * seconds for seconds in found.pop(name)]
    pairs = {f"{name}/ours": (name, "ours") for name in found if name != "ours"}
    return outcome(found, size * steps * count, pairs)


def interleaved(contenders: Contenders, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each contender's epochs, one after the other in each round; the first does not count."""
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, work in contenders.items():
            seconds = timed(partial(work, number))
            if number:
                found[name].append(seconds)
    return found


def outcome(found: Mapping[str, Sequence[float]], images: int, pairs: Mapping[str, tuple[str, str]]) -> Outcome:
    """Return images/s (student images, median of the rounds) and ratios of times (median, and by round)."""
    ratios = {title: [a / b for a, b in zip(found[x], found[y], strict=True)] for title, (x, y) in pairs.items()}
    told: Outcome = {
        "ok": True,
        "images_per_second": {name: round(images / statistics.median(times), 1) for name, times in found.items()},
        "ratio_of_times": {title: round(statistics.median(each), 4) for title, each in ratios.items()},
        "by_round": {title: [round(ratio, 4) for ratio in each] for title, each in ratios.items()},
    }
    if not torch.cuda.is_available():
        return told | {"not_run": "no GPU: measured on the CPU"}
    return told | {"peak_memory_MiB": round(torch.cuda.max_memory_allocated() / 2**20)}


def batches(run: Run, epoch: int) -> Iterator[Batch]:
    """Yield the batches that a run trains on in an epoch."""
    size = run.config.train.batch_size
    plan = run.data.train_steps(epoch, batch_size=size, grad_accum_steps=1, rank=0, world=1, drop_last=False)
    return (batch for (batch,) in plan)


def networks(run: Run) -> tuple[nn.Module, nn.Module]:
    """Return a teacher and a student like a run's, on its device, that nothing else has touched."""
    scheme = build_scheme(run.config, run.data.spec)
    teacher, student = (scheme.node_of(name) for name in ("teacher", "student"))
    assert isinstance(teacher, Frozen)
    assert isinstance(student, Network)
    layout = run.data.memory_format
    frozen = teacher.network.to(run.device).to(memory_format=layout).eval().requires_grad_(False)
    return frozen, student.network.to(run.device).to(memory_format=layout).train()


def autocast(run: Run) -> torch.autocast:
    """Return the context in which networks compute in a run's precision."""
    return torch.autocast(run.device.type, torch.bfloat16, enabled=run.config.precision == "bf16")


def optimizer_of(network: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer of the default options."""
    return torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)


def distillation_loss(logits: Tensor, taught: Tensor, labels: Tensor) -> Tensor:
    """Return .1 cross-entropy + .9 T^2 KL at T = 4, in float32."""
    student, teacher = (log_softmax(each.float() / TEMPERATURE, dim=1) for each in (logits, taught))
    soft = kl_div(student, teacher, log_target=True, reduction="batchmean") * TEMPERATURE**2
    return (1 - ALPHA) * cross_entropy(logits.float(), labels) + ALPHA * soft


def bare_loop(run: Run, count: int) -> Callable[[int], None]:
    """Return a loop with nothing but the steps of `count` students under one teacher."""
    teacher, student = networks(run)
    pupils = [student, *(networks(run)[1] for _ in range(count - 1))]
    optimizers = [optimizer_of(each) for each in pupils]
    if run.config.train.compile:
        for network in (teacher, *pupils):
            network.compile()

    def train(epoch: int) -> None:
        for batch in batches(run, epoch):
            with torch.no_grad(), autocast(run):
                taught = teacher(batch.images)
            for pupil, optimizer in zip(pupils, optimizers, strict=True):
                with autocast(run):
                    logits = pupil(batch.images)
                torch.autograd.backward(distillation_loss(logits, taught, batch.labels))
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

    return train


def timm_loop(run: Run) -> Callable[[int], None] | None:
    """Return a loop over timm's `LogitDistillationTask`; None if this timm has none."""
    try:
        from timm.task import DistillationTeacher, LogitDistillationTask
    except ImportError:
        return None
    teacher, student = networks(run)
    task = LogitDistillationTask(
        student_model=student,
        teacher_model=DistillationTeacher(teacher, device=run.device),
        criterion=nn.CrossEntropyLoss(),
        task_loss_weight=1 - ALPHA,
        temperature=TEMPERATURE,
        device=run.device,
        verbose=False,
    ).train()
    optimizer = optimizer_of(student)
    if run.config.train.compile:
        task.compile()

    def train(epoch: int) -> None:
        for batch in batches(run, epoch):
            with autocast(run):
                loss = task(batch.images, batch.labels)["loss"]
            torch.autograd.backward(loss)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return train


if __name__ == "__main__":
    sys.exit(run_part("speed", items))
