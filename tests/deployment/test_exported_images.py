"""What a run exports: a network that others load, prepare images for, and find as accurate as reported."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from kdschemes.config.data import Digits
from kdschemes.config.load import load_config
from kdschemes.data import open_data
from kdschemes.deployment.export import export
from kdschemes.deployment.formats import Form
from kdschemes.models import load_model
from kdschemes.storage.checkpoint import CHECKPOINT
from kdschemes.training.train import train

CLASSES = ("ant", "bee", "cat")
HALF = ["model.mean=[0.5,0.5,0.5]", "model.std=[0.5,0.5,0.5]"]
SHORT = [
    "train.epochs=1",
    "train.batch_size=16",
    "train.num_threads=1",
    "data.val_fraction=0.25",
    "data.train_fraction=1",
    "optim.lr=0.02",
]


def write_images(root: Path) -> Path:
    """Write noise whose color is that of the class, a little: PNG files of several sizes."""
    random = np.random.default_rng(0)
    for split, count in (("train", 16), ("test", 30)):
        for label, name in enumerate(CLASSES):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 200, (*random.integers(30, 80, 2), 3))
                pixels[..., label] += 10
                Image.fromarray(pixels.astype(np.uint8)).save(root / split / name / f"{number}.png")
    return root


def trained(place: Path, *words: str) -> tuple[Path, dict[str, Any]]:
    """Return the folder and the results of a run."""
    arguments = [*SHORT, "scheme=supervised", *words, f"output_dir={place / 'runs'}"]
    finished = train(load_config(arguments, recipes=place))
    return finished.folder, finished.results["heads"]["student"]


def hits(network: nn.Module, images: Path) -> tuple[int, int]:
    """Return how many images of a folder a network classifies rightly, all by timm and torchvision, and of how many."""
    from timm.data import create_transform, resolve_model_data_config
    from torchvision.datasets import ImageFolder

    transform = create_transform(**resolve_model_data_config(network), is_training=False)
    found = ImageFolder(str(images), transform)
    batch, labels = torch.stack([image for image, _ in found]), torch.tensor(found.targets)
    with torch.no_grad():
        return int((network.eval()(batch).argmax(1) == labels).sum()), len(labels)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "own"),
    [("timm/test_resnet", []), ("timm/test_vit", []), ("timm/test_resnet", HALF), ("resnet20", HALF)],
)
def test_timms_transform_gives_the_accuracy_that_the_run_reports(
    model: str, own: list[str], images: Path, tmp_path: Path
) -> None:
    import timm

    words = ["data=image_folder", f"data.root={images}", "data.image_size=32", "data.num_workers=0", f"model={model}"]
    folder, reported = trained(tmp_path, *words, *own)
    for place, which in ((folder, "last"), (folder / "best", "best")):
        timms = model.startswith("timm/")
        network = timm.create_model(f"local-dir:{place}", pretrained=True) if timms else load_model(place)
        assert network.pretrained_cfg["label_names" if timms else "num_classes"] == (list(CLASSES) if timms else 3)
        right, total = hits(network, images / "test")
        assert right == round(reported[which]["test"]["top1"] / 100 * total)
        assert total == 90
        assert load_model(place).spec.label_names == CLASSES


@pytest.mark.slow
def test_grey_images_in_memory_too(tmp_path: Path) -> None:
    import timm

    folder, reported = trained(tmp_path, "model=timm/test_resnet", "data.val_fraction=0.9", "data.train_fraction=1")
    data = open_data(Digits(), seed=0, device=torch.device("cpu"))
    pixels, labels = data.source.images["test"], data.labels["test"]  # type: ignore[attr-defined]
    for label in range(10):
        (tmp_path / "test" / str(label)).mkdir(parents=True)
    for number, (image, label) in enumerate(zip(pixels, labels.tolist(), strict=True)):
        Image.fromarray(image[0].numpy()).save(tmp_path / "test" / str(label) / f"{number}.png")
    network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert network.pretrained_cfg["mean"] == [0.3059]
    from timm.data import create_transform, resolve_model_data_config

    transform = create_transform(**resolve_model_data_config(network), is_training=False)
    files = sorted((tmp_path / "test").rglob("*.png"))
    with torch.no_grad():
        chosen = network(torch.stack([transform(Image.open(file)) for file in files])).argmax(1).tolist()
    right = sum(label == int(file.parent.name) for label, file in zip(chosen, files, strict=True))
    assert right == round(reported["last"]["test"]["top1"] / 100 * 539)


@pytest.mark.slow
def test_an_export_from_a_checkpoint_says_what_the_networks_initial_weights_were_trained_on(tmp_path: Path) -> None:
    few = ["model=convnet", "data.val_fraction=0.9", "data.train_fraction=1"]
    first, _ = trained(tmp_path, *few, "model.mean=[0.5]", "model.image_size=12")
    second, _ = trained(tmp_path, *few, f"model.checkpoint={first}", "model.std=[0.25]")
    os.remove(first / "model.safetensors")  # what it says is still there
    export(second, tmp_path / "out", form=Form("safetensors"))
    assert (second / CHECKPOINT).is_file()
    for folder in (second, tmp_path / "out"):
        spec = load_model(folder).spec
        assert (spec.mean, spec.std, spec.image_size) == ((0.5,), (0.25,), 12)
        assert json.loads((folder / "config.json").read_text())["pretrained_cfg"]["input_size"] == [1, 12, 12]
