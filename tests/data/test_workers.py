"""Loading workers: which signals they obey, and what the parent says when one is killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from kdschemes.config.data import ImageFolder
from kdschemes.core.types import Batch
from kdschemes.data import open_data
from kdschemes.data.workers import SIGNALS
from kdschemes.errors import UserError
from tests.images import write_images


@pytest.fixture
def batches(tmp_path: Path) -> Iterator[Batch]:
    """Sixteen batches of one image each from two workers, of which the first has been read."""
    write_images(tmp_path, 8)
    options = ImageFolder(root=str(tmp_path), image_size=8, num_workers=2, val_fraction=0.0)
    data = open_data(options, seed=0, device=torch.device("cpu"))
    batches = data.eval_batches("test", batch_size=1, rank=0, world=1)
    next(batches)
    return batches


def worker() -> multiprocessing.process.BaseProcess:
    """Return one of the workers."""
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    return workers[0]


def test_workers_leave_signals_to_their_parent(batches: Iterator[Batch]) -> None:
    pid, before = worker().pid, signal.getsignal(signal.SIGCHLD)
    assert pid is not None
    for number in SIGNALS - {signal.SIGTERM}:
        os.kill(pid, number)
    os.system(f"kill -TERM {pid}")  # by another process
    assert len(list(batches)) == 15
    assert not multiprocessing.active_children()
    assert not SIGNALS & signal.pthread_sigmask(signal.SIG_BLOCK, ())
    assert signal.getsignal(signal.SIGCHLD) is before is signal.SIG_DFL


def test_the_parent_can_end_its_workers(batches: Iterator[Batch]) -> None:
    ended = worker()
    ended.terminate()
    ended.join(5)
    assert ended.exitcode == 0


@pytest.mark.slow
def test_a_killed_worker_is_one_line(batches: Iterator[Batch]) -> None:
    worker().kill()
    with pytest.raises(UserError, match=r"^a data-loading worker died.*the same command resumes[^\n]*$"):
        list(batches)
