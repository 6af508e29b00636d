"""A run, opened again: its data, and its networks with the weights of the last or the best epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from kdschemes.cards.cite import read_run
from kdschemes.config import Config
from kdschemes.config.load import load_config
from kdschemes.config.parse import read_json
from kdschemes.config.prerequisites import prerequisite_runs, with_teachers
from kdschemes.core.distillation import Distillation
from kdschemes.core.nodes import NetworkWithExits
from kdschemes.core.types import DataSpec
from kdschemes.data import DataModule, open_data
from kdschemes.distributed.fsdp import load_full_state
from kdschemes.errors import UserError, first_line, shown, unknown
from kdschemes.models import ExitNetwork, StagedNetwork, load_exit_model, load_model
from kdschemes.models.described import input_of
from kdschemes.models.weights import EXITS_CONFIG
from kdschemes.schemes import build_scheme
from kdschemes.storage.checkpoint import CHECKPOINT, load_state, read_checkpoint
from kdschemes.storage.naming import CONFIG, WEIGHTS, run_name, short_name
from kdschemes.storage.results import read_results

CPU = torch.device("cpu")

OVERRIDDEN = ("data", "teacher.checkpoint", "device", "precision", "train.eval_batch_size")
"""Keys of a run that may be different when it is opened again: `data` and all keys of it, and these."""

OF_IMAGES = ("name", "image_size", "mean", "std", "kwargs")
"""Keys of data on which the size and the normalization of the images depend."""


@dataclass(frozen=True)
class Opened:
    """A run with its networks; `when` says which weights they have. `spec` is that of the data it was trained on."""

    config: Config
    data: DataModule
    scheme: Distillation
    spec: DataSpec
    when: str


@dataclass(frozen=True)
class Trained:
    """A trained network in evaluation mode: a head of a run (or `student` of a folder of weights).

    Its images look like `network.spec` says. `which` is last or best. `config` and `results` are those of its run, if
    it is of a run (a finished one). `classes` are in the order of the logits. `image_size` is the side in pixels of the
    run's images, from which the network makes its own.
    """

    source: Path
    head: str
    which: str
    when: str
    network: StagedNetwork
    exits: ExitNetwork | None
    classes: tuple[str, ...]
    config: Config | None
    results: Mapping[str, Any] | None
    image_size: int

    @property
    def data_name(self) -> str | None:
        """The name of the run's data, without folders."""
        return None if self.config is None else short_name(self.config.data.name)

    @property
    def metadata(self) -> dict[str, Any]:
        """Return what `config.json` says about the network's origin."""
        found: dict[str, Any] = {"run": self.source.name, "which": self.which, "head": self.head}
        found |= {"data": self.data_name} if self.data_name is not None else {}
        return found | ({"classes": list(self.classes)} if self.classes else {})

    def accuracy(self, split: str = "test") -> Mapping[str, Any] | None:
        """Return the metrics that the run reports of this network; None if it has not finished."""
        found = ((self.results or {}).get("heads", {}).get(self.head) or {}).get(self.which) or {}
        metrics: Mapping[str, Any] | None = found.get(split)
        return metrics


def configured(run: Path, overrides: Sequence[str] = ()) -> tuple[Config, Config]:
    """Return the configuration of a run, and the same with overrides.

    Raises:
        UserError: no such run; a wrong override, or one that would make it another run.
    """
    config = read_run(run)
    for word in overrides:
        key = word.partition("=")[0]
        if key.partition(".")[0] not in OVERRIDDEN and key not in OVERRIDDEN:
            raise UserError(f"{shown(key)} cannot change in a finished run: {', '.join(OVERRIDDEN)} and data.KEY can")
    return config, load_config([f"experiment={run / 'config.yaml'}", *overrides], recipes=run)


def weights_config(source: Path, overrides: Sequence[str]) -> Config:
    """Return the configuration that says on which data weights that are no run's are used.

    Raises:
        UserError: `overrides` name no data, or are wrong.
    """
    if not any(word.startswith("data=") for word in overrides):
        raise UserError(f"{source} is not the folder of a run: give the data, as data=cifar100 data.root=PATH")
    return load_config(["scheme=supervised", *overrides], recipes=source)


def open_run(run: Path, overrides: Sequence[str] = (), *, best: bool = False, device: torch.device = CPU) -> Opened:
    """Open a run's data and build its networks, with the weights of the last checkpoint, or of the best epoch.

    Teachers that were trained first are read from their runs beside it; given ones from where they were, or from
    `teacher.checkpoint`. Other data must have the run's classes.

    Raises:
        UserError: no such run, checkpoint or best epoch; data, teacher or weights are missing or do not fit.
    """
    original, config = configured(run, overrides)
    if not (run / CHECKPOINT).is_file():
        raise UserError(f"{run} has no {CHECKPOINT}: nothing has been trained yet")
    state = read_checkpoint(run / CHECKPOINT)
    if best and state["best"] is None:
        raise UserError(f"{run} has no best epoch: it has not been validated")
    built = _with_trained_teachers(run, original, config)
    data = open_data(config.data, seed=config.seed, device=device, channels_last=config.train.channels_last)
    spec = _trained_on(run, original, config, data)
    scheme = build_scheme(built, replace(spec, initial_weights=False))
    try:
        weights, when = state["scheme"], f"after step {state['step']}"
        if best and state["best"] is not None:
            weights, when = load_state(run / state["best"]["file"]), f"of epoch {state['best']['epoch']}"
        load_full_state(scheme, weights)
    except (KeyError, RuntimeError) as error:
        raise UserError(f"{run / CHECKPOINT} does not fit this run ({first_line(error)[:120]})") from None
    if config.train.channels_last:
        scheme.to(memory_format=torch.channels_last)
    return Opened(config, data, scheme.to(device).eval(), spec, when)


def open_network(
    source: Path, overrides: Sequence[str] = (), *, head: str | None = None, best: bool = False
) -> Trained:
    """Return a head's network (default: the primary head's) of a run, or the one in a folder of exported weights.

    Of a finished run, the primary head is read from what the run has exported: neither data nor teacher are needed.

    Raises:
        UserError: no such run, head or weights; the head is no single network.
    """
    if not (source / "config.yaml").is_file() and (source / CONFIG).is_file():
        if head is not None or best:
            raise UserError(f"{source} holds one network: --head and --best are for the folder of a run")
        network, exits = _read(source)
        names, size = network.spec.label_names, network.spec.image_size
        return Trained(source, "student", "last", "", network, exits, names, None, None, size)
    config, _ = configured(source, overrides)
    results, which = read_results(source), "best" if best else "last"
    folder = source / "best" if best else source
    if results is not None and head in (None, results["primary_head"]) and (folder / WEIGHTS).is_file():
        network, exits = _read(folder)
        head = str(results["primary_head"])
        epoch = (results["heads"][head].get(which) or {}).get("epoch")
        when = f"after epoch {epoch}"
        size = results.get("image_size") or getattr(config.data, "image_size", None) or network.spec.image_size
        return Trained(source, head, which, when, network, exits, network.spec.label_names, config, results, size)
    opened = open_run(source, overrides, best=best)
    head = head or opened.scheme.heads[0]
    if head not in opened.scheme.heads:
        raise unknown("head", head, opened.scheme.heads)
    node = opened.scheme.node_of(head)
    plain = node.inference_network(head)
    if plain is None:
        raise UserError(f"{head} is not a single network: it cannot be exported")
    plain.spec = replace(plain.spec, label_names=tuple(opened.data.classes))
    exits = node.network if isinstance(node, NetworkWithExits) else None
    names, size = plain.spec.label_names, opened.spec.image_size
    return Trained(source, head, which, opened.when, plain.eval(), exits, names, config, results, size)


def check_classes(trained: Sequence[str], given: Sequence[str], source: Path) -> None:
    """Check that data have the classes of a network, in the same order.

    Raises:
        UserError: they have others.
    """
    if list(trained) == list(given):
        return
    if sorted(trained) == sorted(given):
        raise UserError(f"the data have the classes of {source} in another order: rename the folders")
    ours, theirs = (sorted(set(a) - set(b))[:3] for a, b in ((trained, given), (given, trained)))
    raise UserError(
        f"{source} has {len(trained)} classes, the data have {len(given)}: only in the run "
        f"{', '.join(map(shown, ours)) or 'none'}; only in the data {', '.join(map(shown, theirs)) or 'none'}"
    )


def _read(folder: Path) -> tuple[StagedNetwork, ExitNetwork | None]:
    if not (folder / EXITS_CONFIG).is_file():
        return load_model(folder), None
    exits = load_exit_model(folder)
    return exits.network, exits


def _with_trained_teachers(run: Path, original: Config, config: Config) -> Config:
    """Return `config` with the teachers that were trained first, in the folders beside the run."""
    if not prerequisite_runs(config):
        return config
    recorded = (read_results(run) or {}).get("teacher_checkpoint")
    names = [recorded] if isinstance(recorded, str) else recorded
    names = names or [run_name(other) for other in prerequisite_runs(original)]
    return with_teachers(config, [str(run.parent / Path(name).name) for name in names])


def _trained_on(run: Path, original: Config, config: Config, data: DataModule) -> DataSpec:
    """Return what the run's networks were built for, although `data` may be others.

    Of other data than the run's, which may no longer be here, it is what the run's exported network says.
    """
    same = all(getattr(config.data, key, None) == getattr(original.data, key, None) for key in OF_IMAGES)
    if same:
        spec = data.spec
    else:
        try:
            spec = open_data(original.data, seed=original.seed, device=CPU).spec
        except UserError as error:
            spec = _described(run, error)
    known = read_json(run / CONFIG).get("label_names", ()) if (run / CONFIG).is_file() else spec.classes
    if spec.channels != data.channels:
        raise UserError(f"{run} takes images of {spec.channels} channel(s), the data have {data.channels}")
    check_classes(tuple(known) or spec.classes, data.classes, run)
    return spec


def _described(run: Path, error: UserError) -> DataSpec:
    if not (run / CONFIG).is_file():
        raise error
    config = read_json(run / CONFIG)
    channels, found = int(config["channels"]), input_of(config, int(config["channels"]))
    side = found.image_size or int(config["image_size"])
    classes = tuple(map(str, config.get("label_names", ())))
    return DataSpec(int(config["num_classes"]), channels, side, classes=classes, mean=found.mean, std=found.std)
