"""An export computes what the run does, or it isn't there."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kdschemes import cli
from kdschemes.config.load import load_config
from kdschemes.data import open_data
from kdschemes.deployment import check, formats
from kdschemes.deployment.export import export
from kdschemes.deployment.formats import Form, load
from kdschemes.models import EarlyExit, load_exit_model, load_model
from kdschemes.storage.results import read_results
from tests import REPOSITORY
from tests.deployment.conftest import finished

pytestmark = pytest.mark.slow

DIGITS = open_data(load_config([], recipes=Path()).data, seed=0, device=torch.device("cpu"))


def test_images() -> torch.Tensor:
    return next(DIGITS.eval_batches("test", batch_size=539, rank=0, world=1)).images


test_images.__test__ = False  # type: ignore[attr-defined]


def run_readme(folder: Path, position: int) -> str:
    """Run the program of an export's README on a test image, and return the class that it prints."""
    pixels = DIGITS.source.images["test"][position, 0].numpy()  # type: ignore[attr-defined]
    Image.fromarray(pixels).save(folder / "image.png")
    (program,) = re.findall(r"^```python\n(.*?)^```", (folder / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert len([line for line in program.splitlines() if line and not line.startswith(("import", "from"))]) <= 5
    printed, here = io.StringIO(), Path.cwd()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(printed):
            exec(program, {})
    finally:
        os.chdir(here)
        (folder / "image.png").unlink()
    return printed.getvalue().strip()


@pytest.mark.parametrize(
    "form",
    [
        Form("safetensors"),
        Form("torch.export", inside=True),
        Form("onnx"),
        Form("onnx", inside=True, int8=True),
    ],
    ids=lambda form: f"{form.format}{'-inside' * form.inside}{'-int8' * form.int8}",
)
def test_each_format_computes_what_the_run_does(form: Form, offline: Path, tmp_path: Path) -> None:
    line = export(offline, tmp_path / "out", form=form, license_name="mit")
    reported = read_results(offline)["heads"]["student"]["last"]["test"]["top1"]  # type: ignore[index]
    assert f"{reported:.2f} %" in line
    images, network = test_images(), load_model(offline)
    given = ((images * 0.3767 + 0.3059) * 255).round().to(torch.uint8) if form.inside else images
    with torch.no_grad():
        own, predict = network(images), load(form, tmp_path / "out")
        for size in (1, 3, 539):
            (logits,) = predict(given[:size])
            if not form.int8:
                torch.testing.assert_close(logits, own[:size], atol=1e-4 * float(own.abs().max()), rtol=0)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["label_names"] == [str(digit) for digit in range(10)]
    sure = int(own.softmax(1).amax(1).argmax())
    assert run_readme(tmp_path / "out", sure) == str(int(own[sure].argmax()))
    text = (tmp_path / "out" / "README.md").read_text()
    assert f"{reported:.2f}" in text
    assert "## License\n\nmit" in text
    assert {path.name for path in (tmp_path / "out").iterdir()} == {form.file, "config.json", "README.md"}
    if form.int8:
        assert "it costs" in line
        assert (tmp_path / "out" / form.file).stat().st_size < 0.6 * (offline / "model.safetensors").stat().st_size


def test_timm_loads_its_networks(tmp_path: Path) -> None:
    words = ["scheme=supervised", "model=timm/test_resnet", "train.epochs=1", "train.num_threads=1"]
    run = finished(tmp_path / "runs", *words)
    export(run, tmp_path / "out", form=Form("timm"))
    (logits,) = load(Form("timm"), tmp_path / "out")(test_images()[:4])
    torch.testing.assert_close(logits, load_model(run)(test_images()[:4]))
    assert run_readme(tmp_path / "out", 0) == str(int(logits[0].argmax()))


def test_a_network_that_resizes_its_images_does_so_inside(tmp_path: Path) -> None:
    words = ["scheme=supervised", "model=convnet_quarter", "model.image_size=12", "model.mean=[0.5]", "train.epochs=1"]
    run = finished(tmp_path / "runs", *words, "train.num_threads=1")
    export(run, tmp_path / "out", form=Form("torch.export", inside=True))
    (logits,) = load(Form("torch.export"), tmp_path / "out")(torch.zeros(2, 1, 8, 8, dtype=torch.uint8))
    assert logits.shape == (2, 10)
    export(run, tmp_path / "beside", form=Form("torch.export"))
    (logits,) = load(Form("torch.export"), tmp_path / "beside")(torch.zeros(2, 1, 12, 12))
    assert logits.shape == (2, 10)
    assert run_readme(tmp_path / "beside", 0) in "0123456789"


@pytest.mark.parametrize("kind", [pytest.param("torch.export", marks=pytest.mark.exhaustive), "onnx"])
def test_early_exit_is_one_graph(kind: str, with_exits: Path, tmp_path: Path) -> None:
    # in a process of its own: the checks of shapes in tests change what torch.cond traces
    words = ["export", str(with_exits), str(tmp_path / "out"), "--format", kind, "--exits", "0.5,0.6"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    subprocess.run([sys.executable, "-m", "kdschemes", *words], check=True, env=environment, stdout=subprocess.DEVNULL)
    form, images = Form(kind, thresholds=(0.5, 0.6)), test_images()
    own, exported = EarlyExit(load_exit_model(with_exits), (0.5, 0.6)), load(form, tmp_path / "out")
    with torch.no_grad():
        for batch in (images[:1], images[7:8], images[:50]):
            (logits, taken), (found, found_taken) = own(batch), exported(batch)
            assert torch.equal(found_taken, taken)
            torch.testing.assert_close(found, logits, atol=1e-4, rtol=1e-4)
    assert run_readme(tmp_path / "out", 0)


def test_a_wrong_export_is_removed(offline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "TOLERANCE", -1.0)
    out = tmp_path / "out"
    assert cli.main(["export", str(offline), str(out), "--format", "torch.export"]) == 2
    assert not out.exists()
    assert list(tmp_path.iterdir()) == []


def test_without_its_libraries_the_error_names_the_extra(
    offline: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(formats, "find_spec", lambda name: None)
    assert cli.main(["export", str(offline), "--format", "onnx"]) == 2
    assert capsys.readouterr().err.endswith('pip install "kdschemes[export]"\n')


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--format", "timm"], "timm cannot build convnet_quarter"),
        (["--int8"], "--int8 writes ONNX: add --format onnx"),
        (["--preprocessing", "inside"], "holds weights only"),
        (["--format", "onnx", "--exits", "middle"], "has no exits"),
        (["--head", "teacher2"], "unknown head 'teacher2'"),
        (["model=convnet"], "model cannot change in a finished run"),
        (["--format", "onix"], "invalid choice: 'onix'"),
    ],
)
def test_mistakes(words: list[str], message: str, offline: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", str(offline), *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(offline.glob("export-*"))


def test_exits_need_as_many_thresholds(with_exits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", str(with_exits), "--format", "onnx", "--exits", "0.5"]) == 2
    assert "2 confidences from 0 to 1" in capsys.readouterr().err
    assert cli.main(["export", str(with_exits), "--format", "onnx", "--exits", "0.5,0.5", "--int8"]) == 2
    assert "cannot quantize the branches" in capsys.readouterr().err


def test_a_folder_with_files_is_left_alone(offline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert cli.main(["export", str(offline), str(tmp_path)]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_pixels_are_recovered_exactly() -> None:
    images = test_images()
    pixels = DIGITS.source.images["test"].numpy()  # type: ignore[attr-defined]
    from kdschemes.deployment.export import _pixels

    assert np.array_equal(_pixels(images, DIGITS).numpy(), pixels)
