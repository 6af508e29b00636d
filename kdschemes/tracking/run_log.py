"""What a run records as it trains: `metrics.jsonl`, `timing.jsonl` and the trackers' mirrors of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdschemes.config import Config
from kdschemes.tracking.metrics_log import MetricsLog
from kdschemes.tracking.trackers import Trackers


class RunLog:
    """The logs and trackers of one run, on the first process.

    Lines after `offset` in `metrics.jsonl` are cut: they are later than the checkpoint from which the run resumes.
    `timing.jsonl` keeps all complete lines. Trackers also show the metrics of the `primary_head` without its name.

    Raises:
        UserError: a log can't be written, or a tracker can't start.
    """

    def __init__(self, config: Config, folder: Path, *, offset: int, primary_head: str, resume_step: int) -> None:
        timing = folder / "timing.jsonl"
        whole_lines = timing.read_bytes().rfind(b"\n") + 1 if timing.exists() else 0
        self._metrics = MetricsLog(folder / "metrics.jsonl", offset=offset)
        self._timing = MetricsLog(timing, offset=whole_lines)
        self.trackers = Trackers(config, folder, primary_head=primary_head, resume_step=resume_step)

    def write(self, row: dict[str, Any]) -> None:
        """Add a line to `metrics.jsonl`, and mirror it in the trackers."""
        self._metrics.write(row)
        self.trackers.log(row, step=row["step"])

    def write_timing(self, step: int, seconds: float, images: int) -> None:
        """Add a line to `timing.jsonl`: the number of images trained up to a step and the seconds taken."""
        self._timing.write({"step": step, "seconds": seconds, "images_per_second": images / seconds})

    def sync(self) -> tuple[int, str]:
        """Wait until `metrics.jsonl` is on the disk; return its length in bytes and its SHA-256."""
        return self._metrics.sync()

    def close(self, error: BaseException | None) -> None:
        """Close the logs and end the trackers; `error` is what ended the run early, SystemExit for a signal."""
        self._metrics.close()
        self._timing.close()
        stopped = isinstance(error, SystemExit)
        code = error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else int(error is not None)
        self.trackers.finish(exit_code=code, preempted=stopped)
