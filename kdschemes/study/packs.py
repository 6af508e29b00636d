"""Packs: runs of a study that one process trains in lockstep, as many as fit its memory and keep all workers busy."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from kdschemes.config import Config
from kdschemes.lockstep import alone, common
from kdschemes.models import create_model
from kdschemes.study.file import StudyRun

FLOAT = 4
STATES = {"sgd": 1, "adamw": 2}
"""Tensors of an optimizer for each trained one."""
PROCESS = 1 << 30
"""Bytes of a worker beside its runs: the libraries, the data, the activations of one network at a time."""
CLASSES = 100
"""Classes that a network's size is estimated for, where the data's own are not known before it is read."""
SAMPLES = {"digits": 1_437, "fashion_mnist": 60_000, "cifar10": 50_000, "cifar100": 50_000, "image_folder": 1_281_167}
"""Training images, for memories that hold a row for each."""
ROW = 128
"""Numbers in a row of a memory of embeddings."""
WORTH_A_SPLIT = 0.97
"""A pack is split where the study then takes no more than this share of its time."""


@dataclass(frozen=True, kw_only=True)
class Pack:
    """Runs that one process trains side by side, in the study's order."""

    runs: tuple[StudyRun, ...]

    @property
    def needs(self) -> frozenset[str]:
        """The folders' names of the runs that must be finished before."""
        return frozenset(need for run in self.runs for need in run.needs)

    @property
    def work(self) -> float:
        """How long it takes, in epochs of a network: those of all runs, and once those of their teacher."""
        teacher = max((run.config.train.epochs for run in self.runs if run.config.scheme.uses_teacher), default=0)
        return teacher + sum(run.config.train.epochs * len(trained_networks(run.config)) for run in self.runs)

    def split(self, parts: int) -> list[Pack]:
        """Return packs of as many runs as possible each, whose sizes differ by one at most."""
        cuts = [round(part * len(self.runs) / parts) for part in range(parts + 1)]
        pieces = [self.runs[start:end] for start, end in itertools.pairwise(cuts)]
        return [Pack(runs=piece) for piece in pieces if piece]


def make_packs(
    runs: Sequence[StudyRun], *, workers: int, limit: float, state_bytes: Callable[[Config], float] | None = None
) -> list[Pack]:
    """Return the packs of runs that are to be trained, those that others wait for first, then the longest.

    One pack are runs with equal batches and equal teachers. None needs more than `limit` bytes by `state_bytes` of its
    runs (default: `run_bytes`), unless it is of one run, and packs that can run at the same time keep `workers` busy.
    """
    state_bytes = state_bytes or run_bytes
    groups: dict[object, list[StudyRun]] = {}
    for run in runs:
        groups.setdefault(_key(run), []).append(run)
    packs = [part for group in groups.values() for part in _fitting(Pack(runs=tuple(group)), limit, state_bytes)]
    by_level: dict[int, list[Pack]] = {}
    levels = _levels(runs)
    for pack in packs:
        by_level.setdefault(max(levels[run.folder] for run in pack.runs), []).append(pack)
    needed = {need for run in runs for need in run.needs}
    return [
        pack
        for level in sorted(by_level)
        for pack in sorted(
            _balanced(by_level[level], workers),
            key=lambda pack: (not any(run.folder in needed for run in pack.runs), -pack.work),
        )
    ]


def run_bytes(config: Config) -> float:
    """Return about how many bytes a run holds in a process while it and others are trained.

    Weights, gradients, optimizer, the copy of the last epoch's weights, moving averages, and memories of samples.
    """
    trained = sum(_parameters(name, _image_size(config)) for name in trained_networks(config))
    averages = (config.train.ema is not None) + (config.scheme.method in ("ema", "pcl"))
    numbers = trained * (3 + STATES[config.optim.name] + averages)
    samples = SAMPLES[config.data.name]
    rows = CLASSES * (config.scheme.method == "pskd")
    rows += 2 * ROW * any(options.name == "crd" for _, options in config.losses.chosen())
    return float(FLOAT * (numbers + samples * rows))


def trained_networks(config: Config) -> list[str]:
    """Return the models that a run trains."""
    peers = getattr(config.scheme, "peers", 1)
    return list(peers) if isinstance(peers, list) else [config.model.name] * peers


def _key(run: StudyRun) -> object:
    config = run.config
    if alone(config):
        return run.folder
    teacher = config.teacher
    taught = (teacher.name, teacher.checkpoint, teacher.pretrained, teacher.precision)
    return common(config), run.needs, repr(taught) if config.scheme.uses_teacher else None


def _fitting(pack: Pack, limit: float, state_bytes: Callable[[Config], float]) -> list[Pack]:
    """Return a pack in as few parts as fit the limit."""
    config = pack.runs[0].config
    names = config.teacher.name if isinstance(config.teacher.name, list) else [config.teacher.name]
    shared = PROCESS
    if config.scheme.uses_teacher:
        shared += FLOAT * sum(_parameters(name, _image_size(config)) for name in names)
    own = sum(state_bytes(run.config) for run in pack.runs)
    parts = math.ceil(own / (limit - shared)) if limit > shared else len(pack.runs)
    return pack.split(min(max(parts, 1), len(pack.runs)))


def _balanced(packs: Sequence[Pack], workers: int) -> list[Pack]:
    """Split packs in halves as long as that makes the slowest of the workers faster."""
    packs = list(packs)
    while workers > 1:
        now = _longest(packs, workers)
        tries = [
            [*packs[:number], *pack.split(2), *packs[number + 1 :]]
            for number, pack in enumerate(packs)
            if len(pack.runs) > 1
        ]
        best = min(tries, key=lambda parts: _longest(parts, workers), default=packs)
        if _longest(best, workers) > WORTH_A_SPLIT * now:
            break
        packs = best
    return packs


def _longest(packs: Iterable[Pack], workers: int) -> float:
    """Return the time of the slowest worker, where each takes the longest pack that is left."""
    return makespan([0.0] * workers, sorted((pack.work for pack in packs), reverse=True))


def makespan(busy: Sequence[float], tasks: Iterable[float]) -> float:
    """Return when all is done by workers that are busy so long, each taking the next task when it is free."""
    free = sorted(busy)
    for task in tasks:
        free[0] += task
        free.sort()
    return free[-1]


def _levels(runs: Sequence[StudyRun]) -> Mapping[str, int]:
    """Return how many runs of these, one after the other, come before each."""
    by_name = {run.folder: run for run in runs}

    @functools.cache
    def level(name: str) -> int:
        return 1 + max((level(need) for need in by_name[name].needs if need in by_name), default=-1)

    return {name: level(name) for name in by_name}


def _image_size(config: Config) -> int:
    return int(getattr(config.data, "image_size", 32))


@functools.cache
def _parameters(model: str, image_size: int) -> int:
    with torch.device("meta"):
        network = create_model(model, num_classes=CLASSES, channels=3, image_size=image_size)
    return sum(parameter.numel() for parameter in network.parameters())
