"""Real runs that get signals: they stop with a checkpoint, and end like runs that nothing disturbed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from kdschemes.models import create_model, save_weights
from kdschemes.training import signals
from kdschemes.training.signals import StopSignal
from tests import REPOSITORY
from tests.images import write_images
from tests.processes import SignalAtBatch, Started, run
from tests.training.test_loop import SMALL, check_equal, checkpoint, run_folder


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


def taught(place: Path) -> list[str]:
    """Return the arguments of a run with a teacher whose weights are in `place`."""
    save_weights(create_model("convnet", num_classes=10, channels=1, image_size=8), place / "teacher", metadata={})
    return ["scheme=offline", "teacher.name=convnet", f"teacher.checkpoint={place / 'teacher'}"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "stops"),
    [
        (["scheme=self", "method=byot"], [2, 5, 10, 40]),  # validation of both epochs, early exit, latency
        pytest.param(  # the peers' weights, the best epoch
            ["scheme=online", "method=kdcl", "scheme.ensemble=general"], [5, 12], marks=pytest.mark.exhaustive
        ),
        (None, [2]),  # the teacher on the validation split
    ],
    ids=["exits", "held out", "teacher"],
)
def test_a_signal_is_heard_before_the_next_batch_of_any_evaluation(
    case: list[str] | None, stops: list[int], tmp_path: Path
) -> None:
    """Each process gets a signal at its n-th batch and ends before another one; what was evaluated is done again."""
    arguments = [*SMALL, "train.eval_batch_size=500", "train.checkpoint_every_epochs=2"]
    arguments += ["train.checkpoint_every_steps=null", *(case or taught(tmp_path))]
    assert run(arguments, tmp_path / "whole").code == 0
    place = tmp_path / "run"
    for count in stops:
        ended = run(arguments, place, SignalAtBatch(signal.SIGTERM, count))
        assert (ended.code, ended.err) == (143, "")
        step = checkpoint(place)["step"]
        assert f"stopped by SIGTERM after step {step}; the same command resumes" in ended.out
        assert (run_folder(place) / "interrupted").exists()
        assert not (run_folder(place) / "results.json").exists()
    ended = run(arguments, place)
    assert (ended.code, ended.err) == (0, "")
    check_equal(place, tmp_path / "whole")


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


@pytest.mark.parametrize("handler", [signal.SIG_DFL, signal.SIG_IGN])
def test_a_hangup_is_a_reason_to_stop_unless_it_is_ignored(handler: signal.Handlers) -> None:
    """`nohup` starts a program with the signal ignored."""
    before = signal.signal(signal.SIGHUP, handler)
    try:
        with StopSignal() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert stop.reason == ("SIGHUP" if handler == signal.SIG_DFL else None)
            assert stop.exit_code == (129 if handler == signal.SIG_DFL else 143)
        assert signal.getsignal(signal.SIGHUP) == handler
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(("patience", "immediately"), [(0.0, True), (60.0, False)])
def test_only_a_later_interrupt_stops_immediately(
    patience: float, immediately: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C reaches a process twice if its launcher forwards it."""
    monkeypatch.setattr(signals, "AGAIN", patience)
    with StopSignal() as stop, pytest.raises(KeyboardInterrupt) if immediately else contextlib.nullcontext():
        signal.raise_signal(signal.SIGINT)
        assert stop.reason == "SIGINT"
        signal.raise_signal(signal.SIGINT)


def hear_hangups() -> None:
    """Undo what `nohup` does."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.mark.slow
def test_a_run_outlives_its_terminal_until_its_checkpoint(tmp_path: Path) -> None:
    terminal, end = os.openpty()
    arguments = ["scheme=supervised", *SMALL, "train.epochs=100", "train.log_every_steps=1"]
    command = [sys.executable, str(REPOSITORY / "run.py"), *arguments]
    streams = {"stdin": end, "stdout": end, "stderr": end}
    with subprocess.Popen(command, cwd=tmp_path, start_new_session=True, preexec_fn=hear_hangups, **streams) as process:
        os.close(end)
        while lines(tmp_path) < 2:
            os.read(terminal, 1000)
        os.close(terminal)  # what the run prints from now on is an error
        step = lines(tmp_path)
        while lines(tmp_path) < step + 5:
            assert process.poll() is None
        process.send_signal(signal.SIGHUP)
    assert process.returncode == 129
    assert checkpoint(tmp_path)["step"] >= 5


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGUSR2, marks=pytest.mark.exhaustive)])
def test_ranks_end_with_their_launcher(number: signal.Signals, tmp_path: Path) -> None:
    arguments = ["scheme=supervised", *SMALL, "device=cpu", "train.epochs=1000", "train.log_every_steps=1"]
    options = ["--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--main_process_port", "0"]
    options += ["--mixed_precision", "no", "--dynamo_backend", "no", str(REPOSITORY / "run.py")]
    launch = [sys.executable, "-m", "accelerate.commands.launch", *options, *arguments]
    with (
        (tmp_path / "out").open("w") as out,
        subprocess.Popen(launch, cwd=tmp_path, stdout=out, stderr=out) as launcher,
    ):
        while lines(tmp_path) < 2:
            assert launcher.poll() is None, (tmp_path / "out").read_text()
            time.sleep(0.01)
        ranks = psutil.Process(launcher.pid).children()
        launcher.send_signal(number)
    assert len(ranks) == 2
    assert not psutil.wait_procs(ranks, timeout=60)[1]
    assert "stopped by the end of its launcher after step " in (tmp_path / "out").read_text()
    assert checkpoint(tmp_path)["step"] >= 2
    assert (run_folder(tmp_path) / "interrupted").exists()
    assert not list(tmp_path.glob("runs/*/lease-*"))
