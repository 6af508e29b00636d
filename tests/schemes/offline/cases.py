"""What the tests of the offline methods share."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from kdschemes.core.distillation import Distillation
from kdschemes.core.types import Progress
from tests.losses import oracles
from tests.losses.oracles import Array
from tests.processes import SignalAtFile, run
from tests.schemes.cases import base, batch_for, trained
from tests.schemes.formulas import Seen
from tests.training.test_loop import check_equal, run_folder

TWO_TEACHERS = "teacher.name=[resnet20,convnet]"
LATER = Progress(step=37, total_steps=100, steps_per_epoch=10)
LABELS = torch.tensor([3, 0, 6, 2, 2])
SMALL = [
    "data.val_fraction=0.9",
    "data.train_fraction=1",
    "train.batch_size=32",
    "train.epochs=1",
    "train.num_threads=1",
    "train.checkpoint_every_steps=3",
]


def several_teachers(seen: Seen) -> float:
    """The total of KD from the weighted mean of one or several teachers."""
    config = seen.config
    several = isinstance(config.teacher.name, list)
    teachers = [seen.logits(name) for name in (("teacher0", "teacher1") if several else ("teacher",))]
    weights = config.teacher.weights or [1.0] * len(teachers)
    temperature, alpha = config.losses.response.temperature, config.scheme.alpha
    return oracles.offline_kd(
        seen.logits("student"), teachers, weights, seen.labels, alpha=alpha, temperature=temperature
    )


def hard_and_soft(
    student: Array, target: Array, labels: Sequence[int], *, hard: float, alpha: float, temperature: float
) -> float:
    soft = oracles.kd(student, target, temperature=temperature)
    return hard * oracles.cross_entropy(student, oracles.one_hot(labels, student.shape[1])) + alpha * soft


def steps(scheme: Distillation, seeds: range, momentum: float = 0.0) -> None:
    optimizer = torch.optim.SGD(trained(scheme), lr=0.02, momentum=momentum, weight_decay=0.1)
    for seed in seeds:
        optimizer.zero_grad()
        scheme(batch_for(scheme, seed=seed), LATER).total.backward()
        optimizer.step()
        scheme.after_step()


def logits(seed: int, count: int = 3, samples: int = 5, classes: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(count, samples, classes, generator=generator, dtype=torch.float64)


def check_killed(method: str, weights: dict[str, str], tmp_path: Path) -> None:
    arguments = [*base("offline", method, "convnet"), f"teacher.checkpoint={weights['teacher']}", *SMALL]
    arguments.append(f"model.checkpoint={weights['student']}")
    assert run(arguments, tmp_path / "whole").code == 0
    killed = run(arguments, tmp_path / "run", SignalAtFile(signal.SIGKILL, 4, ("os.rename",)))
    assert killed.code == -signal.SIGKILL
    assert (run_folder(tmp_path / "run") / "checkpoint.pt").exists()
    ended = run(arguments, tmp_path / "run")
    assert (ended.code, ended.err) == (0, "")
    assert "resuming from step" in ended.out
    check_equal(tmp_path / "run", tmp_path / "whole")
