"""Two nodes compute what two processes of one machine compute, and a process that dies ends the job at once."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from tests.slurm.jobs import RUN, Site, check_equal, processes_of
from tests.training.test_loop import pair

pytestmark = pytest.mark.slurm

ONLINE = [*RUN, "scheme=online", "train.epochs=12", "train.eval_every_epochs=6", "train.checkpoint_every_epochs=12"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the run by two processes of one machine."""
    place = tmp_path_factory.mktemp("whole") / "run"
    assert [ended.code for ended in pair(ONLINE, place)] == [0, 0]
    (folder,) = (place / "runs").iterdir()
    return folder


@pytest.mark.exhaustive
def test_two_nodes_compute_what_two_processes_of_one_machine_compute(site: Site, whole: Path) -> None:
    job = site.submit(*ONLINE, options="--nodes=2")
    site.completed(job, restarts=0)
    assert "2 x 1 processes: 127.0.0.[1-2]" in site.log(job)
    assert json.loads((site.run_folder() / "results.json").read_text())["processes"] == 2
    check_equal(site.run_folder(), whole)


def test_a_killed_rank_ends_the_job_at_once_and_going_on_works(site: Site, whole: Path) -> None:
    """It ends with the bytes of two processes of one machine, which nothing disturbed."""
    job = site.submit(*ONLINE, "train.checkpoint_every_steps=5", options="--nodes=2")
    site.is_training()
    site.until(lambda: list(site.clone.glob("runs/*/checkpoint.pt")), "a checkpoint")
    (second,) = (process for process in processes_of(site) if process.environ()["RANK"] == "1")
    killed = time.monotonic()
    os.kill(second.pid, signal.SIGKILL)
    facts = site.wait(job)
    assert facts["JobState"] == "FAILED", site.logs()
    assert time.monotonic() - killed < 60 < 600  # its time limit is ten minutes
    assert not (site.run_folder() / "results.json").exists()
    again = site.submit(*ONLINE, "train.checkpoint_every_steps=5", options="--nodes=2")
    site.completed(again, restarts=0)
    assert "resuming from step " in site.log(again)
    assert "2 x 1 processes: 127.0.0.[1-2]" in site.log(again)
    ours = site.run_folder()
    assert json.loads((ours / "results.json").read_text())["processes"] == 2
    for name in ("metrics.jsonl", "model.safetensors", "best/model.safetensors"):
        assert (ours / name).read_bytes() == (whole / name).read_bytes(), name
