"""Evaluation without training gives what the run reports, and refuses data of other classes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdschemes import cli
from kdschemes.deployment.export import export
from kdschemes.deployment.formats import Form
from kdschemes.storage.results import read_results
from tests.deployment.conftest import finished

pytestmark = pytest.mark.slow


def answer(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, dict[str, float]]:
    assert cli.main(["evaluate", *words, "--json"]) == 0
    heads: dict[str, dict[str, float]] = json.loads(capsys.readouterr().out)["heads"]
    return heads


@pytest.mark.parametrize("split", ["test", "val"])
def test_it_is_what_the_run_reports(
    split: str, offline: Path, with_exits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for run in (offline, with_exits):
        found = answer(capsys, str(run), "--split", split)
        reported = read_results(run)["heads"]  # type: ignore[index]
        assert found.keys() == reported.keys()
        for head, metrics in found.items():
            assert metrics == pytest.approx(reported[head]["last"][split], rel=1e-5)


def test_weights_alone(offline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(offline / "model.safetensors", tmp_path / "alone.safetensors")
    export(offline, tmp_path / "out", form=Form("safetensors"))
    reported = read_results(offline)["heads"]["student"]["last"]["test"]["top1"]  # type: ignore[index]
    words = ["data=digits", "data.train_fraction=1"]
    assert answer(capsys, str(tmp_path / "out"), *words)["student"]["top1"] == pytest.approx(reported)
    file = str(tmp_path / "alone.safetensors")
    assert answer(capsys, file, *words, "model=convnet_quarter")["student"]["top1"] == pytest.approx(reported)
    for arguments, message in (([file], "add model=NAME"), ([file, "model=convnet_quarter"], "give the data, as")):
        assert cli.main(["evaluate", *arguments]) == 2
        assert message in capsys.readouterr().err


def test_other_images_of_the_same_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    random = np.random.default_rng(0)
    for root, names in (("a", "xyz"), ("b", "xyz"), ("c", "xyw")):
        for split in ("train", "test"):
            for name in names:
                (tmp_path / root / split / name).mkdir(parents=True)
                for number in range(4):
                    pixels = random.integers(0, 255, (20, 20, 3)).astype(np.uint8)
                    Image.fromarray(pixels).save(tmp_path / root / split / name / f"{number}.png")
    data = ["data=image_folder", "data.image_size=16", "data.num_workers=0", "data.val_fraction=0"]
    words = ["scheme=supervised", "model=convnet_quarter", "train.epochs=1", "train.batch_size=4"]
    run = finished(tmp_path / "runs", *words, *data, f"data.root={tmp_path / 'a'}", "train.num_threads=1")
    shutil.rmtree(tmp_path / "a")
    capsys.readouterr()
    own = answer(capsys, str(run), f"data.root={tmp_path / 'b'}")["student"]
    larger = answer(capsys, str(run), f"data.root={tmp_path / 'b'}", "data.image_size=32")["student"]
    assert 0 <= own["top1"] <= 100
    assert larger["nll"] == pytest.approx(own["nll"], abs=0.5)
    assert cli.main(["evaluate", str(run), f"data.root={tmp_path / 'c'}"]) == 2
    error = capsys.readouterr().err
    assert "only in the run z; only in the data w" in error
    assert error.count("\n") == 1
    assert cli.main(["evaluate", str(run), "data=digits"]) == 2
    assert "takes images of 3 channel(s), the data have 1" in capsys.readouterr().err


def test_an_empty_split(offline: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evaluate", str(offline), "data.val_fraction=0", "--split", "val"]) == 2
    assert "no images in the val split" in capsys.readouterr().err
    assert cli.main(["evaluate", str(offline), "train.epochs=3"]) == 2
    assert "train.epochs cannot change" in capsys.readouterr().err
