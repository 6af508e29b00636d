"""What a study prints: durations, lines of runs, the board."""

from __future__ import annotations

import pytest

from kdschemes.study.local.console import StudyConsole, duration, result_line


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
