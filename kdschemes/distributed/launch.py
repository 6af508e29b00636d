"""Processes, device, and precision of a run."""

from __future__ import annotations

import os

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin, set_seed

from kdschemes.config import Config
from kdschemes.config.checks import split_keys
from kdschemes.distributed.environment import check_environment, uses_cpu
from kdschemes.errors import UserError
from kdschemes.seeding import make_deterministic

FEW_THREADS = 64
"""Threads that any machine can start."""

PRECISIONS = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}


def start_processes(config: Config) -> Accelerator:
    """Join the processes that were launched together and set device, precision, and threads.

    Raises:
        UserError: fewer processes started than requested; the environment has settings for Accelerate that are
            not honored; there is no GPU; or the device does not support the precision.
    """
    check_environment(config)
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda, but torch sees no GPU here (use device=auto or device=cpu)")
    cpu = config.device == "cpu" or uses_cpu() or not torch.cuda.is_available()
    if cpu and config.precision == "fp16":
        raise UserError("precision=fp16 needs a GPU (on CPU use precision=bf16 or fp32)")
    # `accelerate launch --num_processes N` without --multi_gpu sets a port for N processes and starts one.
    if "MASTER_PORT" in os.environ and "LOCAL_RANK" not in os.environ:
        raise UserError(
            "several processes were requested, but only one started: launch with "
            "`accelerate launch --multi_gpu --num_processes N run.py ...` (on CPU too)"
        )
    _forget_other_precision(PRECISIONS[config.precision])
    accelerator = Accelerator(
        cpu=cpu,
        mixed_precision=PRECISIONS[config.precision],
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),  # else from the environment
        kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
    )
    wanted = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != wanted:
        raise UserError(
            f"{wanted} processes were launched, but {accelerator.num_processes} joined: launch with "
            "`accelerate launch --multi_gpu --num_processes N run.py ...` (on CPU too)"
        )
    for key in split_keys(config) if wanted == 1 else ():
        raise UserError(f"{key} shards weights over processes, but this is one process: launch more or remove it")
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if (config.train.num_threads or 1) > max(FEW_THREADS, os.cpu_count() or 1):
        raise UserError(f"train.num_threads={config.train.num_threads}, but this machine has {os.cpu_count()} cores")
    torch.set_num_threads(config.train.num_threads or max(1, _cores() // here))
    if config.train.deterministic:
        make_deterministic()
    set_seed(config.seed % 2**32)
    return accelerator


def _forget_other_precision(precision: str) -> None:
    """Let this process train in another precision than before: Accelerate's state would keep the first one."""
    shared = AcceleratorState._shared_state
    if shared and shared.get("_mixed_precision") != precision:
        AcceleratorState._reset_state()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
