"""The precision of a run: what `auto` chooses, and what bf16 costs on a processor without bf16 instructions."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import PartialState
from torch import nn
from torch.nn import functional

from kdschemes.config import Config
from kdschemes.config.data import OwnData
from kdschemes.distributed.collectives import on_main_process
from kdschemes.models import create_model
from kdschemes.storage.naming import run_name
from kdschemes.storage.own_data import own_images

Precision = Literal["fp32", "bf16"]

_CHOICES: tuple[Precision, ...] = ("fp32", "bf16")

_AUTO_SAMPLES = 32

_SLOW_SAMPLES = 4

_ROUNDS = 3


def choose_precision(config: Config) -> tuple[Config, str]:
    """Return the configuration with a `precision` other than auto, and a line to print about the choice (or "").

    auto is the precision with which this run was started, if it was; else bf16 on a GPU that computes in it, on a CPU
    with bf16 instructions the faster one, and fp32 elsewhere. The main process decides. Nothing of the run changes:
    steps are measured on a network of their own, before the run is seeded.
    """
    cpu = config.device == "cpu" or not torch.cuda.is_available()
    if config.precision != "auto" and not (config.precision == "bf16" and cpu and not has_bf16_instructions()):
        return config, ""
    PartialState(cpu=cpu)
    precision, reason = on_main_process(lambda: _choose(config, cpu=cpu))
    return dataclasses.replace(config, precision=precision), f"precision={config.precision}: {reason}"


def _choose(config: Config, *, cpu: bool) -> tuple[Precision, str]:
    if config.precision == "bf16":
        ratio = step_ratio(config, _SLOW_SAMPLES)
        return "bf16", f"this processor has no bf16 instructions; a step takes {ratio:.1f} times as long as in fp32"
    for started in _CHOICES:
        if (Path(config.output_dir) / run_name(dataclasses.replace(config, precision=started))).exists():
            return started, f"{started}, with which this run was started"
    if not cpu:
        supported = torch.cuda.is_bf16_supported(including_emulation=False)
        return ("bf16", "bf16") if supported else ("fp32", "fp32, because this GPU does not compute in bf16")
    if not has_bf16_instructions():
        return "fp32", "fp32, because this processor has no bf16 instructions"
    ratio = step_ratio(config, min(_AUTO_SAMPLES, config.train.batch_size))
    faster: Precision = "bf16" if ratio < 1.0 else "fp32"
    return faster, f"{faster}; a step in bf16 takes {ratio:.2f} times as long as in fp32"


def has_bf16_instructions() -> bool:
    """Return whether this processor multiplies bf16 numbers in hardware, and torch uses it."""
    if torch.backends.cpu.get_cpu_capability() == "AVX512":
        return bool(torch.cpu._is_avx512_bf16_supported())
    return "AVX" not in torch.backends.cpu.get_cpu_capability() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def step_ratio(config: Config, samples: int) -> float:
    """Return the time of a forward and backward pass of the network on the CPU in bf16, divided by that in fp32.

    It is processor time on one thread, which depends least on what else the machine does.
    """
    data: Any = own_images(config.data) if isinstance(config.data, OwnData) else config.data
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        network = create_model(
            config.model.name,
            num_classes=data.num_classes,
            channels=data.channels,
            image_size=data.image_size,
            kwargs=config.model.kwargs,
        ).train()
        images = torch.randn(samples, data.channels, data.image_size, data.image_size)
        if config.train.channels_last:
            network.to(memory_format=torch.channels_last)
            images = images.to(memory_format=torch.channels_last)
        rounds = [[_seconds(network, images, bf16=bf16) for bf16 in (True, False)] for _ in range(_ROUNDS)]
    torch.set_num_threads(threads)
    bf16, fp32 = (min(times) for times in zip(*rounds, strict=True))
    return float(bf16 / fp32)


def _seconds(network: nn.Module, images: torch.Tensor, *, bf16: bool) -> float:
    labels = torch.zeros(len(images), dtype=torch.long)
    started = time.process_time()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        logits = network(images)
    torch.autograd.backward(functional.cross_entropy(logits.float(), labels))
    return time.process_time() - started
