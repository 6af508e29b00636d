"""Who trains what when, and packs that cannot be started."""

from __future__ import annotations

import os
import queue
import re
import signal
import time
from pathlib import Path

import pytest
import yaml

from kdschemes.storage.lease import Lease
from kdschemes.study.local.packs import Pack, make_packs
from kdschemes.study.local.resources import Slot
from kdschemes.study.local.run import to_run
from kdschemes.study.local.scheduler import BUDGET, Scheduler
from kdschemes.study.local.workers import Messages, Worker
from kdschemes.study.record import read_failures, write_failures
from kdschemes.study.run_logs import failed_in_pack
from kdschemes.study.status import Row, Status
from kdschemes.training.signals import StopSignal
from tests.study.local.cases import TEXT, by_name, opened

SLOT = Slot(cores=[0], environment={})


def test_only_what_is_left_and_what_it_needs_is_run(tmp_path: Path) -> None:
    study, runs = opened(tmp_path)
    names = by_name(runs)

    def left(**states: str) -> list[str]:
        rows = []
        for run, entry in zip(runs, study.entries, strict=True):
            name = next(name for name, other in names.items() if other is run)
            job = "7_0" if states.get(name) in ("queued", "running") else None
            rows.append(Row(entry=entry, state=states.get(name, "not begun"), job=job))
        found = to_run(runs, Status(study=study, rows=tuple(rows), asked=True))
        return [name for name, run in names.items() if run in found]

    assert left() == ["teacher", "kd", "soft", "ce", "wide"]
    assert left(kd="finished", soft="finished", wide="failed") == ["ce", "wide"]
    assert left(teacher="finished", kd="interrupted", ce="finished") == ["kd", "soft", "wide"]
    assert left(teacher="queued", wide="running") == ["ce"]


def test_nothing_is_begun_after_a_signal_or_the_end_of_the_budget(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study, runs = opened(tmp_path)
    packs = make_packs(runs, workers=1, limit=1e12)
    with StopSignal() as stop:
        late = Scheduler(study, packs, [SLOT], finished=[], stop=stop, deadline=time.monotonic())
        late.run()
        signal.raise_signal(signal.SIGTERM)
        asked = Scheduler(study, packs, [SLOT], finished=[], stop=stop)
        asked.run()
    assert (late.ended, asked.ended) == (BUDGET, signal.SIGTERM)
    assert late.failed == late.stopped == asked.failed == asked.stopped == {}
    assert list((study.folder / "logs").iterdir()) == []
    assert capsys.readouterr().out == ""


def test_runs_whose_teacher_failed_are_not_started(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study, runs = opened(tmp_path)
    names = by_name(runs)
    students = [names["kd"], names["soft"]]
    write_failures(study.folder, {names["teacher"].folder: "no data"})
    with StopSignal() as stop:
        scheduler = Scheduler(study, [Pack(runs=tuple(students))], [SLOT], finished=[], stop=stop)
        scheduler.failed[names["teacher"].folder] = "no data"
        scheduler.run()
    reason = f"not started: it needs '{names['teacher'].label}', which is not finished"
    assert capsys.readouterr().out.splitlines() == [f"[1/5] kd seed=0: {reason}", f"[2/5] soft seed=0: {reason}"]
    assert read_failures(study.folder) == {names["teacher"].folder: "no data"} | {
        run.folder: reason for run in students
    }


def test_a_run_that_another_process_holds_is_waited_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study, runs = opened(tmp_path)
    run = by_name(runs)["ce"]
    folder = study.output / run.folder
    folder.mkdir()
    lease = Lease(folder)
    assert lease.acquire(asked=lambda: False)
    with StopSignal() as stop:
        deadline = time.monotonic() + 1.5
        scheduler = Scheduler(study, [Pack(runs=(run,))], [SLOT], finished=[], stop=stop, deadline=deadline)
        scheduler.run()
    lease.release()
    assert scheduler.ended == BUDGET
    told = capsys.readouterr().out
    assert re.fullmatch(rf"ce seed=0 is being trained by process {os.getpid()} on \S+: waiting for it\n", told)


def test_what_a_pack_says_of_runs_that_left_it(tmp_path: Path) -> None:
    log = tmp_path / "pack-1.out"
    log.write_text(
        "7 runs together\na-1 ends: loss ce is not finite at step 3\nepoch 1  validation\nb-2 ends: no space\n"
    )
    assert failed_in_pack(log) == {"a-1": "loss ce is not finite at step 3", "b-2": "no space"}
    assert failed_in_pack(tmp_path / "none") == {}


def test_a_worker_ends_when_nobody_gives_orders_any_more(tmp_path: Path) -> None:
    messages: Messages = queue.SimpleQueue()
    closed, killed = (Worker(messages, tmp_path / f"{name}.out", {}, None) for name in ("closed", "killed"))
    closed.close()
    killed.process.send_signal(signal.SIGKILL)
    heard = [messages.get(timeout=60) for _ in range(2)]
    assert {id(worker) for worker, _ in heard} == {id(closed), id(killed)}
    assert [said for _, said in heard] == [None, None]
    assert (closed.ending, killed.ending) == ("ended with exit code 0", "was ended by SIGKILL")
    killed.give({"runs": []})
    killed.close()
    assert (tmp_path / "closed.out").read_text() == ""


def test_the_text_is_a_study(tmp_path: Path) -> None:
    assert set(by_name(opened(tmp_path)[1])) == {"teacher", *yaml.safe_load(TEXT)["variants"]}
