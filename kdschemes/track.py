"""A run's log, `metrics.jsonl`, and its mirrors in Weights & Biases and TensorBoard. On the first process only."""

from __future__ import annotations

import json
import os
import secrets
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from kdschemes.errors import UserError
from kdschemes.files import write_whole
from kdschemes.results import plain

PREEMPTED = 143
"""Exit code of a process that ended on SIGTERM (128 + 15)."""

INIT_TIMEOUT = 30.0
"""Seconds that W&B's server has to answer at the start."""


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
    ) -> None:
        """Start the trackers for the run in `folder`; `resume_step` optimizer steps are done already.

        Raises:
            UserError: a package is missing, or a tracker can't start.
        """
        self._mirrors: dict[str, _Mirror] = {}
        self._failed: set[str] = set()
        for name in names:
            if name == "wandb":
                self._mirrors[name] = _Wandb(run_name, folder, project, group, job_type, tags, config)
            else:
                assert name == "tensorboard", name
                self._mirrors[name] = _TensorBoard(folder, config, resume_step)

    def log(self, row: Mapping[str, Any], step: int) -> None:
        """Mirror the numbers of a row; `step` counts optimizer steps.

        `lr` of a training row becomes `train/lr`, `HEAD/top1` of an evaluation `val/HEAD/top1`, and of the final one
        `final/best/test/HEAD/top1`: the row's `kind` (but for `eval`), `which` and `split` come before the name.
        """
        kind = [] if row["kind"] == "eval" else [row["kind"]]
        prefix = "/".join(kind + [row[key] for key in ("which", "split") if key in row])
        scalars = {f"{prefix}/{key}": float(value) for key, value in row.items() if _is_number(value) and key != "step"}
        self._each(lambda mirror: mirror.log(scalars, step))

    def summary(self, values: Mapping[str, Any]) -> None:
        """Record the results of the run: nested names are joined with `/`."""
        flat = _flatten(values)
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


class _Wandb:
    """A run in W&B; its folders lie beside the runs' folders, so that `wandb leet` and `wandb sync` see all of them.

    Online if the user is logged in, else offline, unless `WANDB_MODE` says which; never asks for a key. The run's id
    is kept in the run's folder, so that a run that goes on stays one run.
    """

    def __init__(
        self,
        run_name: str,
        folder: Path,
        project: str,
        group: str,
        job_type: str,
        tags: Sequence[str],
        config: Mapping[str, Any],
    ) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # the client would report from offline runs too
        try:
            import wandb
        except ImportError:
            raise UserError("tracker=wandb needs the package wandb: pip install wandb") from None
        self._wandb = wandb
        chosen = os.environ.get("WANDB_MODE")
        asks = chosen in (None, "", "online", "shared")
        try:
            logged_in = asks and wandb.login(prompt=False, verify=False)
        except wandb.errors.AuthenticationError as error:
            raise UserError(f"tracker=wandb: {error}; mend the key, or set WANDB_MODE=offline") from None
        if chosen and asks and not logged_in:
            raise UserError(f"WANDB_MODE={chosen}, but no key is known: run `wandb login`, or set WANDB_MODE=offline")

        def start(mode: Literal["online", "offline"] | None) -> Any:
            return wandb.init(
                mode=mode,
                id=_run_id(folder / "wandb_run_id"),
                resume="allow",
                dir=folder.parent,
                name=run_name,
                project=project,
                group=group,
                job_type=job_type,
                tags=list(tags),
                config=dict(config),
                settings=wandb.Settings(silent=True, console="off", init_timeout=INIT_TIMEOUT),
            )

        try:
            self._run = start(None if chosen else "online" if logged_in else "offline")
        except wandb.errors.CommError as error:
            message = f"W&B cannot start online ({' '.join(str(error).split())}): offline, to be synced later"
            warnings.warn(message, RuntimeWarning, stacklevel=3)
            wandb.teardown()  # or the run's id counts as in use
            self._run = start("offline")
        except wandb.errors.Error as error:
            raise UserError(f"tracker=wandb cannot start: {error}; tracker=none trains without it") from None
        self._run.define_metric("global_step")
        self._defined: set[str] = set()

    def log(self, scalars: dict[str, float], step: int) -> None:
        # The step is given twice: as `_step` it keeps out, after a resume, rows that were sent before the crash.
        for key in scalars:
            group = key.partition("/")[0]
            if group not in self._defined:
                self._run.define_metric(f"{group}/*", step_metric="global_step")
                self._defined.add(group)
            if key.startswith("val/") and key.endswith("/top1") and key not in self._defined:
                self._run.define_metric(key, step_metric="global_step", summary="max,last")
                self._defined.add(key)
        self._run.log(scalars | {"global_step": step}, step=step)

    def summary(self, values: Mapping[str, Any]) -> None:
        self._run.summary.update(dict(values))

    def finish(self, exit_code: int, preempted: bool) -> None:
        if preempted:
            self._run.mark_preempting()
        self._run.finish(exit_code=exit_code)
        self._wandb.teardown()  # waits: finish() of an offline run may return before its file is written


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


def _run_id(path: Path) -> str:
    if not path.exists():
        write_whole(path, secrets.token_hex(4).encode())
    return path.read_text().strip()


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}/")
        elif value is not None:
            flat[f"{prefix}{key}"] = value
    return flat
