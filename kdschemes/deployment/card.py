"""The README of an export: what it is, how accurate, what it takes, how it is loaded; also the Hub's model card."""

from __future__ import annotations

import re
from collections.abc import Sequence

from kdschemes.cards.cite import cite
from kdschemes.config.code import GIVEN
from kdschemes.core.types import DataSpec
from kdschemes.deployment.check import Checked
from kdschemes.deployment.formats import ONNX, PROGRAM, Form
from kdschemes.deployment.opened import Trained
from kdschemes.errors import UserError
from kdschemes.storage.naming import short_name
from kdschemes.storage.results import main_metric, metric_title

MOST_CLASSES = 200

SINGLE = re.compile(r"print\((.*)\[logits\.argmax\(\)\]\)")
"""How a loader prints the class of an image that has one."""

LOADERS = {
    "safetensors": """\
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from kdschemes.models import load_model
{download}
network = load_model({place})
prepare = create_transform(**resolve_model_data_config(network))
logits = network(prepare(Image.open("image.png").convert("{mode}"))[None])
print(network.spec.label_names[logits.argmax()])
""",
    "timm": """\
import timm
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

network = timm.create_model("{timm_place}", pretrained=True).eval()
prepare = create_transform(**resolve_model_data_config(network))
logits = network(prepare(Image.open("image.png").convert("{mode}"))[None])
print(network.pretrained_cfg["label_names"][logits.argmax()])
""",
    "torch.export": """\
import json, pathlib, numpy, torch
from PIL import Image, ImageOps

network = torch.export.load("{program}").module()
image = ImageOps.fit(Image.open("image.png").convert("{mode}"), ({side}, {side}), {bilinear}{bleed})
{input} = {normalize}
{outputs} = network({input})
print(json.loads(pathlib.Path("config.json").read_text())["label_names"][logits.argmax()])
""",
    "onnx": """\
import json, pathlib, numpy, onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession("{onnx}")
image = ImageOps.fit(Image.open("image.png").convert("{mode}"), ({side}, {side}), {bilinear}{bleed})
{input} = {normalize}
{outputs} = session.run(None, {{"{input}": {input}}})
print(json.loads(pathlib.Path("config.json").read_text())["label_names"][logits.argmax()])
""",
}


def card(
    trained: Trained, form: Form, checked: Checked | None, license_name: str, given: DataSpec | None, place: str = ""
) -> str:
    """Return the text of the README; `given` are the images that the run was trained on, `place` its name on the Hub.

    Without `checked`, the accuracy is only that of the run.
    """
    parts = [
        f"# {short_name(trained.network.spec.name)}, {trained.head} of {trained.source.name}",
        _what(trained, form),
    ]
    parts += ["## Accuracy", _accuracy(trained, form, checked)]
    parts += ["## Input", _input(trained, form, given), "## Classes", _classes(trained.classes)]
    parts += ["## Load it", f"```python\n{loader(trained, form, place)}```"]
    if form.format == "safetensors" and _own_code(trained):
        parts.append(
            "The code of the network is not in this folder: the last argument of `load_model` says what it was."
        )
    unknown = " (none was given: `kdschemes export --license ID`)" if license_name == "unknown" else ""
    parts += ["## License", f"{license_name}{unknown}"]
    try:
        parts += ["## Citation", f"```bibtex\n{cite(trained.source)}\n```"]
    except UserError:
        parts.pop()
    return "\n\n".join(parts) + "\n"


def loader(trained: Trained, form: Form, place: str = "") -> str:
    """Return the Python program that loads the export and classifies `image.png`, to be run in its folder."""
    spec = trained.network.spec
    side = trained.image_size if form.inside else spec.image_size
    numpy, shape = form.format == "onnx", f"{side}, {side}, {spec.channels}"
    if numpy:
        images = f"numpy.array(image{'' if form.inside else ', numpy.float32'}).reshape(1, {shape})"
        one, last = "numpy.float32({})", ".transpose(0, 3, 1, 2)"
    else:
        images = f"torch.tensor(numpy.array(image)).view(1, {shape})"
        one, last = "torch.tensor({})", ".permute(0, 3, 1, 2)"
    if not form.inside:
        channels = range(spec.channels)
        mean, std = (
            one.format([float(x) for x in values or fill])
            for values, fill in ((spec.mean, [0.0 for _ in channels]), (spec.std, [1.0 for _ in channels]))
        )
        images = f"(({images} / 255 - {mean}) / {std})"
    code = LOADERS[form.format]
    if (trained.results or {}).get("multi_label"):
        code = SINGLE.sub(r"print([name for name, logit in zip(\1, logits[0]) if logit > 0])", code)
    return code.format(
        program=PROGRAM,
        onnx=ONNX,
        download="from huggingface_hub import snapshot_download\n" if place else "",
        place=(f'snapshot_download("{place}")' if place else '"."') + _own_code(trained),
        timm_place=f"hf-hub:{place}" if place else "local-dir:.",
        mode="L" if spec.channels == 1 else "RGB",
        side=side,
        bilinear="Image.Resampling.BILINEAR",
        bleed=f", bleed={(1 - spec.crop_pct) / 2:.6g}" if spec.crop_pct < 1 else "",
        input=form.input_name,
        normalize=images + last,
        outputs="logits, taken" if form.thresholds is not None else "(logits,)" if numpy else "logits",
    )


def _own_code(trained: Trained) -> str:
    """Return the argument of `load_model` without which a network of the user's own is not loaded; "" for others."""
    spec = trained.network.spec
    if spec.name.startswith(GIVEN):
        return f", network={short_name(spec.name).rpartition('-')[0]}"
    return f", allow={list(spec.code)}" if spec.code else ""


def _what(trained: Trained, form: Form) -> str:
    config = trained.config
    words = [f"An image classifier, trained with kdschemes {trained.when}"]
    if config is not None:
        words.append(f"as `{config.scheme.name}/{config.scheme.method}` on {trained.data_name}, seed {config.seed}")
    if trained.results and trained.results.get("teacher") and config is not None:
        teachers = config.teacher.name if isinstance(config.teacher.name, list) else [config.teacher.name]
        words.append(f"with the teacher {' and '.join(map(short_name, teachers))}")
    text = ", ".join(words) + "."
    if form.thresholds is not None:
        shown = ", ".join(f"{value:.4g}" for value in form.thresholds)
        text += (
            f" It has early exits: an image leaves at the first exit whose highest probability reaches {shown}, and a "
            "batch stops when all of its images have left: give single images for speed. The second output is the "
            "exit of each image, from 0."
        )
    if form.int8:
        text += " Its weights and activations have 8 bits (static quantization, calibrated on training images)."
    return text


def _accuracy(trained: Trained, form: Form, checked: Checked | None) -> str:
    main = main_metric(trained.accuracy("test") or trained.accuracy("val") or {})
    rows = [f"| | split | {metric_title(main)} % | NLL | ECE % |", "| --- | --- | --- | --- | --- |"]
    for name, head in ((trained.head, trained.head), ("its teacher", (trained.results or {}).get("teacher"))):
        found = ((trained.results or {}).get("heads", {}).get(head) or {}).get(trained.which) or {}
        for split in ("val", "test"):
            if metrics := found.get(split):
                numbers = " | ".join(f"{float(metrics[key]):.{d}f}" for key, d in ((main, 2), ("nll", 4), ("ece", 2)))
                rows.append(f"| {name}, as the run reports | {split} | {numbers} |")
    if checked is None:
        return "\n".join(rows)
    if main == "top1":
        rows.append(f"| this file, {checked.images:,} images | {checked.split} | {checked.exported:.2f} | | |")
    return "\n".join(rows) + f"\n\nChecked when it was exported: {checked.line(int8=form.int8)}."


def _input(trained: Trained, form: Form, given: DataSpec | None) -> str:
    spec = trained.network.spec
    side = trained.image_size if form.inside else spec.image_size
    kind = "gray" if spec.channels == 1 else "RGB"
    crop = "" if spec.crop_pct == 1 else f", the shorter side resized to {round(side / spec.crop_pct)}, then"
    text = f"Batches of any size of {kind} images, [N, {spec.channels}, {side}, {side}]{crop} cropped to the center: "
    if form.inside:
        return text + "pixels from 0 to 255 as uint8; they are normalized inside."
    mean, std = list(spec.mean or ()), list(spec.std or ())
    return text + f"pixels scaled to 0..1, minus {mean}, divided by {std} per channel."


def _classes(classes: Sequence[str]) -> str:
    listed = ", ".join(classes[:MOST_CLASSES])
    more = f", ... ({len(classes)} in `config.json`, `label_names`)" if len(classes) > MOST_CLASSES else ""
    return f"{len(classes)}, in the order of the logits: {listed}{more}"
