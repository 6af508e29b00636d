"""Console output of a run: a progress bar on a terminal, plain lines elsewhere; on the main process only."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Column

from kdschemes.printable import printable

SECONDS_BETWEEN_LINES = 15.0

BAR = 12
"""Characters of the bar."""

LINE = 160
"""Characters of a line where the output is not a terminal."""


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

    @property
    def width(self) -> int:
        """Characters that fit into a line."""
        return self._console.width if self._console.is_terminal else LINE

    def _start(self, *columns: ProgressColumn, transient: bool = False, **task: Any) -> None:
        self._last_line = time.monotonic()
        if self._console.is_terminal:
            bar = BarColumn(bar_width=BAR)
            self._bar = Progress(bar, *columns, console=self._console, transient=transient, expand=True)
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
        self._losses: dict[str, float] = {}
        self._last_step = ""
        self._total = self._epochs = 0
        self._told: set[str] = set()

    def once(self, text: str) -> None:
        """Print a line, unless it was printed before: several runs may report the same."""
        if text not in self._told:
            self._told.add(text)
            self.line(text)

    def start(self, total: int, done: int, *, title: str, epochs: int) -> None:
        """Start the progress report of `total` steps in `epochs` epochs; `done` of the steps are already done."""
        self._losses, self._last_step = {}, ""
        if self._show:
            self._total, self._epochs = total, epochs
            self.line(title)
            fixed = Column(no_wrap=True)
            where = TextColumn("{task.fields[where]}", markup=False, table_column=fixed)
            doing = TextColumn(
                "{task.fields[doing]}",
                markup=False,
                table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"),
            )
            columns = (where, TimeRemainingColumn(compact=True, table_column=fixed), doing)
            self._start(*columns, total=total, completed=done, where=self._where(done), doing="")

    def advance(self, step: int, images: int, seconds: float) -> None:
        """Report that `step` steps are done, `images` images in `seconds` of training."""
        if self._show:
            speed = f"{images / seconds if seconds else 0.0:.0f} images/s"
            where = self._where(step)
            room = self.width - BAR - len(where) - len(speed) - len("  00:00   ")
            losses = folded(self._losses, room if self._bar is not None else LINE)
            line = "  ".join(part for part in (where, f"step {step}/{self._total}", speed, losses) if part)
            self._last_step = f"{speed}  {losses}"
            self._update(line, completed=step, where=where, doing=self._last_step)

    def doing(self, what: str) -> None:
        """Report what is done between steps, such as an evaluation."""
        if self._show:
            self._update(what, doing=what)

    def losses(self, losses: Mapping[str, float]) -> None:
        """Show these mean losses, by term, in the report."""
        self._losses = {printable(name): value for name, value in losses.items()}

    def epoch(self, epoch: int, epochs: int, top1: Mapping[str, float]) -> None:
        """Report the validation accuracy of each head in percent, and the losses."""
        heads = "  ".join(f"{head} {value:.2f} %" for head, value in top1.items())
        line = f"epoch {epoch}/{epochs}  validation: {heads}"
        self.line(f"{line}  {folded(self._losses, self.width - len(line) - 2)}")

    def stop(self) -> None:
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], doing=self._last_step)
        super().stop()

    def _where(self, step: int) -> str:
        epoch = max(1, -(-step * self._epochs // max(self._total, 1)))
        return f"epoch {epoch}/{self._epochs}"


def folded(losses: Mapping[str, float], room: int) -> str:
    """Return losses by term in about `room` characters: by full name, else by kind, else the range of each kind.

    A term's kind is what stands before its first `/`: `kd/peer0->peer1`.
    """
    kinds: dict[str, list[float]] = {}
    for name, value in losses.items():
        kinds.setdefault(name.partition("/")[0], []).append(value)
    forms: tuple[Callable[[], Sequence[str]], ...] = (
        lambda: [f"{name} {value:.3g}" for name, value in losses.items()],
        lambda: [f"{kind} {'/'.join(f'{value:.3g}' for value in of)}" for kind, of in kinds.items()],
        lambda: [f"{kind} {min(of):.3g}" + (f" to {max(of):.3g}" if len(of) > 1 else "") for kind, of in kinds.items()],
    )
    found = ""
    for form in forms:
        found = "  ".join(form())
        if len(found) <= room:
            break
    return found
