"""`kdschemes export`: a trained network as files for other programs, checked against the run before they stay."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdschemes.data import DataModule, open_data
from kdschemes.deployment.card import card
from kdschemes.deployment.check import Checked, compare, near_threshold
from kdschemes.deployment.formats import (
    GRAPHS,
    Form,
    FromPixels,
    describe,
    graph,
    load,
    need_onnx,
    reference,
    write,
)
from kdschemes.deployment.opened import CPU, Trained, check_classes, configured, open_network, weights_config
from kdschemes.deployment.quantize import CALIBRATION_BATCH, CALIBRATION_IMAGES, quantize
from kdschemes.errors import UserError
from kdschemes.storage.atomic import atomic_write

BUDGETS = ("low", "middle", "high")

MOST_IMAGES, CHECK_BATCH = 10_000, 100

MOST_APART = 0.5
"""Points by which the accuracy in float32 may differ from what the run reported in its precision."""


def export(
    run: Path,
    out: Path | None,
    overrides: Sequence[str] = (),
    *,
    form: Form,
    exits: str | None = None,
    head: str | None = None,
    best: bool = False,
    license_name: str = "unknown",
    images: int = MOST_IMAGES,
) -> str:
    """Write a head of a run (default: the primary one) into the folder `out` and check it; return a line about it.

    The check runs the exported files on the test images of a finished run, at most `images` of them at equal
    distances (on validation images while it is not finished): its logits must be the run's own.

    Raises:
        UserError: no such run or head; the format cannot hold it; `out` is not empty or cannot be written; data are
            missing or not the run's; the files do not compute what the run does (they are removed).
    """
    _check_form(form, exits)
    trained = open_network(run, overrides, head=head, best=best)
    if trained.config is None:
        raise UserError(f"{run} is not the folder of a run: it has no config.yaml")
    if exits is not None:
        form = dataclasses.replace(form, thresholds=thresholds(trained, exits))
    default = "-".join(["export", form.format, *["int8"] * form.int8, *["exits"] * bool(exits)])
    out = out or run / default
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty: give another folder, or remove it first")
    data = held_out(trained, overrides)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as temporary:
            folder = Path(temporary) / out.name
            folder.mkdir()
            checked = write_checked(trained, form, data, folder, images)
            about = {"checked": dataclasses.asdict(checked)}
            if form.format in GRAPHS:
                describe(trained, form, folder, about)
            atomic_write(folder / "README.md", card(trained, form, checked, license_name, data.spec).encode())
            if out.exists():
                shutil.copytree(folder, out, dirs_exist_ok=True)
            else:
                folder.rename(out)
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}): choose another folder") from error
    when = f" {trained.when}" if trained.when else ""
    return f"{trained.head} of {run.name}{when}: {checked.line(int8=form.int8)}\n{out / form.file}"


def write_checked(
    trained: Trained, form: Form, data: DataModule, folder: Path, images: int, *, adapted: bool = False
) -> Checked:
    """Write the files of a format into a folder and return how they compare with the run's own network.

    With `adapted`, a graph takes the images of the data as they are, although the network's own may differ.

    Raises:
        UserError: the format cannot hold the network, or the files do not compute what it does.
    """
    network = trained.network
    network.accept(data.spec.input)
    adapt, own = network.adapt_input, reference(trained, form)
    if form.inside:
        module: nn.Module = FromPixels(graph(trained, form), data.spec.mean or (0.0,), data.spec.std or (1.0,))
    else:
        network.adapt_input = adapt if adapted else nn.Identity()
        module = graph(trained, form)

    def given(batch: Tensor) -> Tensor:
        if form.inside:
            return _pixels(batch, data).contiguous()
        return (batch if adapted else adapt(batch)).contiguous()

    calibration = [batch.images for batch in data.eval_batches("train", batch_size=2, rank=0, world=1, at_most=2)]
    write(trained, form, folder, module, given(calibration[0]))
    if form.int8:
        chosen = data.eval_batches("train", batch_size=CALIBRATION_BATCH, rank=0, world=1, at_most=CALIBRATION_IMAGES)
        quantize(folder / form.file, (given(batch.images) for batch in chosen))
    network.adapt_input = adapt
    split = next(name for name in _splits(trained) if data.sizes[name])

    def batches() -> Iterator[Any]:
        return data.eval_batches(split, batch_size=CHECK_BATCH, rank=0, world=1, at_most=images)

    near = None
    if form.thresholds is not None and trained.exits is not None:
        near = near_threshold(trained.exits, form.thresholds, (batch.images for batch in batches()))
    triples = ((batch.images, given(batch.images), batch.labels) for batch in batches())
    checked = compare(triples, own, load(form, folder), split, near=near, int8=form.int8)
    _check_reported(trained, checked, data, form)
    return checked


def held_out(trained: Trained, overrides: Sequence[str]) -> DataModule:
    """Open the data of a trained network's run, on the CPU.

    Raises:
        UserError: they are missing, or not those of the run.
    """
    config = configured(trained.source, overrides)[1] if trained.config else weights_config(trained.source, overrides)
    if trained.config is not None and config.data.name != trained.config.data.name:
        own = trained.config.data.name
        raise UserError(f"{trained.source} was trained on data={own}: only `kdschemes evaluate` accepts other data")
    data = open_data(config.data, seed=config.seed, device=CPU)
    if trained.classes:
        check_classes(trained.classes, data.classes, trained.source)
    digest = (trained.results or {}).get("data_digest")
    if digest not in (None, data.digest):
        raise UserError(f"the images or labels are not those of {trained.source}: set data.root=PATH to those")
    return data


def thresholds(trained: Trained, exits: str) -> tuple[float, ...]:
    """Return the thresholds of a budget of the run, or those given as numbers with commas.

    Raises:
        UserError: the network has no exits, the run no such budget, or these are not as many numbers as exits.
    """
    if trained.exits is None:
        raise UserError(f"{trained.head} of {trained.source} has no exits: train with scheme=self method=byot, say")
    count = len(trained.exits.exit_stages)
    if exits in BUDGETS:
        found: Mapping[str, Any] = (trained.results or {}).get("early_exit") or {}
        if trained.which == "best" or not found.get("budgets"):
            raise UserError(f"{trained.source} has no budgets for these weights: give --exits T1,T2,... as numbers")
        return tuple(float(value) for value in found["budgets"][exits]["thresholds"].values())
    try:
        numbers = tuple(float(word) for word in exits.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != count or not all(number >= 0 for number in numbers):
        raise UserError(f"--exits takes {', '.join(BUDGETS)}, or {count} confidences from 0 to 1 with commas")
    return numbers


def _check_form(form: Form, exits: str | None) -> None:
    if form.format not in GRAPHS:
        for flag, chosen in (("--preprocessing inside", form.inside), ("--exits", exits is not None)):
            if chosen:
                also = ", and writes all exits anyway" if flag == "--exits" and form.format == "safetensors" else ""
                raise UserError(f"--format {form.format} holds weights only{also}: {flag} is for {', '.join(GRAPHS)}")
    if form.int8 and form.format != "onnx":
        raise UserError("--int8 writes ONNX: add --format onnx")
    if form.int8 and exits is not None:
        raise UserError("--int8 cannot quantize the branches of early exit: leave out one of --int8 and --exits")
    if form.format == "onnx":
        need_onnx()


def _splits(trained: Trained) -> Sequence[str]:
    unfinished = trained.config is not None and trained.results is None
    return ("val", "train") if unfinished else ("test", "val", "train")


def _check_reported(trained: Trained, checked: Checked, data: DataModule, form: Form) -> None:
    reported = trained.accuracy(checked.split) if form.thresholds is None else None
    if reported is None or "top1" not in reported or checked.images < data.sizes[checked.split]:
        return
    if abs(checked.own - float(reported["top1"])) > MOST_APART:
        raise UserError(
            f"the run reported {float(reported['top1']):.2f} %, its weights have {checked.own:.2f} % on these images: "
            "give the run's images by data.root=PATH"
        )


def _pixels(images: Tensor, data: DataModule) -> Tensor:
    """Return the bytes that normalized images were made from."""
    channels = images.shape[1]
    mean, std = (
        torch.tensor(values or default).view(1, -1, 1, 1)
        for values, default in ((data.spec.mean, (0.0,) * channels), (data.spec.std, (1.0,) * channels))
    )
    return ((images * std + mean) * 255).round().to(torch.uint8)
