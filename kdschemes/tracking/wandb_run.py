"""A run in Weights & Biases, a mirror of `metrics.jsonl`. Several may be open in one process."""

from __future__ import annotations

import contextlib
import os
import secrets
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from kdschemes.config import Config
from kdschemes.errors import UserError
from kdschemes.storage.atomic import atomic_write

INIT_TIMEOUT = 30.0
"""Timeout in seconds for W&B's server at the start."""

LONGEST_TAG = 64
"""Characters of a tag; W&B refuses longer ones."""

RUN_ID = "WANDB_RUN_ID"

SWEEP = ("WANDB_SWEEP_ID", "WANDB_SWEEP_PARAM_PATH", RUN_ID)
"""Environment variables that a sweep agent sets for the run that it starts."""

ID_FILE = "wandb_run_id"
"""File in the run's folder with its id in W&B."""

_ALIVE: set[WandbRun] = set()
"""The unfinished runs of this process."""


def asked_id() -> str | None:
    """Return the run's id from the environment, set by an agent or by the user."""
    return os.environ.get(RUN_ID) or None


class WandbRun:
    """A run in W&B; its folders are next to the runs' folders, so that `wandb leet` and `kdschemes wandb sync` see all.

    Online if the user is logged in, else offline, unless `WANDB_MODE` is set; never asks for a key. The run's id is
    kept in the run's folder, so that a resumed run stays one run; `WANDB_RUN_ID` takes precedence.
    """

    def __init__(self, config: Config, folder: Path, content: Mapping[str, Any], *, copy: bool = False) -> None:
        """Start the run, offline if the server does not respond. See `Trackers` for `content` and `copy`.

        Its job type is the scheme, or `teacher` if it is a prerequisite of another run.

        Raises:
            UserError: the package is missing, the key is refused, or W&B can't start.
        """
        os.environ.setdefault("WANDB_SILENT", "true")
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # else the client reports from offline runs too
        try:
            import wandb
        except ImportError:
            raise UserError("tracker=wandb needs the package wandb: pip install wandb") from None
        self._wandb = wandb
        self._path = folder / ID_FILE
        kept = self._path.read_text().strip() if self._path.exists() and not copy else None
        self.id = asked_id() or kept or secrets.token_hex(4)
        self.is_new = self.id != kept
        """Whether W&B has no earlier steps of the run under this id."""
        if kept is None and not copy:
            self.remember()

        words = [config.scheme.name, config.scheme.method, config.data.name, config.model.name]

        def start(mode: Literal["online", "offline"] | None) -> Any:
            return wandb.init(
                mode=mode,
                id=self.id,
                resume="allow",
                reinit="create_new",
                dir=folder.parent,
                name=folder.name,
                project=config.project,
                group=config.group or "-".join(words),
                job_type=config.job_type or config.scheme.name,
                tags=[word[:LONGEST_TAG] for word in dict.fromkeys(words)],
                config=dict(content),
                settings=wandb.Settings(silent=True, console="off", init_timeout=INIT_TIMEOUT),
            )

        mode = _mode(wandb)
        try:
            self._run = start(mode)
        except wandb.errors.CommError as error:
            message = f"W&B cannot start online ({' '.join(str(error).split())}): offline, sync it later"
            warnings.warn(message, RuntimeWarning, stacklevel=3)
            if _ALIVE:  # the id counts as in use until all runs of this process are torn down
                self.id, self.is_new = secrets.token_hex(4), True
            else:
                wandb.teardown()
            self._run = start("offline")
        except wandb.errors.Error as error:
            raise UserError(f"tracker=wandb cannot start: {error}; tracker=none trains without it") from None
        _ALIVE.add(self)
        self._run.define_metric("global_step")
        self._defined: set[str] = set()

    @property
    def offline(self) -> bool:
        """Whether the run is only written to a folder, for a later upload by `kdschemes wandb sync`."""
        return bool(self._run.offline)

    def remember(self) -> None:
        """Store the id in the run's folder."""
        atomic_write(self._path, self.id.encode())

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        """Add one row. The step is given twice: as `_step` it rejects rows already sent before a resume."""
        for group in {key.partition("/")[0] for key in scalars} - self._defined:
            self._run.define_metric(f"{group}/*", step_metric="global_step")
            self._defined.add(group)
        self._run.log({**scalars, "global_step": step}, step=step)

    def summary(self, values: Mapping[str, Any]) -> None:
        self._run.summary.update(dict(values))

    def finish(self, exit_code: int, preempted: bool) -> None:
        """End the run; the last one of the process waits until all files are written."""
        if preempted:
            self._run.mark_preempting()
        _ALIVE.discard(self)
        self._run.finish(exit_code=exit_code)
        if not _ALIVE:
            self._wandb.teardown()  # waits: finish() of an offline run may return before its file is written


def _mode(wandb: Any) -> Literal["online", "offline"] | None:
    """Return the mode: that of `WANDB_MODE` (None), else online with a key, else offline.

    If another run of this process could not start online, offline without trying again.
    """
    chosen = os.environ.get("WANDB_MODE")
    asks = chosen in (None, "", "online", "shared")
    try:
        logged_in = asks and wandb.login(prompt=False, verify=False)
    except wandb.errors.AuthenticationError as error:
        raise UserError(f"tracker=wandb: {error}; fix the key, or set WANDB_MODE=offline") from None
    if chosen and asks and not logged_in:
        raise UserError(f"WANDB_MODE={chosen}, but no key is known: run `wandb login`, or set WANDB_MODE=offline")
    if asks and any(run.offline for run in _ALIVE):
        return "offline"
    if chosen:
        return None
    return "online" if logged_in else "offline"


@contextlib.contextmanager
def apart_from_sweep() -> Iterator[None]:
    """Hide a sweep agent's variables: runs in the block are not those that the sweep requested."""
    found = {name: os.environ.pop(name) for name in SWEEP if name in os.environ}
    try:
        yield
    finally:
        os.environ |= found
