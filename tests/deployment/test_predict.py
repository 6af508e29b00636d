"""Prediction of files: what the run's network says, whatever Pillow reads, and one line for what it can't."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import kdschemes
from kdschemes import cli
from kdschemes.config.load import load_config
from kdschemes.data import open_data
from kdschemes.deployment.images import Preparation
from kdschemes.deployment.opened import open_network
from kdschemes.models import load_model

pytestmark = pytest.mark.slow


def test_it_is_what_the_network_says(offline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = open_data(load_config([], recipes=tmp_path).data, seed=0, device=torch.device("cpu"))
    with torch.no_grad():
        own = load_model(offline)(next(data.eval_batches("test", batch_size=6, rank=0, world=1)).images).softmax(1)
    files = [str(tmp_path / f"{number}.{kind}") for number, kind in enumerate(("png", "bmp", "tiff", "gif", "webp"))]
    for number, file in enumerate(files):
        image = Image.fromarray(data.source.images["test"][number, 0].numpy())  # type: ignore[attr-defined]
        image.save(file, **({"lossless": True} if file.endswith("webp") else {}))
    (tmp_path / "bad.png").write_text("no image")
    missing = str(tmp_path / "missing.png")
    words = ["predict", str(offline), files[0], str(tmp_path / "bad.png"), *files[1:], missing, "--top", "3"]
    assert cli.main([*words, "--json"]) == 2
    out, err = capsys.readouterr()
    assert [line.startswith("error: cannot read the image") for line in err.splitlines()] == [True, True]
    found = json.loads(out)
    assert [one["image"] for one in found] == files
    for one, expected in zip(found, own, strict=False):
        probabilities, classes = expected.topk(3)
        assert [entry["class"] for entry in one["classes"]] == [str(int(k)) for k in classes]
        assert one["probability"] == pytest.approx(float(probabilities[0]), abs=1e-5)
    assert cli.main(["predict", str(offline), files[0]]) == 0
    table = capsys.readouterr().out.splitlines()
    assert f"{100 * float(own[0].max()):.2f}" in table[-1]


def test_a_network_larger_than_the_images_sees_them_enlarged_from_their_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A picture of any size becomes one of 12 pixels, like the run's, and then one of the network's 16."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 255, (24, 12, 12), dtype=np.uint8)
    made = {"train": (images, np.arange(24) % 3), "test": (images[:6], np.arange(6) % 3)}
    short = {"epochs": 1, "batch_size": 8}
    run = kdschemes.train(
        "scheme=supervised", "model=lenet5", "model.image_size=16", data=made, output_dir=tmp_path, train=short
    )
    path = tmp_path / "large.png"
    Image.fromarray(np.kron(images[0], np.ones((3, 3), np.uint8))).save(path)
    capsys.readouterr()
    assert cli.main(["predict", str(run.folder), str(path), "--json", "--top", "3"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    opened = open_network(run.folder)
    seen = Preparation(opened)(path)
    assert seen.shape == (1, 1, 12, 12)
    with torch.no_grad():
        expected = opened.network(seen).softmax(1)[0]
    by_class = {entry["class"]: entry["probability"] for entry in found["classes"]}
    assert [by_class[str(k)] for k in range(3)] == pytest.approx(expected.tolist(), abs=1e-5)


def test_nothing_to_show(offline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["predict", str(offline), str(tmp_path / "missing.png")]) == 2
    out, err = capsys.readouterr()
    assert out.strip() == ""
    assert err.count("\n") == 1
    assert cli.main(["predict", str(tmp_path), "x.png"]) == 2
    assert "is not a run folder" in capsys.readouterr().err
