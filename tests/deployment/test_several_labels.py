"""Runs on images with several labels: from training to the exported file and the report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import kdschemes
from kdschemes import cli
from kdschemes.deployment.opened import open_network
from kdschemes.errors import UserError
from kdschemes.tracking.metrics_log import read_rows

pytestmark = pytest.mark.slow

PAIRS = """
import numpy as np


def make(count=96):
    generator, splits = np.random.default_rng(0), {}
    for name in ("train", "test"):
        labels = (generator.random((count, 3)) < 0.5).astype(np.int64)
        images = generator.integers(0, 60, (count, 12, 12), dtype=np.uint8)
        for k in range(3):
            images[:, 4 * k : 4 * k + 4] += (150 * labels[:, k])[:, None, None].astype(np.uint8)
        splits[name] = (images, labels)
    return splits
"""


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("several")
    (folder / "pairs.py").write_text(PAIRS)
    return folder


def train(here: Path, *words: str) -> kdschemes.Results:
    common = [
        *["data.flip=false", "data.crop_padding=0", "train.epochs=4", "train.batch_size=16", "train.num_threads=1"]
    ]
    name = f"data={here}/pairs.py:make"
    return kdschemes.train(name, "model=lenet5", *common, *words, output_dir=here / "runs")


@pytest.fixture(scope="module")
def taught(here: Path) -> kdschemes.Results:
    more = ("teacher=convnet_quarter", "teacher.epochs=4", "teacher.batch_size=16", "losses.feature=at")
    return train(here, "scheme=offline", "losses.response=mld", *more)


def test_training_chooses_by_average_precision_and_a_report_shows_it(
    taught: kdschemes.Results, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    test = taught.metrics["last"]
    assert test is not None
    assert test.keys() == {"map", "micro_f1", "macro_f1", "nll", "ece", "agreement", "kl"}
    assert test["map"] > 80
    rows = [row for row in read_rows(taught.folder / "metrics.jsonl") if row["kind"] == "eval"]
    best = max(rows, key=lambda row: (row["student/map"], -row["student/nll"]))
    assert taught.results["heads"]["student"]["best"]["epoch"] == best["epoch"]
    assert "test mAP %" in repr(taught)
    assert "top-" not in repr(taught)
    assert cli.main(["study", "report", str(taught.folder), "--out", str(here / "report.html")]) == 0
    page = (here / "report.md").read_text()
    assert "| run | test mAP %, last |" in page
    assert "top-1" not in page
    assert f"{test['map']:.2f}" in page


def test_evaluate_predict_and_export(
    taught: kdschemes.Results, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(here)
    run, allow = str(taught.folder), ["--allow", f"{here}/pairs.py:make"]
    test = taught.metrics["last"]
    assert test is not None
    assert cli.main(["evaluate", run, "--json", *allow]) == 0
    found = json.loads(capsys.readouterr().out)["heads"]["student"]
    assert found == pytest.approx(test, rel=1e-5)
    image = np.full((12, 12), 30, np.uint8)
    image[:8] = 180
    Image.fromarray(image).save("two.png")
    assert cli.main(["predict", run, "two.png", "--top", "3", "--json"]) == 0
    (seen,) = json.loads(capsys.readouterr().out)
    network = open_network(taught.folder).network
    pixels = (torch.from_numpy(image)[None, None] / 255 - network.spec.mean[0]) / network.spec.std[0]  # type: ignore[index]
    with torch.no_grad():
        expected = network(pixels).sigmoid()[0]
    by_class = {one["class"]: one["probability"] for one in seen["classes"]}
    assert [by_class[str(k)] for k in range(3)] == pytest.approx(expected.tolist(), abs=1e-5)
    assert cli.main(["export", run, "out", "--format", "onnx", *allow]) == 0
    assert "% on the decisions for 96 test images" in capsys.readouterr().out
    card = Path("out", "README.md").read_text()
    assert "| | split | mAP % |" in card
    assert "if logit > 0]" in card
    assert cli.main(["bench", run, *allow]) == 2
    assert "has several labels per image" in capsys.readouterr().err


def test_exits_learn_and_have_no_curve_of_confidence(here: Path) -> None:
    run = train(here, "scheme=self", "losses.response=mld", "train.epochs=1")
    assert "early_exit" not in run.results
    assert {"student", "student/exit1"} <= run.results["heads"].keys()


def test_what_needs_one_label_stops_before_training(here: Path) -> None:
    with pytest.raises(UserError, match=r"losses\.response=kd needs one: choose logit_mse, mld, none"):
        train(here, "scheme=online")
    assert not list((here / "runs").glob("online*/checkpoint.pt"))
