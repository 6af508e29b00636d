"""The upload of offline runs by the real client; a recorder on the loopback stands in for W&B's side."""

from __future__ import annotations

import os
import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest
import wandb

from kdschemes import cli
from kdschemes.storage import lease as lease_file
from kdschemes.storage.lease import Lease
from tests.tracking.cases import trackers, train, val
from tests.tracking.wandb_recorder import KEY, Recorder


def log_in(patch: pytest.MonkeyPatch, url: str) -> None:
    patch.setenv("WANDB_BASE_URL", url)
    patch.setenv("WANDB_API_KEY", KEY)
    wandb.teardown()  # the client reads the address once


def tracked(folder: Path, steps: range, *, done: bool) -> str:
    """Let the real client write a run, or one part of it, and return its id."""
    tracker = trackers(folder, "wandb", resume_step=steps.start - 1)
    for step in steps:
        tracker.log(train(step), step)
    if done:
        tracker.log(val(steps[-1], 60.0), steps[-1])
        tracker.summary({"test/top1": 54.0})
    tracker.finish(preempted=not done)
    return (folder / "wandb_run_id").read_text()


def empty_parts(runs: Path, *names: str) -> None:
    """Make folders that look like the client's."""
    for name in names:
        part = runs / "wandb" / f"offline-run-{name}"
        part.mkdir(parents=True)
        (part / f"run-{name.rpartition('-')[2]}.wandb").touch()


def upload(folder: Path, capsys: pytest.CaptureFixture[str], *more: str) -> tuple[int, list[str], str]:
    """Run the command; return its exit code, the lines that it told and its error."""
    code = cli.main(["wandb", "sync", str(folder), *more])
    told = capsys.readouterr()
    return code, [line.rpartition("/")[2] for line in told.out.splitlines()], told.err


@pytest.mark.slow
def test_folders_go_up_in_time_order_once_each(
    alone: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    first = tracked(runs / "first", range(1, 3), done=False)
    second = tracked(runs / "second", range(1, 2), done=True)
    time.sleep(1.1)  # W&B names its folders by the second
    assert tracked(runs / "first", range(3, 5), done=True) == first
    parts = sorted(path.name for path in (runs / "wandb").glob("offline-run-*"))
    begun, ended = (name for name in parts if name.endswith(first))
    (other,) = (name for name in parts if name.endswith(second))

    with Recorder() as recorder:
        log_in(alone, recorder.url)
        recorder.refused = {first}
        code, told, error = upload(runs, capsys)
        assert (code, sorted(recorder.runs)) == (2, [second])
        assert sorted(told) == sorted(
            [
                f"{begun}: failed (no) (first)",
                f"{other}: uploaded (second)",
                f"{ended}: waits for {begun} of the same run (first)",
            ]
        )
        assert error == (
            "error: 1 folder failed (1 uploaded, 0 before, 1 waiting for a failed one); the same command tries again\n"
        )

        recorder.refused.clear()
        recorder.operations.clear()
        code, told, _ = upload(runs, capsys)
        expected = [f"{begun}: uploaded (first)", f"{ended}: uploaded (first)", "3 folders: 2 uploaded, 1 before"]
        assert (code, told) == (0, expected)
        assert second not in {name for _, name in recorder.operations}

        recorder.operations.clear()
        assert upload(runs, capsys) == (0, ["everything is uploaded: 3 folders"], "")
        assert recorder.operations == []

    run = recorder.runs[first]
    assert [row["global_step"] for row in run.history] == [1, 2, 3, 4]
    assert run.history[3]["val/student/exit1/top1"] == 60.0
    assert (run.exit_code, run.project, run.values()["train"]["epochs"]) == (0, "kdschemes", 2)
    assert run.facts()["groupName"] == "offline-kd-digits-wrn_16_1"
    assert '"test/top1":54' in run.summary


@pytest.mark.slow
def test_a_file_whose_writer_was_killed_goes_up_once(
    alone: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    name = tracked(runs / "killed", range(1, 4), done=True)
    (file,) = (runs / "wandb").glob("offline-run-*/run-*.wandb")
    os.truncate(file, file.stat().st_size - 40)
    with Recorder() as recorder:
        log_in(alone, recorder.url)
        code, told, _ = upload(runs, capsys)
        assert (code, told[-1]) == (0, "1 folder: 1 uploaded, 0 before")
        assert [row["global_step"] for row in recorder.runs[name].history] == [1, 2, 3]
        assert upload(runs, capsys)[1] == ["everything is uploaded: 1 folder"]


def test_a_dry_run_lists_in_time_order_and_needs_no_login(
    alone: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("20260102_000000-b", "20260101_235959-c", "20260102_000001-a")
    empty_parts(tmp_path, *names)
    (tmp_path / "wandb" / f"offline-run-{names[0]}" / "run-b.wandb.synced").touch()
    for run, name in (("mine", "c"), ("its_copy", "a")):
        (tmp_path / run).mkdir()
        (tmp_path / run / ("wandb_run_id" if run == "mine" else "wandb_run_id-0123abcd")).write_text(name)
    assert upload(tmp_path, capsys, "--dry-run") == (
        0,
        [
            f"offline-run-{names[1]}: would be uploaded (mine)",
            f"offline-run-{names[2]}: would be uploaded (its_copy)",
            "2 of 3 folders to upload; nothing was sent",
        ],
        "",
    )


def test_what_a_process_still_writes_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("20260101_000000-a", "20260102_000000-a")
    empty_parts(tmp_path, *names)
    run = tmp_path / "run"
    run.mkdir()
    (run / "wandb_run_id").write_text("a")

    def told() -> list[str]:
        return [line.split(": ")[1] for line in upload(tmp_path, capsys, "--dry-run")[1][:-1]]

    lease = Lease(run)
    lease.acquire(asked=lambda: False)
    assert told() == ["would be uploaded (run)", "is being trained, left out (run)"]
    lease.release()
    assert told() == ["would be uploaded (run)"] * 2

    elsewhere = replace(lease_file.this_process(), host="other", place="other")
    (run / "lease-1").write_bytes(lease_file._line(elsewhere))
    assert told()[1] == "is being trained, left out (run)"
    os.utime(run / "lease-1", (1.0, 1.0))
    assert told()[1] == "would be uploaded (run)"


def test_its_requirements_are_printed_in_a_line(
    alone: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def error(folder: Path) -> str:
        code, lines, told = upload(folder, capsys)
        assert (code, lines, told.count("\n")) == (2, [], 1)
        return told

    assert "there is no folder" in error(tmp_path / "nowhere")
    assert "holds no wandb/offline-run-*: give the folder that contains the runs' folders" in error(tmp_path)
    empty_parts(tmp_path, "20260101_000000-a")
    assert "not logged in to W&B" in error(tmp_path)
    with socket.socket() as closed:  # bound, never listening: connections are refused
        closed.bind(("127.0.0.1", 0))
        log_in(alone, f"http://127.0.0.1:{closed.getsockname()[1]}")
        assert "no server responds at http://127.0.0.1" in error(tmp_path)
    assert not list((tmp_path / "wandb").glob("*/*.synced"))
