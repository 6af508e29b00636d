"""What a person sees of a run, on a terminal and where the output is a file."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import threading
import time
from collections.abc import Callable

import pytest

from kdschemes.tracking import console as progress
from kdschemes.tracking.console import Reporter, folded

LOSSES = {"total": 3.14159, "ce/a": 1.5, "kd/a->b": 0.25}

PEERS = {"total": 9.5} | {f"ce/peer{i}": 1.0 + i / 10 for i in range(4)}
PEERS |= {f"kd/peer{i}->peer{j}": 0.1 * i + 0.2 * j for i in range(4) for j in range(4) if i != j}


def tell(report: Reporter) -> None:
    report.line("before [bold]the start[/bold]")
    report.start(100, 20, title="online-dml-digits", epochs=2)
    report.advance(21, 64, 0.5)
    report.losses(LOSSES)
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
    report.start(100, 0, title="run", epochs=2)
    report.losses(LOSSES)
    report.advance(1, 64, 0.5)
    report.advance(2, 128, 0.0)
    first, second = capsys.readouterr().out.splitlines()[1:]
    assert first == "epoch 1/2  step 1/100  128 images/s  total 3.14  ce/a 1.5  kd/a->b 0.25"
    assert second.startswith("epoch 1/2  step 2/100  0 images/s")


def test_no_line_more_often_than_that(capsys: pytest.CaptureFixture[str]) -> None:
    report = Reporter(show=True)
    report.start(1000, 0, title="run", epochs=2)
    for step in range(1, 1001):
        report.advance(step, 64 * step, 0.01 * step)
    assert capsys.readouterr().out == "run\n"


def on_a_terminal(work: Callable[[], None], monkeypatch: pytest.MonkeyPatch, width: int = 200) -> str:
    """Return what `work` shows where standard output is a terminal.

    A thread reads all along: a terminal holds 4 kB, and who writes more than that waits.
    """
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(width))
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
    assert "epoch 1/2 " in bars[-1]
    assert "320 images/s  total 3.14  ce/a 1.5  kd/a->b 0.25" in bars[-1]
    assert all(line.count("images/s") == 1 for line in bars)


def test_a_run_does_not_begin_with_the_losses_of_the_one_before(capsys: pytest.CaptureFixture[str]) -> None:
    report = Reporter(show=True)
    tell(report)
    report.start(100, 0, title="student", epochs=2)
    report.epoch(1, 2, {"student": 10.0})
    assert capsys.readouterr().out.splitlines()[-1].strip() == "epoch 1/2  validation: student 10.00 %"


def test_all_losses_fit_into_a_line() -> None:
    assert folded(LOSSES, 40) == "total 3.14  ce/a 1.5  kd/a->b 0.25"
    assert folded(LOSSES, 30) == "total 3.14  ce 1.5  kd 0.25"
    assert folded(PEERS, 100).startswith("total 9.5  ce 1/1.1/1.2/1.3  kd 0.2/0.4/0.6/0.1/")
    assert folded(PEERS, 60) == "total 9.5  ce 1 to 1.3  kd 0.1 to 0.8"


def test_an_evaluation_shows_how_far_it_is(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def work() -> None:
        report = Reporter(show=True)
        report.start(100, 0, title="run", epochs=2)
        report.doing("evaluating test images: 500 of 10,000")
        time.sleep(0.3)  # the bar is drawn 10 times a second
        report.stop()

    assert "evaluating test images: 500 of 10,000" in on_a_terminal(work, monkeypatch)
    work()
    assert capsys.readouterr().out == "run\n"
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    work()
    assert capsys.readouterr().out == "run\nevaluating test images: 500 of 10,000\n"


@pytest.mark.parametrize("width", [80, 120])
def test_the_bar_fits_into_a_line(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def work() -> None:
        report = Reporter(show=True)
        report.start(12_000, 0, title="run", epochs=200)
        report.losses(PEERS)
        report.advance(6_000, 64_000, 10.0)
        report.stop()

    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", on_a_terminal(work, monkeypatch, width))
    bars = [line for line in re.split(r"[\r\n]+", shown) if "images/s" in line]
    assert bars
    assert all(len(line.rstrip()) <= width for line in bars)
    assert "epoch 100/200 " in bars[-1]
    assert "6400 images/s" in bars[-1]


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
        report.start(100, 0, title="\x1b]0;title\x07 :warning:", epochs=2)
        report.losses({"[/nothing]\x1b[5m": 1.0})
        report.advance(50, 64, 0.2)
        report.stop()

    shown = on_a_terminal(work, monkeypatch)
    assert "\\x1b]0;title\\x07 :warning:" in shown
    assert "320 images/s  [/nothing]\\x1b[5m 1" in shown
    assert "\x1b]" not in shown
    assert "\x1b[5m" not in shown
