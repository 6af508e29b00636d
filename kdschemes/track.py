"""A run's log, `metrics.jsonl`, and its mirrors in Weights & Biases and TensorBoard. On the first process only."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from kdschemes.errors import UserError
from kdschemes.files import write_whole
from kdschemes.results import plain
from kdschemes.track_wandb import WandbRun

PREEMPTED = 143
"""Exit code of a process that ended on SIGTERM (128 + 15)."""


class MetricsLog:
    """A file of JSON objects, one a line, each line flushed as it is written.

    What goes into `metrics.jsonl` is a function of the configuration alone, so that equal runs give equal bytes:
    times belong in a second log. Floats are written so that they read back exactly, those that are not finite as the
    strings "nan", "inf" and "-inf"; keys keep their order.
    """

    def __init__(self, path: Path, offset: int = 0) -> None:
        """Open the log: from the start, or after its first `offset` bytes, as the checkpoint says; the rest is cut.

        A log that is there is replaced by a copy: what another process still writes into the old one is not seen.

        Raises:
            UserError: the file can't be written, or is not the one that the checkpoint speaks of.
        """
        self.path = path
        self.offset = offset
        try:
            size = path.stat().st_size if path.exists() else 0
            if size < offset:
                raise UserError(
                    f"{path} has {size} bytes where the checkpoint counts {offset}: restore it, or delete the "
                    "run's folder to start again"
                )
            if offset and _byte(path, offset - 1) != b"\n":
                raise UserError(
                    f"{path} was changed since the checkpoint (byte {offset} ends no line): restore it, or delete "
                    "the run's folder to start again"
                )
            if path.exists():
                write_whole(path, path.read_bytes()[:offset])
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise _cannot_write(path, error) from None

    def write(self, row: Mapping[str, Any]) -> None:
        """Add one line.

        Raises:
            UserError: the file can't be written.
        """
        line = (json.dumps(plain(row), allow_nan=False) + "\n").encode()
        self.offset += len(line)
        rest = memoryview(line)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise _cannot_write(self.path, error) from None

    def sync(self) -> None:
        """Wait until what was written is on the disk; to be called before a checkpoint records `offset`.

        Raises:
            UserError: the file can't be written.
        """
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise _cannot_write(self.path, error) from None

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a `MetricsLog` file; the strings "nan", "inf" and "-inf" as floats again.

    A last line that was not finished is left out.

    Raises:
        UserError: the file can't be read, or another line is not a JSON object.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    rows = []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise UserError(f"{path} line {number} is not a JSON object: delete the line, or run again")
        rows.append({key: float(value) if value in ("nan", "inf", "-inf") else value for key, value in row.items()})
    return rows


class _Mirror(Protocol):
    def log(self, scalars: dict[str, float], step: int) -> None: ...

    def summary(self, values: Mapping[str, Any]) -> None: ...

    def finish(self, exit_code: int, preempted: bool) -> None: ...


class Trackers:
    """Mirrors the rows of `metrics.jsonl` to the trackers in `names` (`wandb`, `tensorboard`); both may be used.

    A tracker that fails while the training runs does not end it: the first failure of each is warned of, and the
    next row is tried again. `metrics.jsonl` has every row.
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        run_name: str,
        folder: Path,
        project: str,
        group: str,
        job_type: str,
        tags: Sequence[str],
        config: Mapping[str, Any],
        resume_step: int = 0,
        reported: str | None = None,
        copy: bool = False,
    ) -> None:
        """Start the trackers for the run in `folder`; `resume_step` optimizer steps are done already.

        Metrics of the head `reported` are also given without its name. `copy`: W&B gets another run of all that
        `metrics.jsonl` has; whoever asks for it remembers its id, `wandb_id`.

        Raises:
            UserError: a package is missing, or a tracker can't start.
        """
        self._reported = reported
        self._mirrors: dict[str, _Mirror] = {}
        self._failed: set[str] = set()
        self.wandb_id: str | None = None
        for name in names:
            if name == "wandb":
                run = WandbRun(run_name, folder, project, group, job_type, tags, config, copy=copy)
                self._mirrors[name] = run
                self.wandb_id = run.id
                if run.anew and (folder / "metrics.jsonl").exists():
                    for row in read_rows(folder / "metrics.jsonl"):
                        run.log(self._scalars(row), row["step"])
                if not copy:
                    run.remember()
            else:
                assert name == "tensorboard", name
                self._mirrors[name] = _TensorBoard(folder, config, resume_step)

    def log(self, row: Mapping[str, Any], step: int) -> None:
        """Mirror the numbers of a row; `step` counts optimizer steps.

        `lr` of a training row becomes `train/lr`, `HEAD/top1` of an evaluation `val/HEAD/top1`, and of the final one
        `final/best/test/HEAD/top1`: the row's `kind` (but for `eval`), `which` and `split` come before the name. The
        reported head's metrics of an evaluation are given once more without its name: `val/top1`.
        """
        scalars = self._scalars(row)
        self._each(lambda mirror: mirror.log(scalars, step))

    def _scalars(self, row: Mapping[str, Any]) -> dict[str, float]:
        kind = [] if row["kind"] == "eval" else [row["kind"]]
        prefix = "/".join(kind + [row[key] for key in ("which", "split") if key in row])
        found = {key: float(value) for key, value in row.items() if _is_number(value) and key != "step"}
        scalars = {f"{prefix}/{key}": value for key, value in found.items()}
        if row["kind"] == "eval" and self._reported is not None:
            head = f"{self._reported}/"
            mine = {key.removeprefix(head): value for key, value in found.items() if key.startswith(head)}
            scalars |= {f"{prefix}/{key}": value for key, value in mine.items() if "/" not in key}
        return scalars

    def summary(self, values: Mapping[str, Any]) -> None:
        """Record the results of the run: nested names are joined with `/`."""
        flat = flatten(values)
        self._each(lambda mirror: mirror.summary(flat))

    def finish(self, exit_code: int = 0, preempted: bool = False) -> None:
        """End the trackers. `preempted`: the run was stopped from outside and will go on; its exit code is 143."""
        self._each(lambda mirror: mirror.finish(PREEMPTED if preempted else exit_code, preempted))
        self._mirrors.clear()

    def _each(self, call: Callable[[_Mirror], None]) -> None:
        for name, mirror in self._mirrors.items():
            try:
                call(mirror)
            except Exception as error:
                if name not in self._failed:
                    self._failed.add(name)
                    warnings.warn(
                        f"tracker {name} failed ({type(error).__name__}: {error}); metrics.jsonl goes on",
                        RuntimeWarning,
                        stacklevel=3,
                    )


class _TensorBoard:
    """Event files in the run's folder, under `tensorboard`."""

    def __init__(self, folder: Path, config: Mapping[str, Any], resume_step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UserError(
                'tracker=tensorboard needs the package tensorboard: pip install "kdschemes[tensorboard]"'
            ) from None
        try:
            self._writer: Any = SummaryWriter(folder / "tensorboard", purge_step=resume_step + 1 if resume_step else 0)
        except OSError as error:
            raise _cannot_write(folder / "tensorboard", error) from None
        if not resume_step:
            self._writer.add_text("config", f"```\n{json.dumps(plain(config), indent=2)}\n```")

    def log(self, scalars: dict[str, float], step: int) -> None:
        for key, value in scalars.items():
            self._writer.add_scalar(key, value, step)
        self._writer.flush()

    def summary(self, values: Mapping[str, Any]) -> None:
        self._writer.add_text("results", f"```\n{json.dumps(plain(values), indent=2)}\n```")

    def finish(self, exit_code: int, preempted: bool) -> None:
        self._writer.close()


def _cannot_write(path: Path, error: OSError) -> UserError:
    return UserError(f"{path} cannot be written: {error.strerror or error}; mend that and run again")


def _byte(path: Path, position: int) -> bytes:
    with path.open("rb") as file:
        file.seek(position)
        return file.read(1)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values as one mapping, names joined with `/`; None is left out."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}/")
        elif value is not None:
            flat[f"{prefix}{key}"] = value
    return flat
