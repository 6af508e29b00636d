"""Who trains what when: places for workers, the time that is left, what is told, and packs that can't be started."""

from __future__ import annotations

import os
import queue
import re
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from kdschemes.config.load import load_config
from kdschemes.storage.lease import Lease
from kdschemes.study.local import resources as slots
from kdschemes.study.local.console import StudyConsole, duration, result_line
from kdschemes.study.local.eta import Speed
from kdschemes.study.local.packs import Pack, epoch_work, make_packs
from kdschemes.study.local.resources import Slot, free_bytes, make_slots, shares
from kdschemes.study.local.run import to_run
from kdschemes.study.local.scheduler import BUDGET, Scheduler
from kdschemes.study.local.workers import Messages, Worker
from kdschemes.study.prerequisites import with_prerequisites
from kdschemes.study.record import Study, read_failures, remember, write_failures
from kdschemes.study.run_logs import failed_in_pack
from kdschemes.study.spec import StudyRun, read_study
from kdschemes.study.status import Row, Status
from kdschemes.training.signals import StopSignal

SLOT = Slot(cores=[0], environment={})
TEXT = """
question: Does a teacher help?
base: {scheme: offline, teacher: resnet20, model: convnet, train.epochs: 4}
variants: {kd: {}, soft: {scheme.alpha: 1}, ce: {scheme: supervised}, wide: {scheme: supervised, model: resnet56}}
"""


def opened(folder: Path) -> tuple[Study, list[StudyRun]]:
    (folder / "mine.yaml").write_text(TEXT)
    file = read_study(folder / "mine.yaml", [f"output_dir={folder / 'runs'}"], recipes=folder)
    runs = with_prerequisites(file)
    study = remember(folder / "runs" / "studies" / "mine", file, runs)
    (study.folder / "logs").mkdir(parents=True)
    return study, runs


def by_name(runs: Sequence[StudyRun]) -> dict[str, StudyRun]:
    return {"teacher" if run.earlier else run.label.removesuffix(" seed=0"): run for run in runs}


def test_cores_are_shared_equally() -> None:
    assert shares([0, 1, 2, 3], 2) == [[0, 1], [2, 3]]
    assert shares([4, 5, 6, 7, 8], 3) == [[4], [5, 6], [7, 8]]
    assert shares([3, 5], 4) == [[3], [5], [3], [5]]
    assert shares([3], 1) == [[3]]


def test_places_on_a_machine_without_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = load_config(["device=cpu"], recipes=tmp_path)
    cores = sorted(os.sched_getaffinity(0))
    assert [slot.cores for slot in make_slots(3, [config])] == shares(cores, 3)
    assert len(make_slots(None, [config])) == min(slots.CPU_WORKERS, len(cores))
    assert all(slot.environment == {} for slot in make_slots(3, [config]))
    assert 0 < free_bytes([config]) < 1e13


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.4, "0 s"), (99.0, "99 s"), (100.0, "2 min"), (5900.0, "98 min"), (6000.0, "1 h 40 min"), (1e5, "27 h 47 min")],
)
def test_durations(seconds: float, told: str) -> None:
    assert duration(seconds) == told


def test_the_line_of_a_run_names_the_test_set_else_validation() -> None:
    results = {
        "primary_head": "student",
        "train_seconds": 130.0,
        "heads": {"student": {"last": {"val": {"top1": 50.0}, "test": {"top1": 61.234}}}},
    }
    assert result_line(results) == "test 61.23 % (last), 2 min"
    results["heads"]["student"]["last"]["test"] = None
    assert result_line(results) == "val 50.00 % (last), 2 min"
    results["heads"]["student"]["last"] = {}
    assert result_line(results) == "2 min"


def test_the_board_tells_a_line_a_run_and_the_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = StudyConsole(12, 2)
    shown.run_ended("alpha=1 seed=0", "test 61.23 % (last), 2 min")
    shown.update(0.5, 30.0, 3)
    assert capsys.readouterr().out == "[ 3/12] alpha=1 seed=0: test 61.23 % (last), 2 min\n"
    monkeypatch.setattr("kdschemes.tracking.console.SECONDS_BETWEEN_LINES", 0.0)
    for left in (None, 3000.0, 0.3):
        shown.update(0.5, left, 3)
    shown.stop()
    assert capsys.readouterr().out.splitlines() == [
        "50 % of the epochs, 3/12 runs, 3 in training, time left unknown",
        "50 % of the epochs, 3/12 runs, 3 in training, about 50 min left",
        "50 % of the epochs, 3/12 runs, 3 in training, nearly done",
    ]


def test_time_left_is_that_of_the_slowest_worker(tmp_path: Path) -> None:
    runs = by_name(opened(tmp_path)[1])
    kd, soft, ce = runs["kd"], runs["soft"], runs["ce"]
    speed = Speed()
    assert speed.left([[(ce, 4.0)]], [], 1) is None
    speed.measured([ce], 10.0)
    assert speed.left([[(ce, 4.0)]], [], 1) == 40.0
    speed.measured([kd, soft], 3.0)
    assert speed.left([[(ce, 4.0)]], [[(kd, 4.0), (soft, 2.0)]], 2) == 40.0
    assert speed.left([[(ce, 4.0)]], [[(kd, 4.0), (soft, 2.0)]], 1) == 58.0
    assert speed.left([], [], 2) == 0.0
    speed.closed(5.0)
    assert speed.left([[(ce, 0.0)], [(kd, 1.0), (soft, 0.0)]], [], 2) == 13.0


def test_a_kind_that_was_not_seen_takes_what_others_say_for_its_work(tmp_path: Path) -> None:
    runs = by_name(opened(tmp_path)[1])
    ce, wide = runs["ce"], runs["wide"]
    speed = Speed()
    speed.measured([ce], 2.0)
    found = speed.left([[(wide, 3.0)]], [], 1)
    assert found == pytest.approx(3 * 2.0 * epoch_work(wide.config, 1) / epoch_work(ce.config, 1))
    speed.measured([wide], 7.0)
    assert speed.left([[(wide, 3.0)]], [], 1) == 21.0
    assert speed.left([[(ce, 3.0)]], [], 1) == 6.0


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
