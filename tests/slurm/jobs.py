"""What the tests on SLURM share: submitting as a user does, waiting for jobs, and the run that all of them train."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from experiments.private_slurm import PrivateSlurm
from tests import REPOSITORY
from tests.processes import run

PATIENCE = 400.0
OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE")
FILES = ("config.yaml", "metrics.jsonl", "model.safetensors", "best/model.safetensors")

SITE = """\
export SBATCH_TIMELIMIT=00:10:00
site_environment() {{
    export PATH="{programs}:$PATH" GLOO_SOCKET_IFNAME=lo OMP_NUM_THREADS=1
}}
"""
RUN = [
    "scheme=supervised",
    "device=cpu",
    "data.val_fraction=0.9",
    "data.train_fraction=1",  # 126 training images: 8 steps an epoch
    "train.batch_size=16",
    "train.epochs=60",
    "train.eval_every_epochs=20",
    "train.checkpoint_every_epochs=60",
    "train.checkpoint_every_steps=25",
    "train.log_every_steps=10",
    "train.num_threads=1",
]
"""A run of about seven seconds, after the ten that its start takes."""


class Site:
    """A clone of the repository, a user's own settings in it, and the cluster that it submits to."""

    def __init__(self, cluster: PrivateSlurm, clone: Path) -> None:
        self.cluster = cluster
        self.clone = clone
        clone.mkdir()
        for name in ("run.py", "experiments", "kdschemes"):
            (clone / name).symlink_to(REPOSITORY / name)
        shutil.copytree(REPOSITORY / "slurm", clone / "slurm", ignore=shutil.ignore_patterns("site.sh"))
        (clone / "slurm" / "site.sh").write_text(SITE.format(programs=Path(sys.executable).parent))
        self.environment = cluster.environment | {"PYTHONPATH": str(clone)}

    def shell(self, command: str, *, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command line in the clone as a user types it."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{self.environment['PATH']}"
        return subprocess.run(
            ["bash", "-c", command],
            cwd=self.clone,
            env=self.environment | {"PATH": path},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=check,
            stdin=subprocess.DEVNULL,
        )

    def submit(self, *arguments: str, options: str = "") -> str:
        """Submit a run by `slurm/train.sbatch` and return its job's number."""
        words = " ".join(f"'{word}'" for word in arguments)
        command = f". slurm/site.sh && sbatch --parsable {options} slurm/train.sbatch {words}"
        return self.shell(command).stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """Return what SLURM says of a job."""
        return self.cluster.job(number)

    def until(self, done: Callable[[], object], what: str) -> None:
        """Wait for something; if it does not come, fail with the logs."""
        end = time.monotonic() + PATIENCE
        while not done():
            if time.monotonic() > end:
                raise AssertionError(f"{what} did not come within {PATIENCE:.0f} s; logs:\n{self.logs()}")
            time.sleep(0.05)

    def is_over(self, number: str) -> bool:
        """Return whether a job has ended for good."""
        return self.job(number)["JobState"] in OVER

    def wait(self, number: str) -> dict[str, str]:
        """Wait for a job's end and return what SLURM says of it."""
        self.until(lambda: self.is_over(number), f"the end of job {number}")
        return self.job(number)

    def completed(self, number: str, *, restarts: int) -> None:
        """Wait for a job that must come to its good end after so many restarts."""
        facts = self.wait(number)
        assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", str(restarts)), self.logs()

    def log(self, number: str) -> str:
        """Return the log of a job."""
        path = self.clone / f"kdschemes-{number}.out"
        return path.read_text() if path.exists() else ""

    def logs(self) -> str:
        """Return all logs, and what SLURM has in its queue."""
        texts = [f"{path.name}:\n{path.read_text()}" for path in sorted(self.clone.rglob("*.out"))]
        return "\n".join([*texts, self.cluster.run("squeue", check=False)])

    def lines(self) -> int:
        """Return how many lines the log of the clone's runs has."""
        return sum(path.read_bytes().count(b"\n") for path in self.clone.glob("runs/*/metrics.jsonl"))

    def is_training(self, lines: int = 3) -> None:
        """Wait until a run of the clone has logged some steps."""
        self.until(lambda: self.lines() >= lines, f"line {lines} of metrics.jsonl")

    def run_folder(self) -> Path:
        """Return the folder of the only run."""
        (folder,) = (path for path in (self.clone / "runs").iterdir() if path.name != "studies")
        return folder


def processes_of(site: Site) -> Iterator[psutil.Process]:
    """Yield the training processes of a clone's jobs, not their launchers."""
    for process in psutil.process_iter():
        try:
            if str(site.clone / "run.py") in process.cmdline() and not any(
                "launch" in word for word in process.cmdline()
            ):
                yield process
        except psutil.Error:
            continue


def is_pending(process: psutil.Process, number: signal.Signals) -> bool:
    """Return whether a process that stands still has been sent a signal."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    (mask,) = re.findall(r"^ShdPnd:\s*(\w+)$", status, flags=re.MULTILINE)
    return bool(int(mask, 16) >> (number - 1) & 1)


def undisturbed(place: Path, arguments: list[str]) -> Path:
    """Train a run by `python run.py` in another folder, to its end, and return the run's folder."""
    ended = run(arguments, place)
    assert (ended.code, ended.err) == (0, "")
    (folder,) = (place / "runs").iterdir()
    return folder


def check_equal(ours: Path, theirs: Path) -> None:
    """Compare two finished runs: weights, metrics and configuration by their bytes, results by their numbers."""
    assert ours.name == theirs.name
    for name in FILES:
        assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name
    results = [json.loads((folder / "results.json").read_text()) for folder in (ours, theirs)]
    assert results[0]["heads"] == results[1]["heads"]
    left = {path.name for path in ours.rglob("*") if path.name.startswith("lease-") or path.suffix == ".partial"}
    assert left == set()
    assert not (ours / "interrupted").exists()
