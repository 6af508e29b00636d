"""Workers in several processes at once, and how close what they computed is to what one computed."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests import REPOSITORY

SECONDS = 600
Results = list[dict[str, Any]]


def launch(world: int, folder: Path, worker: str, *arguments: str) -> Results:
    """Run a worker in `world` processes at once and return what each one wrote."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    common = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, "-m", worker, str(folder), *arguments]
    processes, logs = [], [folder / f"{rank}.log" for rank in range(world)]
    for rank in range(world):
        with logs[rank].open("w") as log:
            environment = os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT))
    end = time.monotonic() + SECONDS
    try:
        while any(p.poll() is None for p in processes) and not any(p.poll() for p in processes):
            assert time.monotonic() < end, f"the processes hang: {[log.read_text()[-2000:] for log in logs]}"
            time.sleep(0.1)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    failed = [log.read_text()[-4000:] for log, process in zip(logs, processes, strict=True) if process.returncode > 0]
    assert not failed, "\n".join(failed)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world)]


def close(several: dict[str, Tensor], one: dict[str, Tensor]) -> None:
    assert several.keys() == one.keys()
    for name, value in one.items():
        scale = value.double().abs().max().item() if value.numel() else 0.0
        torch.testing.assert_close(
            several[name], value, rtol=1e-8, atol=1e-9 * scale + 1e-13, msg=lambda text, name=name: f"{name}: {text}"
        )
