"""The file formats of an export: how each is written, and how it is run again."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from kdschemes.checksums import json_with_checksum
from kdschemes.deployment.opened import Trained
from kdschemes.errors import UserError, first_line
from kdschemes.models import EarlyExit, load_exit_model, load_model, save_exits, save_weights
from kdschemes.models.exits_graph import EarlyExitGraph
from kdschemes.storage.atomic import atomic_write
from kdschemes.storage.naming import CONFIG, WEIGHTS

FORMATS = ("safetensors", "timm", "torch.export", "onnx")

GRAPHS = ("torch.export", "onnx")
"""The formats that hold the computation, not only the weights."""

PROGRAM, ONNX = "model.pt2", "model.onnx"

LARGE = 1_800_000_000
"""Bytes of weights from which on an ONNX file has them in a second file: protobuf holds 2 GB."""

Outputs = tuple[Tensor, ...]

Predictor = Callable[[Tensor], Outputs]
"""From a batch of images to the logits, and with early exit the exits taken."""


@dataclass(frozen=True)
class Form:
    """What is exported: the format, whether pixels are normalized inside, early exit by thresholds, in 8 bits."""

    format: str
    inside: bool = False
    thresholds: tuple[float, ...] | None = None
    int8: bool = False

    @property
    def file(self) -> str:
        """The name of the file with the weights."""
        return {"torch.export": PROGRAM, "onnx": ONNX}.get(self.format, WEIGHTS)

    @property
    def input_name(self) -> str:
        return "pixels" if self.inside else "images"


class FromPixels(nn.Module):
    """A network that takes pixels from 0 to 255 as bytes, and normalizes them by `mean` and `std` itself."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, pixels: UInt8[Tensor, "n c h w"]) -> Any:
        """Return what the network returns for `(pixels / 255 - mean) / std`."""
        return self.network((pixels.float() / 255.0 - self.mean) / self.std)


def need_onnx() -> None:
    """Check that what writes and runs ONNX is installed.

    Raises:
        UserError: it is not.
    """
    if missing := [name for name in ("onnx", "onnxruntime", "onnxscript") if find_spec(name) is None]:
        raise UserError(f'ONNX needs {", ".join(missing)}: pip install "kdschemes[export]"')


def graph(trained: Trained, form: Form) -> nn.Module:
    """Return the module whose computation is exported, from normalized images on.

    Raises:
        UserError: early exit is asked for and the network has no exits, or cannot be exported with them.
    """
    if form.thresholds is None:
        return trained.network.eval()
    assert trained.exits is not None
    return EarlyExitGraph(trained.exits, form.thresholds).eval()


def reference(trained: Trained, form: Form) -> Predictor:
    """Return the run's own prediction of normalized images."""
    if form.thresholds is None:
        return lambda images: (trained.network(images),)
    assert trained.exits is not None
    return EarlyExit(trained.exits, form.thresholds).eval()


def write(trained: Trained, form: Form, folder: Path, module: nn.Module, example: Tensor) -> None:
    """Write the files of a format (but for its README) into a folder; `module` is run on `example` for a graph.

    Raises:
        UserError: the format cannot hold this network, or the folder cannot be written.
    """
    if form.format == "timm" and not trained.network.spec.name.startswith("timm/"):
        raise UserError(
            f"timm cannot build {trained.network.spec.name}, which is not one of its networks: choose --format "
            "safetensors, torch.export or onnx"
        )
    save_weights(trained.network, folder, metadata=trained.metadata)
    if form.format in GRAPHS:
        (folder / WEIGHTS).unlink()
        _write_graph(form, folder, module, example)
    elif trained.exits is not None and form.format == "safetensors":
        save_exits(trained.exits, folder)


def describe(trained: Trained, form: Form, folder: Path, more: dict[str, Any]) -> None:
    """Write `config.json` with what the export is, beside what it says about preprocessing and classes."""
    about = {"format": form.format, "input": form.input_name, "int8": form.int8} | more
    config = trained.network.config() | {"metadata": trained.metadata, "export": about}
    atomic_write(folder / CONFIG, json_with_checksum(config | {"label_names": list(trained.classes)}))


def load(form: Form, folder: Path, *, threads: int | None = None) -> Predictor:
    """Return the exported network as a function of a batch, loaded from its files as their users load them."""
    if form.format == "onnx":
        return onnx_session(folder / ONNX, threads)
    if form.format == "torch.export":
        return _tuples(torch.export.load(folder / PROGRAM).module())
    if form.format == "timm":
        import timm

        return _tuples(timm.create_model(f"local-dir:{folder}", pretrained=True).eval())
    if form.thresholds is not None:
        return EarlyExit(load_exit_model(folder), form.thresholds).eval()
    return _tuples(load_model(folder))


def onnx_session(file: Path, threads: int | None = None) -> Predictor:
    """Return an ONNX file as a function of a batch, run by onnxruntime on the CPU with so many threads (None: all)."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or 0
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    (image,) = session.get_inputs()
    return lambda images: tuple(torch.from_numpy(x) for x in session.run(None, {image.name: images.numpy()}))


def _tuples(network: Callable[[Tensor], Any]) -> Predictor:
    def predict(images: Tensor) -> Outputs:
        found = network(images)
        return found if isinstance(found, tuple) else (found,)

    return predict


def _write_graph(form: Form, folder: Path, module: nn.Module, example: Tensor) -> None:
    shapes = ({0: torch.export.Dim("batch")},)
    outputs = ["logits", *(["exit"] if form.thresholds is not None else [])]
    try:
        with torch.no_grad(), warnings.catch_warnings(action="ignore"):  # of the exporter about itself
            program = torch.export.export(module, (example,), dynamic_shapes=shapes)
            if form.format == "torch.export":
                torch.export.save(program, folder / PROGRAM)
                return
            size = sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())
            torch.onnx.export(
                program,
                (),
                folder / ONNX,
                dynamo=True,
                input_names=[form.input_name],
                output_names=outputs,
                external_data=size > LARGE,
                verbose=False,
            )
    except Exception as error:  # an exporter can fail in any way on a network that it does not know
        name = type(module).__name__
        raise UserError(f"{name} cannot be exported as {form.format} ({first_line(error)[:200]})") from error
