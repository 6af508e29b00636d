"""`resume_from`: a new run that continues from the last epoch of a finished one."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kdschemes.config import Config
from kdschemes.config.data import SUBSET
from kdschemes.config.load import build_config
from kdschemes.config.naming import NOT_HASHED, flatten, in_line, read_config, to_tree
from kdschemes.errors import UserError
from kdschemes.storage.naming import run_name
from kdschemes.storage.results import read_results

KEPT = (
    *("scheme.name", "scheme.method", "model.name", "data.name", "optim.name", "optim.layer_decay", "seed"),
    *("train.batch_size", "train.drop_last", "train.ema"),
    *(f"data.{key}" for key in (*SUBSET, "val_fraction", "split_seed", "sampling", "unlabelled")),
)
"""Keys that a run keeps when it continues another: networks, their optimizer, images and steps per epoch."""


@dataclass(frozen=True)
class Parent:
    """The finished run that another one continues from, the epochs that it trained, and what changes: (before, now)."""

    folder: Path
    config: Config
    epochs: int
    changed: Mapping[str, tuple[Any, Any]]

    @property
    def line(self) -> str:
        """What to say of it."""
        words = ", ".join(f"{key} {in_line(old)} -> {in_line(new)}" for key, (old, new) in self.changed.items())
        return f"continues from epoch {self.epochs} of {self.folder}: {words}"


def parent_of(config: Config) -> Parent | None:
    """Return the run that a configuration continues from, if it names one.

    Raises:
        UserError: it is not finished, has as many epochs, or differs in what cannot change.
    """
    if config.resume_from is None:
        return None
    folder = Path(config.resume_from)
    parent = build_config(read_config(folder))
    before, now = flatten(to_tree(parent)), flatten(to_tree(config))
    results = read_results(folder)
    if results is None:
        command = shlex.join(["kdschemes", "train", f"experiment={folder / 'config.yaml'}"])
        raise UserError(f"resume_from={folder}: that run is not finished; this resumes it: {command}")
    changed = {key: (before.get(key), now.get(key)) for key in (before | now)}
    changed = {key: both for key, both in changed.items() if both[0] != both[1] and key not in NOT_HASHED}
    changed.pop("resume_from", None)
    for key in KEPT:
        if key in changed:
            old, new = map(in_line, changed[key])
            raise UserError(
                f"resume_from={folder}: that run has {key}={old}, not {new}, and cannot continue with another"
            )
    epochs = int(results["epochs"])
    if config.train.epochs <= epochs:
        raise UserError(f"resume_from={folder}: that run has trained {epochs} epochs: set train.epochs above that")
    return Parent(folder, parent, epochs, changed)


def shorter_run(config: Config, folder: Path) -> Path | None:
    """Return the finished run beside the folder of a new one from which it differs in having fewer epochs alone."""
    start = folder.name.rpartition("-")[0]
    for results in sorted(folder.parent.glob(f"{start}-????????/results.json")):
        try:
            other = build_config(read_config(results.parent))
        except UserError:  # of another version, or damaged
            continue
        epochs, warmup = other.train.epochs, other.optim.warmup_epochs
        same = replace(
            config, train=replace(config.train, epochs=epochs), optim=replace(config.optim, warmup_epochs=warmup)
        )
        if epochs < config.train.epochs and run_name(same) == results.parent.name:
            return results.parent
    return None
