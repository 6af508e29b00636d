"""Training from Python: `kdschemes.train`, with networks and data of the user's own as objects."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from yaml import YAMLError

from kdschemes.config.code import GIVEN, give
from kdschemes.config.data import OwnData
from kdschemes.config.load import allow_typed, check_allowed, load_config
from kdschemes.config.naming import in_line
from kdschemes.errors import UserError, shown
from kdschemes.models import StagedNetwork
from kdschemes.models import load_model as load_network
from kdschemes.models.fingerprint import fingerprint
from kdschemes.printable import printable
from kdschemes.storage.own_data import read_images, seeded
from kdschemes.study.locate import recipes as recipes_of_clone
from kdschemes.tracking.tables import results_table
from kdschemes.training.train import train as train_run

Network = str | nn.Module | Callable[..., nn.Module]


@dataclass(frozen=True, repr=False)
class Results:
    """A finished run: its folder, and the contents of its `results.json`. Printed, it is the table of results."""

    folder: Path
    results: Mapping[str, Any]
    network: nn.Module | Callable[..., nn.Module] | None = field(default=None, compare=False)

    @property
    def metrics(self) -> dict[str, dict[str, float] | None]:
        """The test metrics of the primary head: after the `last` epoch, and of the `best` on validation (or None).

        Among them top1 and top5 in percent, and nll in nats.
        """
        found = self.results["heads"][self.results["primary_head"]]
        return {which: found[which] and found[which]["test"] for which in ("last", "best")}

    def load_model(self, *, best: bool = False) -> StagedNetwork:
        """Return the primary head's network after the last epoch, or of the best, in evaluation mode.

        Raises:
            UserError: the primary head is no single network, or there is no best epoch.
        """
        if best and self.metrics["best"] is None:
            raise UserError(f"{self.folder} has no best epoch: it has not been validated (data.val_fraction=0)")
        own = self.network
        folder = self.folder / "best" if best else self.folder
        return load_network(folder, network=copy.deepcopy(own) if isinstance(own, nn.Module) else own)

    def __repr__(self) -> str:
        return f"{results_table(dict(self.results), [], [])}\n\nrun folder: {self.folder}"


def train(
    *overrides: str,
    student: Network | None = None,
    teacher: Network | Sequence[Network] | Mapping[str, Any] | None = None,
    data: Any = None,
    recipes: str | Path | None = None,
    **options: Any,
) -> Results:
    """Train or resume one run and return its results, or those that it already has.

    `overrides` are KEY=VALUE as on the command line, short keys too; `options` are the same as keywords, with a mapping
    for a group:
    `train("scheme=offline", train={"epochs": 5}, seed=1)`. `recipes` is the folder of recipes for `experiment=`.

    `student` and `teacher` are names of networks, as of `model=` and `teacher=`; or modules that return logits; or a
    class or function that makes one, called with what it accepts of num_classes, channels and image_size. A module is
    copied: a student begins with its weights, a teacher keeps them. A teacher that is made is trained first. Several
    networks of one kind, such as peers, need a class or function; `teacher` may be a list, or a mapping of its keys.
    `data` is the name of a data set, or an object or function as for `data=MODULE:NAME`.

    A run is the same run, and resumes, if networks and data are the same: by the code of classes and functions
    (`models.fingerprint`), weights, images and labels.

    Raises:
        UserError: a mistake that the user can fix; nothing is lost.
        TrainingStopped: a term or a weight is not finite.
        KeyboardInterrupt: it was stopped; the checkpoint is written.
    """
    words = [*overrides, *(f"{key}={_in_line(key, value)}" for key, value in options.items() if value is not None)]
    words += _words("model", student) + _words("teacher", teacher)
    if isinstance(data, str):
        words.append(f"data={data}")
    elif data is not None:
        with seeded(0):
            made = data() if callable(data) and not hasattr(data, "train") else data
        words.append(f"data={give(made, 'data', read_images(made, OwnData(name=GIVEN + 'data')).digest)}")
    folder = Path(recipes) if recipes is not None else recipes_of_clone()
    allow_typed(words, recipes=folder)
    notes: list[str] = []
    config = load_config(words, recipes=folder, say=notes.append)
    check_allowed([config])
    if notes and os.environ.get("RANK", "0") == "0":
        print("\n".join(map(printable, notes)), flush=True)
    if isinstance(student, nn.Module) and len(config.scheme.trained_models(config.model.name)) > 1:
        raise UserError(
            f"student is one network, and method={config.scheme.method} trains several: pass its class or a function "
            "that makes it"
        )
    try:
        finished = train_run(config)
    except SystemExit:
        raise KeyboardInterrupt("stopped; the checkpoint is written, and the same call resumes") from None
    return Results(finished.folder, finished.results, None if isinstance(student, str) else student)


def _words(key: str, network: Network | Sequence[Network] | Mapping[str, Any] | None) -> list[str]:
    """Return the overrides that choose a network, and keep it if it is an object; a mapping holds keys of its group."""
    if isinstance(network, Mapping):
        return [f"{key}={_in_line(key, dict(network))}"]
    if network is None or isinstance(network, str):
        return [] if network is None else [f"{key}={network}"]
    several: list[Any] = list(network) if isinstance(network, list | tuple) else [network]
    names = [each if isinstance(each, str) else give(each, _label(each), fingerprint(each)) for each in several]
    trained = all(isinstance(each, nn.Module) for each in several)
    words = [f"{key}.name={in_line(names if isinstance(network, list | tuple) else names[0])}"]
    return words + [f"{key}.pretrained=true"] * trained


def _in_line(key: str, value: Any) -> str:
    """Return a value as on a command line.

    Raises:
        UserError: it has no text there.
    """
    try:
        return in_line(_plain(value))
    except YAMLError:
        raise UserError(
            f"{key}={shown(value)}: give numbers, texts, lists and mappings; networks are student= and teacher="
        ) from None


def _plain(value: Any) -> Any:
    """Return a value with paths as texts, NumPy's numbers as Python's, and tuples as lists."""
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, Path):
        return str(value)
    return value.item() if isinstance(value, np.generic) else value


def _label(network: nn.Module | Callable[..., nn.Module]) -> str:
    named = type(network) if isinstance(network, nn.Module) else network
    return str(getattr(named, "__name__", type(named).__name__)).strip("<>")
