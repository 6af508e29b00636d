"""What a person sees of a run, on a terminal and where the output is a file."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import threading
from collections.abc import Callable

import pytest

from kdschemes.tracking import console as progress
from kdschemes.tracking.console import Reporter

ROW = {"kind": "train", "lr": 0.1, "loss/total": 3.14159, "loss/ce/a": 1.5, "loss/kd/a->b": 0.25, "weight/ce/a": 1.0}


def tell(report: Reporter) -> None:
    report.line("before [bold]the start[/bold]")
    report.start(100, 20, title="online-dml-digits")
    report.advance(21, 64, 0.5)
    report.losses(ROW)
    report.advance(50, 640, 2.0)
    report.epoch(1, 2, {"peer0": 91.234, "peer1": 90.0})
    report.stop()
    report.line("after the end")


def test_nothing_is_shown_by_other_processes(capsys: pytest.CaptureFixture[str]) -> None:
    tell(Reporter(show=False))
    assert capsys.readouterr() == ("", "")


def test_plain_lines_where_the_output_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    tell(Reporter(show=True))
    printed = capsys.readouterr()
    assert printed.err == ""
    assert printed.out.splitlines() == [
        "before [bold]the start[/bold]",
        "online-dml-digits",
        "epoch 1/2  validation: peer0 91.23 %  peer1 90.00 %  total 3.14  ce/a 1.5  kd/a->b 0.25",
        "after the end",
    ]


def test_a_long_epoch_gives_a_line_from_time_to_time(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    report = Reporter(show=True)
    report.start(100, 0, title="run")
    report.losses(ROW)
    report.advance(1, 64, 0.5)
    report.advance(2, 128, 0.0)
    first, second = capsys.readouterr().out.splitlines()[1:]
    assert first == "step 1/100  128 images/s  total 3.14  ce/a 1.5  kd/a->b 0.25"
    assert second.startswith("step 2/100  0 images/s")


def test_no_line_more_often_than_that(capsys: pytest.CaptureFixture[str]) -> None:
    report = Reporter(show=True)
    report.start(1000, 0, title="run")
    for step in range(1, 1001):
        report.advance(step, 64 * step, 0.01 * step)
    assert capsys.readouterr().out == "run\n"


def on_a_terminal(work: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> str:
    """Return what `work` shows where standard output is a terminal.

    A thread reads all along: a terminal holds 4 kB, and who writes more than that waits.
    """
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    reading, writing = pty.openpty()
    chunks: list[bytes] = []

    def read() -> None:
        with contextlib.suppress(OSError):  # the other end was closed
            while chunk := os.read(reading, 4096):
                chunks.append(chunk)

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(writing, "w") as screen:
        monkeypatch.setattr("sys.stdout", screen)
        work()
        monkeypatch.undo()
    reader.join(timeout=10)
    os.close(reading)
    return b"".join(chunks).decode()


def test_one_bar_on_a_terminal_and_whole_lines_above_it(monkeypatch: pytest.MonkeyPatch) -> None:
    written = on_a_terminal(lambda: tell(Reporter(show=True)), monkeypatch)
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", written)
    lines = [line.strip() for line in re.split(r"[\r\n]+", shown)]
    assert "before [bold]the start[/bold]" in lines
    assert "online-dml-digits" in lines
    assert "epoch 1/2  validation: peer0 91.23 %  peer1 90.00 %  total 3.14  ce/a 1.5  kd/a->b 0.25" in lines
    assert lines[-2:] == ["after the end", ""]
    bars = [line for line in lines if "images/s" in line]
    assert bars
    assert " 50/100 " in bars[-1]
    assert "320 images/s total 3.14  ce/a 1.5  kd/a->b 0.25" in bars[-1]
    assert all(line.count("images/s") == 1 for line in bars)


def test_without_a_start_stop_does_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    Reporter(show=True).stop()
    assert capsys.readouterr() == ("", "")


def test_a_message_of_several_runs_is_printed_once(capsys: pytest.CaptureFixture[str]) -> None:
    report = Reporter(show=True)
    for text in ("done already: a", "done already: b", "done already: a"):
        report.once(text)
    report.line("done already: a")
    assert capsys.readouterr().out.splitlines() == ["done already: a", "done already: b", "done already: a"]


def test_a_name_acts_neither_on_the_terminal_nor_on_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    def work() -> None:
        report = Reporter(show=True)
        report.start(100, 0, title="\x1b]0;title\x07 :warning:")
        report.losses({"loss/[/nothing]\x1b[5m": 1.0})
        report.advance(50, 64, 0.2)
        report.stop()

    shown = on_a_terminal(work, monkeypatch)
    assert "\\x1b]0;title\\x07 :warning:" in shown
    assert "320 images/s [/nothing]\\x1b[5m 1" in shown
    assert "\x1b]" not in shown
    assert "\x1b[5m" not in shown
