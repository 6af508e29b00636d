"""Console output of a run: a progress bar on a terminal, plain lines elsewhere; on the main process only."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn

from kdschemes.printable import printable

SECONDS_BETWEEN_LINES = 15.0


@contextlib.contextmanager
def until_closed() -> Iterator[None]:
    """Print in the block; discard all output once nobody can read it: a closed terminal or pipe must not end a run."""
    try:
        yield
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class ProgressConsole:
    """Prints lines, with a progress bar below them on a terminal; without `show` it prints nothing."""

    def __init__(self, *, show: bool = True) -> None:
        self._show = show
        self._console = Console(file=sys.stdout, highlight=False, emoji=False)
        self._bar: Progress | None = None
        self._last_line = time.monotonic()

    def line(self, text: str) -> None:
        text = printable(text, lines=True)
        with until_closed():
            if self._bar is not None:
                self._console.print(text, markup=False, soft_wrap=True)
            elif self._show:
                print(text, flush=True)

    def progress(self, text: str) -> None:
        """Print a line, unless there was one in the last 15 s."""
        if time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            self.line(text)

    def stop(self) -> None:
        if self._bar is not None:
            with until_closed():
                self._bar.stop()
            self._bar = None

    def _start(self, *columns: ProgressColumn, transient: bool = False, **task: Any) -> None:
        self._last_line = time.monotonic()
        if self._console.is_terminal:
            self._bar = Progress(BarColumn(bar_width=24), *columns, console=self._console, transient=transient)
            self._bar.add_task("", **task)
            self._bar.start()

    def _update(self, line: str, **task: Any) -> None:
        """Update the bar; without one, print `line` if it is time for one."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], **task)
        else:
            self.progress(line)


class Reporter(ProgressConsole):
    """Reports training progress. If the output is not a terminal: a line per epoch and one every 15 s."""

    def __init__(self, *, show: bool) -> None:
        super().__init__(show=show)
        self._losses = ""
        self._total = 0
        self._told: set[str] = set()

    def once(self, text: str) -> None:
        """Print a line, unless it was printed before: several runs may report the same."""
        if text not in self._told:
            self._told.add(text)
            self.line(text)

    def start(self, total: int, done: int, *, title: str) -> None:
        """Start the progress report of `total` steps, of which `done` are already done."""
        if self._show:
            self._total = total
            self.line(title)
            speed = TextColumn("{task.fields[speed]:.0f} images/s {task.fields[losses]}", markup=False)
            columns = (MofNCompleteColumn(), TimeRemainingColumn(), speed)
            self._start(*columns, total=total, completed=done, speed=0.0, losses="")

    def advance(self, step: int, images: int, seconds: float) -> None:
        """Report that `step` steps are done, `images` images in `seconds` of training."""
        if self._show:
            speed = images / seconds if seconds else 0.0
            line = f"step {step}/{self._total}  {speed:.0f} images/s  {self._losses}"
            self._update(line, completed=step, speed=speed, losses=self._losses)

    def losses(self, row: Mapping[str, Any]) -> None:
        """Show the terms of a line of metrics.jsonl in the report."""
        terms = {key.removeprefix("loss/"): value for key, value in row.items() if key.startswith("loss/")}
        self._losses = "  ".join(f"{printable(name)} {value:.3g}" for name, value in list(terms.items())[:4])

    def epoch(self, epoch: int, epochs: int, top1: Mapping[str, float]) -> None:
        """Report the validation accuracy of each head in percent."""
        heads = "  ".join(f"{head} {value:.2f} %" for head, value in top1.items())
        self.line(f"epoch {epoch}/{epochs}  validation: {heads}  {self._losses}")
