"""Signals to real runs, whatever they do: they stop with a checkpoint, and end like runs that nothing disturbed."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.images import write_images
from tests.processes import Started, run
from tests.training.test_loop import check_equal, checkpoint


def lines(place: Path) -> int:
    """Return how many lines the run's metrics have."""
    return sum(path.read_bytes().count(b"\n") for path in place.glob("runs/*/metrics.jsonl"))


def with_workers(process: Started, place: Path, more: int) -> list[psutil.Process]:
    """Return the loading workers of a run that has written `more` lines to its metrics, once it has two."""
    before = lines(place)
    while True:
        assert process.running
        if lines(place) >= before + more:
            workers = psutil.Process(process.pid).children()
            if len(workers) == 2:
                return workers
        time.sleep(0.001)


@pytest.mark.slow
def test_a_run_with_workers_stops_as_a_group_and_its_workers_end_with_it(tmp_path: Path) -> None:
    """SIGTERM goes to all processes, as SLURM sends it; after SIGKILL of the run alone, no worker remains."""
    write_images(tmp_path / "images", 40)
    arguments = ["scheme=supervised", "data=image_folder", f"data.root={tmp_path / 'images'}", "data.image_size=8"]
    arguments += ["data.num_workers=2", "train.batch_size=8", "train.epochs=2", "train.log_every_steps=1"]
    arguments += ["train.checkpoint_every_steps=1", "train.num_threads=1"]
    assert run(arguments, tmp_path / "whole").code == 0
    place = tmp_path / "run"
    first = Started(arguments, place)
    for process in (*with_workers(first, place, 2), psutil.Process(first.pid)):
        process.terminate()
    ended = first.wait()
    assert (ended.code, ended.err) == (143, "")
    assert checkpoint(place)["step"] >= 2
    second = Started(arguments, place)
    workers = with_workers(second, place, 2)
    second.signal(signal.SIGKILL)
    assert not psutil.wait_procs(workers, timeout=20)[1]
    ended = run(arguments, place)
    assert (ended.code, ended.err) == (0, "")
    check_equal(place, tmp_path / "whole")
