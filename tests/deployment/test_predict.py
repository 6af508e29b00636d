"""Prediction of files: what the run's network says, whatever Pillow reads, and one line for what it can't."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from kdschemes import cli
from kdschemes.config.load import load_config
from kdschemes.data import open_data
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


def test_nothing_to_show(offline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["predict", str(offline), str(tmp_path / "missing.png")]) == 2
    out, err = capsys.readouterr()
    assert out.strip() == ""
    assert err.count("\n") == 1
    assert cli.main(["predict", str(tmp_path), "x.png"]) == 2
    assert "is not a run folder" in capsys.readouterr().err
