"""The lease of a folder: one holder; a dead, silent or replaced one is taken over; a lost one writes nothing more."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from kdschemes.errors import UserError
from kdschemes.storage import lease as lease_file
from kdschemes.storage.atomic import atomic_write
from kdschemes.storage.checkpoint import load_state, save_state
from kdschemes.storage.lease import BEATS, FolderLost, Holder, Lease, holder, this_process
from kdschemes.tracking.metrics_log import MetricsLog
from kdschemes.training.run_folder import RunFolder
from kdschemes.training.signals import STOP_NOTICE, StopSignal
from tests.processes import CONTEXT

SECONDS = 0.6


def never() -> bool:
    return False


def taken(folder: Path, **options: Any) -> Lease:
    lease = Lease(folder, SECONDS)
    assert lease.acquire(asked=never, **options)
    return lease


def leave(folder: Path, number: int = 1, beats: int = 0, **changes: Any) -> Holder:
    """Write the lease of another process: one on another machine unless `changes` say otherwise."""
    found = replace(this_process(), **{"place": "another machine", "host": "node7", "pid": 4711} | changes)
    (folder / f"lease-{number}").write_text(f"{json.dumps(asdict(found))}\n{beats:012d}\n")
    return found


def beat(folder: Path, seconds: float) -> None:
    """Give signs of life in a lease, as a process on another machine would."""
    found = leave(folder)
    end = time.monotonic() + seconds
    beats = 0
    while time.monotonic() < end and (folder / "lease-1").exists():
        time.sleep(SECONDS / BEATS)
        beats += 1
        with (folder / "lease-1").open("r+") as file:
            file.write(f"{json.dumps(asdict(found))}\n{beats:012d}\n")
    (folder / "lease-1").unlink(missing_ok=True)


def sit(folder: Path) -> None:
    """Take a folder in a process of its own and stay there."""
    Lease(folder, SECONDS).acquire(asked=never)
    time.sleep(600)


def started(target: Any, *arguments: Any) -> Any:
    process = CONTEXT.Process(target=target, args=arguments)
    process.start()
    while holder(arguments[0]) is None:
        assert process.is_alive()
        time.sleep(0.01)
    return process


def test_a_lease_names_its_holder_and_leaves_nothing_behind(tmp_path: Path) -> None:
    assert holder(tmp_path) is None
    lease = taken(tmp_path)
    found = holder(tmp_path)
    assert found is not None
    assert (found.pid, found.fresh, found.job) == (os.getpid(), True, os.environ.get("SLURM_JOB_ID"))
    lease.verify()
    lease.release()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_living_holder_on_this_machine_is_not_taken_over(tmp_path: Path) -> None:
    process = started(sit, tmp_path)
    try:
        for number in (0, signal.SIGSTOP):  # a paused process is not dead
            os.kill(process.pid, number)
            with pytest.raises(UserError, match=rf"is in use by another process \(process {process.pid} on .*\): wait"):
                Lease(tmp_path, SECONDS).acquire(asked=never)
    finally:
        process.kill()
        process.join()


def test_a_dead_holder_on_this_machine_is_taken_over_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    process = started(sit, tmp_path)
    process.kill()
    process.join()
    before = time.monotonic()
    lease = Lease(tmp_path, 3600.0)
    assert lease.acquire(asked=never)
    assert time.monotonic() - before < 5
    assert [path.name for path in tmp_path.iterdir()] == ["lease-2"]
    assert f"taking over {tmp_path} from process {process.pid} on " in capsys.readouterr().out
    lease.release()


def test_the_number_of_a_dead_holder_given_to_another_process_is_no_sign_of_life(tmp_path: Path) -> None:
    leave(tmp_path, place=this_process().place, pid=os.getpid(), started=this_process().started - 60)
    taken(tmp_path).release()


def test_a_silent_holder_on_another_machine_is_taken_over_after_the_lease_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    leave(tmp_path)
    before = time.monotonic()
    lease = taken(tmp_path)
    assert time.monotonic() - before >= SECONDS
    assert "from process 4711 on node7: it gave no sign of life for 1 s" in capsys.readouterr().out
    lease.release()


def test_a_holder_on_another_machine_that_gives_signs_of_life_is_refused_or_waited_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    process = started(beat, tmp_path, 3.0)
    with pytest.raises(UserError, match=r"in use by another process \(process 4711 on node7\)"):
        Lease(tmp_path, SECONDS).acquire(asked=never)
    lease = taken(tmp_path, wait=True)
    sign = f"{tmp_path} is held by process 4711 on node7: waiting up to 1 s for a sign of life\n"
    assert capsys.readouterr().out.startswith(
        2 * sign
        + f"waiting until process 4711 on node7 that is training in {tmp_path} ends, or gives no sign of life for"
    )
    assert not process.is_alive() or holder(tmp_path) is not None
    lease.verify()
    process.join()
    lease.verify()
    lease.release()


def test_waiting_ends_when_this_process_is_to_stop(tmp_path: Path) -> None:
    lease = taken(tmp_path)
    end = time.monotonic() + 0.5
    assert not Lease(tmp_path, SECONDS).acquire(wait=True, asked=lambda: time.monotonic() > end)
    lease.verify()
    lease.release()


@pytest.mark.parametrize("content", [b"", b"{", b"not JSON\n", b"[]\n000000000001\n", b'{"pid": 3', b"\xff\n\n"])
def test_a_malformed_lease_is_said_and_taken_over_in_moments(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_file, "MALFORMED_SECONDS", 0.2)
    (tmp_path / "lease-3").write_bytes(content)
    lines: list[str] = []
    lease = Lease(tmp_path, 3600.0)
    before = time.monotonic()
    assert lease.acquire(asked=never, say=lines.append)
    assert 0.2 <= time.monotonic() - before < 3
    assert lines == [
        f"{tmp_path} has a lease-3 that names no process: waiting up to 0 s for a sign of life",
        f"taking over {tmp_path} from an unknown process: it gave no sign of life for 0 s",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["lease-4"]
    lease.release()


def test_a_malformed_lease_that_is_still_being_written_is_respected(tmp_path: Path) -> None:
    (tmp_path / "lease-1").touch()
    writer = threading.Timer(0.1, lambda: leave(tmp_path))
    writer.start()
    with pytest.raises(UserError, match="is in use by another process"):
        Lease(tmp_path, SECONDS).acquire(asked=never)
    writer.join()


def test_a_lease_of_another_version_is_watched_for_the_whole_time(tmp_path: Path) -> None:
    (tmp_path / "lease-1").write_text('{"pid": 7, "of a later version": 1}\n000000000003\n')
    before = time.monotonic()
    lease = taken(tmp_path)
    assert time.monotonic() - before >= SECONDS
    lease.release()


STRAY = (
    "lease-1~",
    "lease-",
    "lease-x",
    "lease-01",
    "lease-0",
    "lease--1",
    "lease-٣",
    "lease-1.swp",
    f"lease-{10**200}",
)


@pytest.mark.parametrize("name", STRAY)
def test_a_file_that_is_called_otherwise_does_not_count_and_stays(name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    assert holder(tmp_path) is None
    before = time.monotonic()
    lease = Lease(tmp_path, 3600.0)
    assert lease.acquire(asked=never)
    assert time.monotonic() - before < 2
    lease.verify()
    lease.release()
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("kind", ["folder", "pipe", "broken link"])
def test_what_is_no_file_is_no_lease(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "lease-2"
    {"folder": path.mkdir, "pipe": lambda: os.mkfifo(path), "broken link": lambda: path.symlink_to("nowhere")}[kind]()
    lease = taken(tmp_path)
    assert (tmp_path / "lease-3").is_file()
    lease.verify()
    lease.release()


def _elsewhere(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (shutil.rmtree, "{folder} was deleted or renamed"),
        (_elsewhere, "{folder} was deleted or renamed"),
        (lambda folder: (_elsewhere(folder), folder.touch()), "{folder} was deleted or renamed"),
        (lambda folder: (folder / "lease-1").unlink(), "{folder}/lease-1, by .*, was deleted or renamed"),
        (lambda folder: (folder / "lease-1").rename(folder / "lease-1~"), "{folder}/lease-1, by .*, was deleted or"),
        (lambda folder: (folder / "lease-1").write_text("x"), "{folder}/lease-1, by .*, was changed"),
        (
            lambda folder: (_elsewhere(folder), folder.mkdir(), leave(folder)),
            "{folder} was taken over by process 4711 on",
        ),
    ],
)
def test_what_happened_to_a_folder_is_said_as_what_it_is(
    change: Callable[[Path], object], words: str, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    lease = taken(folder)
    change(folder)
    with pytest.raises(
        FolderLost, match=f"^{words.format(folder=folder)}.*: this process stops and writes nothing more"
    ):
        lease.verify()
    end = time.monotonic() + 20 * SECONDS
    while not lease.lost:
        assert time.monotonic() < end
        time.sleep(0.01)
    lease.release()


@pytest.mark.parametrize("restart", [0, 1])
def test_a_job_takes_its_own_folder_over_only_when_slurm_started_it_again(
    restart: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "main")
    monkeypatch.setenv("SLURM_RESTART_COUNT", str(restart))
    leave(tmp_path, place=this_process().place, pid=os.getppid(), started=_start_of(os.getppid()), job="12", restart=0)
    if restart:
        taken(tmp_path).release()
    else:
        with pytest.raises(UserError, match="job 12"):
            Lease(tmp_path, SECONDS).acquire(asked=never)


def _start_of(pid: int) -> float:
    return float(psutil.Process(pid).create_time())


@pytest.mark.parametrize(
    ("answer", "code", "words"),
    [
        ("JobId=9 JobState=RUNNING Reason=None Requeue=1 Restarts=0 ", 0, None),
        ("JobId=9 JobState=COMPLETING Reason=NonZeroExitCode Restarts=0 ", 0, None),
        ("JobId=9 JobState=RUNNING Reason=None Requeue=1 Restarts=1 ", 0, "SLURM started its job 9 again"),
        ("JobId=9 JobState=NODE_FAIL Reason=None Restarts=0 ", 0, "its job 9 is NODE_FAIL"),
        ("JobId=9 JobState=CANCELLED Reason=None Restarts=0 ", 0, "its job 9 is CANCELLED"),
        ("slurm_load_jobs error: Invalid job id specified", 1, "SLURM no longer knows its job 9"),
        ("slurm_load_jobs error: Unable to contact slurm controller", 1, None),
    ],
)
def test_the_word_of_the_scheduler_on_another_job(
    answer: str, code: int, words: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "scontrol"
    script.write_text(f'#!/bin/sh\n[ "$*" = "-o show job 9" ] || exit 3\necho "{answer}" >&{1 + code}\nexit {code}\n')
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "main")
    monkeypatch.setenv("SLURM_JOB_ID", "10")
    before = replace(this_process(), job="9", restart=0)
    assert lease_file._scheduler_says(before, this_process()) == words
    elsewhere = replace(before, cluster="other")
    assert lease_file._scheduler_says(elsewhere, this_process()) is None


def test_one_of_many_takes_a_folder_over(tmp_path: Path) -> None:
    leave(tmp_path)
    count = 4
    with CONTEXT.Pool(count) as pool:
        winners = pool.map(_try, [(tmp_path, 2.0)] * count, chunksize=1)
    assert sorted(winners) == [False] * (count - 1) + [True]


def _try(task: tuple[Path, float]) -> bool:
    folder, seconds = task
    lease = Lease(folder, SECONDS)
    try:
        won = lease.acquire(asked=never)
    except UserError:
        won = False
    time.sleep(seconds)
    lease.release()
    return won


def test_who_lost_a_folder_puts_nothing_in_place(tmp_path: Path) -> None:
    stop = StopSignal()
    with RunFolder(tmp_path, stop) as first:
        save_state(tmp_path / "state.pt", {"step": 1})
        log = MetricsLog(tmp_path / "metrics.jsonl")
        log.write({"step": 1})
        _take_by_force(tmp_path)
        other = CONTEXT.Process(target=_go_on, args=(tmp_path / "metrics.jsonl", log.offset))
        other.start()
        other.join()
        taken_over = rf"{tmp_path} was taken over by process \d+ on .*: this process stops"
        with pytest.raises(FolderLost, match=taken_over):
            log.write({"step": 99})
        log.close()
        with pytest.raises(FolderLost, match=taken_over):
            save_state(tmp_path / "state.pt", {"step": 2})
        assert first.lost
        with pytest.raises(FolderLost):
            atomic_write(tmp_path / "best" / "x", b"")
        with pytest.raises(FolderLost):
            first.verify()
    assert load_state(tmp_path / "state.pt")["step"] == 1
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n'
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lease-2", "metrics.jsonl", "state.pt"]


def test_a_file_half_put_in_place_when_the_folder_was_lost_stays_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process is paused after it made sure of the folder, and continues when another one has taken it over."""
    sure = Lease.verify

    def verify(lease: Lease) -> None:
        sure(lease)
        _take_by_force(tmp_path)

    monkeypatch.setattr(Lease, "verify", verify)
    with RunFolder(tmp_path, StopSignal()):
        with pytest.raises(UserError):
            atomic_write(tmp_path / "file", b"of the one that was lost")
        monkeypatch.setattr(Lease, "verify", sure)
    assert [path.name for path in tmp_path.iterdir()] == ["lease-2"]


def _go_on(path: Path, offset: int) -> None:
    log = MetricsLog(path, offset=offset)
    log.write({"step": 2})
    log.close()


def _take_by_force(folder: Path) -> None:
    """Take a folder over from this very process as another one does: the next number, then the old files away."""
    leave(folder, 2, place=this_process().place, pid=os.getpid(), started=this_process().started)
    (folder / "lease-1").unlink(missing_ok=True)
    for leftover in folder.rglob("*.partial"):
        leftover.unlink()


def test_a_beating_holder_notices_that_it_lost(tmp_path: Path) -> None:
    lease = taken(tmp_path)
    _take_by_force(tmp_path)
    end = time.monotonic() + 20 * SECONDS
    while not lease.lost:
        assert time.monotonic() < end
        time.sleep(0.01)
    lease.release()
    assert [path.name for path in tmp_path.iterdir()] == ["lease-2"]


def test_a_process_that_waits_for_a_folder_stops_and_notifies_its_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(STOP_NOTICE, str(tmp_path / "told"))
    (tmp_path / "run").mkdir()
    lease = taken(tmp_path / "run")
    for late, word in ((True, "waiting"), (False, "starting")):
        stop = StopSignal()
        if late:
            timer = threading.Timer(0.5, lambda stop=stop: setattr(stop, "received", signal.SIGUSR2))
            timer.start()
        else:
            stop.received = signal.SIGUSR2
        with pytest.raises(SystemExit) as stopped, RunFolder(tmp_path / "run", stop, wait=True):
            pass
        assert stopped.value.code == 128 + signal.SIGUSR2
        assert (tmp_path / "told").read_text() == f"{word} 0\n"
    lease.release()
