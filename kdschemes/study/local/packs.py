"""Packs: runs of a study trained in one process, as many as fit in memory while all workers stay busy."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from kdschemes.config import Config
from kdschemes.config.code import parse_code
from kdschemes.config.data import ImageFolder
from kdschemes.config.models import REGISTERED
from kdschemes.errors import UserError
from kdschemes.models import count_macs, create_model
from kdschemes.study.spec import StudyRun
from kdschemes.training.packing import is_packable, pack_key

FLOAT = 4

STATES = {"sgd": 1, "adamw": 2}
"""Optimizer state tensors per trained tensor."""

PROCESS = 1 << 30
"""Bytes of a worker besides its runs: the libraries, the data, the activations of one network at a time."""

CLASSES = 100
"""Number of classes assumed for a network's size if the data must be read to know it."""

OWN = 20_000_000
"""Parameters and multiply-accumulates assumed for a network of the user's, which is not built to plan."""

SIDE = 32
"""Side of the images assumed for a network's work if the data's are small: every model reads them."""

PASSES = 3
"""Cost of training on a batch in forward passes: one forward, and a backward that costs two."""

WORTH_A_SPLIT = 0.97
"""A pack is split if the study then takes at most this fraction of its time."""


@dataclass(frozen=True, kw_only=True)
class Pack:
    """Runs that one process trains on the same batches, in the study's order."""

    runs: tuple[StudyRun, ...]

    @property
    def needs(self) -> frozenset[str]:
        """The folder names of the prerequisites of its runs."""
        return frozenset(need for run in self.runs for need in run.needs)

    @property
    def work(self) -> float:
        """Its total multiply-accumulates: the epochs of all runs, with those of a shared teacher counted once."""
        return sum(run.config.train.epochs * epoch_work(run.config, len(self.runs)) for run in self.runs)

    @property
    def bytes(self) -> float:
        """Estimated memory of its process: its own, the teacher, and each run's."""
        config = self.runs[0].config
        shared = PROCESS + FLOAT * _total(_parameters, _teachers(config), config, config.teacher.image_size)
        return shared + sum(run_bytes(run.config) for run in self.runs)

    def split(self, parts: int) -> list[Pack]:
        """Split it into as few packs as `size` allows, whose sizes differ by at most one."""
        cuts = [round(part * len(self.runs) / parts) for part in range(parts + 1)]
        pieces = [self.runs[start:end] for start, end in itertools.pairwise(cuts)]
        return [Pack(runs=piece) for piece in pieces if piece]


def make_packs(runs: Sequence[StudyRun], *, workers: int, limit: float) -> list[Pack]:
    """Return the packs of runs to train: first those that others wait for, then the longest.

    A pack has runs with equal batches and equal teachers; runs that others wait for are not packed with runs that
    none waits for. No pack takes more than `limit` bytes unless it has a single run, and packs that can run at the
    same time keep `workers` busy.
    """
    needed = {need for run in runs for need in run.needs}
    groups: dict[object, list[StudyRun]] = {}
    for run in runs:
        groups.setdefault((run.folder in needed, _key(run)), []).append(run)
    packs = [part for group in groups.values() for part in _fitting(Pack(runs=tuple(group)), limit)]
    levels = _levels(runs)

    def level(pack: Pack) -> int:
        return max(levels[run.folder] for run in pack.runs)

    def turn(pack: Pack) -> tuple[bool, float]:
        return not any(run.folder in needed for run in pack.runs), -pack.work

    by_level = itertools.groupby(sorted(packs, key=level), key=level)
    return [pack for _, same in by_level for pack in sorted(_balanced(list(same), workers), key=turn)]


def run_bytes(config: Config) -> float:
    """Return the estimated bytes that a run holds in a process while it and others are trained.

    Weights, gradients, optimizer, the copy of the last epoch's weights, moving averages, and banks of samples.
    """
    trained = _total(_parameters, config.scheme.trained_models(config.model.name), config, config.model.image_size)
    averages = (config.train.ema is not None) + config.scheme.averages
    numbers = trained * (3 + STATES.get(config.optim.name, 2) + averages)
    samples = config.data.train_samples
    remembered = CLASSES * config.scheme.keeps_predictions + sum(
        options.bank_size_per_sample for _, options in config.losses.chosen()
    )
    return float(FLOAT * (numbers + samples * remembered))


def epoch_work(config: Config, pack_size: int) -> float:
    """Return the estimated multiply-accumulates of an epoch of a run in a pack of so many runs.

    Three forward passes of what it trains, plus its share of one forward pass of the shared teacher.
    """
    models = config.scheme.trained_models(config.model.name)
    trained = _total(_macs, models, config, config.model.image_size)
    teachers = _total(_macs, _teachers(config), config, config.teacher.image_size)
    return config.data.train_samples * config.data.train_fraction * (PASSES * trained + teachers / pack_size)


def _key(run: StudyRun) -> object:
    config = run.config
    if not is_packable(config):
        return run.folder
    teacher = config.teacher
    images = teacher.mean, teacher.std, teacher.image_size
    taught = (teacher.name, teacher.checkpoint, teacher.pretrained, teacher.precision, images)
    return pack_key(config), run.needs, repr(taught) if config.scheme.uses_teacher else None


def _fitting(pack: Pack, limit: float) -> list[Pack]:
    """Split a pack into as few parts as fit the limit, or into single runs if even that is too much."""
    for parts in range(1, len(pack.runs)):
        pieces = pack.split(parts)
        if all(piece.bytes <= limit for piece in pieces):
            return pieces
    return pack.split(len(pack.runs))


def _balanced(packs: Sequence[Pack], workers: int) -> list[Pack]:
    """Split packs into as few parts as minimize the time of the slowest worker."""
    best = list(packs)
    groups = [[pack] for pack in packs]
    while workers > 1 and any(len(group) < len(pack.runs) for group, pack in zip(groups, packs, strict=True)):
        number = max(
            (number for number, pack in enumerate(packs) if len(groups[number]) < len(pack.runs)),
            key=lambda number: (max(part.work for part in groups[number]), number),
        )
        groups[number] = packs[number].split(len(groups[number]) + 1)
        parts = [part for group in groups for part in group]
        if _longest(parts, workers) <= WORTH_A_SPLIT * _longest(best, workers):
            best = parts
    return best


def _longest(packs: Iterable[Pack], workers: int) -> float:
    """Return the time of the slowest worker if each takes the longest remaining pack."""
    return makespan([0.0] * workers, sorted((pack.work for pack in packs), reverse=True))


def makespan(busy: Sequence[float], tasks: Iterable[float]) -> float:
    """Return when all tasks are done by workers busy until these times, each taking the next task when it is free."""
    free = sorted(busy)
    for task in tasks:
        free[0] += task
        free.sort()
    return free[-1]


def _levels(runs: Sequence[StudyRun]) -> Mapping[str, int]:
    """Return for each run the length of the longest chain of prerequisites among these runs."""
    by_name = {run.folder: run for run in runs}

    @functools.cache
    def level(name: str) -> int:
        return 1 + max((level(need) for need in by_name[name].needs if need in by_name), default=-1)

    return {name: level(name) for name in by_name}


def _teachers(config: Config) -> list[str]:
    names = config.teacher.name if config.scheme.uses_teacher else []
    return names if isinstance(names, list) else [names]


def _total(count: Callable[[str, int], int], models: Iterable[str], config: Config, image_size: int | None) -> int:
    size = image_size or (config.data.image_size if isinstance(config.data, ImageFolder) else SIDE)
    return sum(count(model, size) for model in models)


@functools.cache
def _parameters(model: str, image_size: int) -> int:
    if parse_code(model) is not None or model in REGISTERED:
        return OWN
    return sum(parameter.numel() for parameter in _create(model, image_size).parameters())


@functools.cache
def _macs(model: str, image_size: int) -> int:
    """Return a network's multiply-accumulates per image, or its parameters if it can't process images of that size."""
    if parse_code(model) is not None or model in REGISTERED:
        return OWN
    try:
        with torch.device("meta"):
            return count_macs(_create(model, image_size), 3, image_size)
    except UserError:
        return _parameters(model, image_size)


def _create(model: str, image_size: int) -> torch.nn.Module:
    with torch.device("meta"):
        return create_model(model, num_classes=CLASSES, channels=3, image_size=image_size)
