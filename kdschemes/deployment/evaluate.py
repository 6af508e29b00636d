"""`kdschemes evaluate`: the metrics of a run's heads, or of given weights, on any data, without training."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from kdschemes.config import Config
from kdschemes.config.naming import in_line
from kdschemes.core.distillation import Distillation
from kdschemes.core.nodes import Network, NetworkWithExits, Node
from kdschemes.core.placement import place_frozen
from kdschemes.core.types import Batch
from kdschemes.data import DataModule, open_data
from kdschemes.deployment.opened import Opened, open_network, open_run, weights_config
from kdschemes.errors import UserError
from kdschemes.evaluation.evaluate import evaluate as evaluate_heads
from kdschemes.models import AdaptInput, InputSpec
from kdschemes.models.class_order import order_outputs
from kdschemes.schemes import build_scheme
from kdschemes.storage.checkpoint import CHECKPOINT
from kdschemes.storage.naming import CONFIG
from kdschemes.storage.results import plain
from kdschemes.tracking.tables import text_table
from kdschemes.training.precision import choose_precision

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}

TITLES = {
    **{"top1": ("top-1 %", 2), "top5": ("top-5 %", 2), "nll": ("NLL", 4), "ece": ("ECE %", 2)},
    **{"map": ("mAP %", 2), "micro_f1": ("micro F1 %", 2), "macro_f1": ("macro F1 %", 2)},
    **{"agreement": ("agreement %", 2), "kl": ("KL(teacher)", 4)},
}
"""Title and digits of the metrics that have their own; others are shown by name, with two digits."""


def evaluate(source: Path, overrides: Sequence[str], *, split: str, best: bool, as_json: bool) -> str:
    """Return the metrics of every head on the test or validation split, as a table or JSON.

    `source` is a run's folder or its checkpoint, or weights, whose data `overrides` must name.

    Raises:
        UserError: no such run or weights; other classes or channels than the data; the split has no images.
    """
    run = source.parent if source.name == CHECKPOINT else source
    opened = (
        open_run(run, overrides, best=best, device=_device(overrides))
        if (run / "config.yaml").is_file()
        else _weights(source, overrides, best)
    )
    if not opened.data.sizes[split]:
        cure = "give data.val_fraction, or another --split" if split == "val" else "choose another --split"
        raise UserError(f"{opened.config.data.name} has no images in the {split} split: {cure}")
    metrics = _evaluated(opened, split)
    if as_json:
        about = {"source": str(source), "weights": opened.when, "data": opened.config.data.name, "split": split}
        images, precision = opened.data.sizes[split], opened.config.precision
        found = about | {"images": images, "precision": precision, "primary_head": opened.scheme.heads[0]}
        return json.dumps(plain(found | {"heads": metrics}), indent=2)
    keys = list(dict.fromkeys(key for found in metrics.values() for key in found))
    columns = {key: TITLES.get(key, (key, 2)) for key in keys}
    titles = ["head", *(title for title, _ in columns.values())]
    rows = [
        [head, *(_cell(found.get(key), digits) for key, (_, digits) in columns.items())]
        for head, found in metrics.items()
    ]
    where = f"{opened.config.data.name}, {split} split, {opened.data.sizes[split]:,} images"
    return f"{source} {opened.when}: {where}\n{text_table(titles, rows, left=('head',))}"


def _evaluated(opened: Opened, split: str) -> dict[str, dict[str, float]]:
    config, data, scheme = opened.config, opened.data, opened.scheme
    place_frozen(scheme, replace(config.teacher, placement="device"), data.device)
    scheme.to(data.device)
    batches = data.eval_batches(split, batch_size=config.train.eval_batch_size, rank=0, world=1)
    dtype = AUTOCAST.get(choose_precision(config)[0].precision)
    with torch.autocast(data.device.type, dtype, enabled=dtype is not None):
        return evaluate_heads(scheme, _adapted(batches, data.spec.input, opened.spec.input), data.device)


def _adapted(batches: Iterator[Batch], given: InputSpec, own: InputSpec) -> Iterator[Batch]:
    """Yield batches with images as the run's own data have them."""
    if given == own:
        yield from batches
        return
    adapt = AdaptInput(given, own)
    for batch in batches:
        yield replace(batch, images=adapt(batch.images))


def _weights(source: Path, overrides: Sequence[str], best: bool) -> Opened:
    """Open weights: a folder with a description, or a file and its `model`."""
    if best:
        raise UserError(f"{source} is not the folder of a run, which --best needs: remove it")
    described, words = (source / CONFIG).is_file(), list(overrides)
    if not described:
        if not any(word.startswith(("model=", "model.name=")) for word in overrides):
            raise UserError(f"{source} is not a run and does not name its network: add model=NAME")
        words.append(f"model.checkpoint={in_line(str(source))}")
    config = weights_config(source, words)
    data = open_data(config.data, seed=config.seed, device=_device(overrides), channels_last=config.train.channels_last)
    scheme = _described(source, data) if described else _built(config, source, data)
    return Opened(config, data, scheme.eval(), data.spec, "")


def _described(source: Path, data: DataModule) -> Distillation:
    trained = open_network(source)
    network = trained.network
    if network.spec.channels != data.channels:
        raise UserError(f"{source} takes images of {network.spec.channels} channel(s), the data have {data.channels}")
    _order(network, source, data)
    network.accept(data.spec.input)
    node: Node = NetworkWithExits("student", trained.exits) if trained.exits else Network("student", network)
    return Distillation({"student": node}, [], node.provides)


def _built(config: Config, source: Path, data: DataModule) -> Distillation:
    scheme = build_scheme(config, data.spec)
    network = scheme.node_of(scheme.heads[0]).inference_network(scheme.heads[0])
    assert network is not None
    _order(network, source, data)
    return scheme


def _order(network: Any, source: Path, data: DataModule) -> None:
    """Put the outputs in the order of the data's classes, if the weights name theirs."""
    if network.spec.num_classes != data.num_classes:
        raise UserError(f"{source} has {network.spec.num_classes} classes, the data have {data.num_classes}")
    order_outputs(network, source, data.classes)


def _device(overrides: Sequence[str]) -> torch.device:
    """Return the GPU, if there is one, unless another device is asked for."""
    asked = [word.partition("=")[2] for word in overrides if word.startswith("device=")][-1:]
    if asked == ["cuda"] and not torch.cuda.is_available():
        raise UserError("device=cuda, but torch sees no GPU here (use device=auto or device=cpu)")
    return torch.device("cuda" if torch.cuda.is_available() and asked != ["cpu"] else "cpu")


def _cell(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
