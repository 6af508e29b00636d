"""What `kdschemes bench` compares: networks of runs and their forms, each loaded from files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdschemes.deployment.formats import onnx_session
from kdschemes.models import EarlyExit, InputSpec, load_exit_model, load_model


@dataclass(frozen=True)
class Variant:
    """A network in one form: files, the runtime that loads them, and for exits the thresholds.

    `images` are what it is given; `size` is that of its files in bytes. `hue` is what the chart colors it by.
    """

    name: str
    hue: str
    runtime: str
    path: Path
    images: InputSpec
    parameters: int | None
    macs: float | int | None
    size: int
    thresholds: tuple[float, ...] | None = None

    @property
    def form(self) -> str:
        """What distinguishes it from other forms of its network."""
        return self.name.removeprefix(f"{self.hue}, ") if self.name != self.hue else self.runtime

    def load(self, threads: int | None, device: torch.device) -> Callable[[Tensor], Any]:
        """Return it as a function of a batch; torch's threads are set by the caller."""
        if self.runtime != "torch":
            return onnx_session(self.path, threads)
        network: nn.Module
        if self.thresholds is None:
            network = plain = load_model(self.path)
        else:
            exits = load_exit_model(self.path)
            network, plain = EarlyExit(exits, self.thresholds), exits.network
        plain.accept(self.images)
        return network.to(device).eval()


def memory_of(variant: Variant, batch: Tensor) -> int | None:
    """Return the bytes by which loading a variant and running a batch on one thread raises this process's peak memory.

    None where the system does not tell. It is to be called once in a process, which has imported the libraries.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        return None

    def kilobytes(key: str) -> int:
        return int(status.read_text().partition(f"{key}:")[2].split()[0])

    torch.set_num_threads(1)
    before = kilobytes("VmRSS")
    with torch.no_grad():
        variant.load(1, torch.device("cpu"))(batch)
    return 1024 * (kilobytes("VmHWM") - before)
