"""Resources of workers: how many run at once, and the cores, GPU and memory of each."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import psutil
import torch

from kdschemes.config import Config

SHARE = 0.8
"""Default fraction of the free memory that all workers may take."""

CPU_WORKERS = 2
"""Default number of workers on a machine without a GPU."""

DEVICES = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True, kw_only=True)
class Slot:
    """A place for one worker: its cores, and its additions to this process's environment."""

    cores: list[int]
    environment: Mapping[str, str]


def make_slots(workers: int | None, configs: Sequence[Config]) -> list[Slot]:
    """Return one slot per worker: equal shares of the cores and, in turn, one of the GPUs.

    By default there is one worker per GPU; on CPU there are two, or one if there is only one core.
    """
    gpus = _gpus(configs)
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    count = workers or len(gpus) or min(CPU_WORKERS, len(cores))
    return [
        Slot(cores=share, environment={DEVICES: gpus[number % len(gpus)]} if len(gpus) > 1 else {})
        for number, share in enumerate(shares(cores, count))
    ]


def shares(cores: Sequence[int], workers: int) -> list[list[int]]:
    """Return the cores of each worker: equal parts, or one each in turn if there are more workers than cores."""
    if workers >= len(cores):
        return [[cores[number % len(cores)]] for number in range(workers)]
    cuts = [number * len(cores) // workers for number in range(workers + 1)]
    return [list(cores[start:end]) for start, end in itertools.pairwise(cuts)]


def free_bytes(configs: Sequence[Config]) -> float:
    """Return the memory that all workers may take: most of the free memory of the device on which they train."""
    gpus = _gpus(configs)
    free = sum(torch.cuda.mem_get_info(number)[0] for number in range(len(gpus))) if gpus else 0
    return SHARE * (free or psutil.virtual_memory().available)


def _gpus(configs: Sequence[Config]) -> list[str]:
    """Return the GPUs that runs may use, as the environment names them; none if all runs are on CPU."""
    if not torch.cuda.is_available() or all(config.device == "cpu" for config in configs):
        return []
    count = torch.cuda.device_count()
    named = [name for name in os.environ.get(DEVICES, "").split(",") if name]
    return named[:count] or [str(number) for number in range(count)]
