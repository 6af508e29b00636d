"""The console output of a study that runs locally: a line when a run ends, and a progress bar on a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.progress import TextColumn

from kdschemes.printable import printable
from kdschemes.storage.results import main_metric
from kdschemes.tracking.console import ProgressConsole


class StudyConsole(ProgressConsole):
    """Reports the progress of a study of `total` runs."""

    def __init__(self, total: int, ended: int) -> None:
        super().__init__()
        self._total, self._ended = total, ended
        columns = (TextColumn("{task.percentage:>3.0f} %"), TextColumn("{task.description}"))
        self._start(*columns, total=1.0, transient=True)

    def run_ended(self, label: str, text: str) -> None:
        """Report that a run has ended, and how."""
        self._ended += 1
        width = len(str(self._total))
        self.line(printable(f"[{self._ended:>{width}}/{self._total}] {label}: {text}"))

    def update(self, share: float, left: float | None, runs: int) -> None:
        """Report the fraction of all epochs trained, the estimated `left` seconds, and how many runs are training."""
        rest = "time left unknown"
        if left is not None:
            rest = f"about {duration(left)} left" if left >= 1 else "nearly done"
        text = f"{self._ended}/{self._total} runs, {runs} in training, {rest}"
        self._update(f"{100 * share:.0f} % of the epochs, {text}", completed=share, description=text)


def result_line(results: Mapping[str, Any]) -> str:
    """Return the accuracy of a finished run's reported head on the test set, or else on the validation split."""
    last = results["heads"][results["primary_head"]]["last"]
    split = next((split for split in ("test", "val") if last.get(split)), None)
    reached = f"{split} {last[split][main_metric(last[split])]:.2f} % (last), " if split is not None else ""
    return f"{reached}{duration(results['train_seconds'])}"


def duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
