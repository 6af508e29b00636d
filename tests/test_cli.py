from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kdschemes import cli
from kdschemes.config.data import DATA
from kdschemes.config.load import load_config
from kdschemes.config.schemes import SCHEMES
from kdschemes.data import open_data

CARDS = Path(cli.__file__).parent / "schemes" / "cards"


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(arguments) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


@pytest.mark.parametrize("method", [method for table in SCHEMES.values() for method in table])
def test_card_prints_the_file(method: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert answer(capsys, "card", method) == (CARDS / f"{method}.md").read_text()


def test_stages(capsys: pytest.CaptureFixture[str]) -> None:
    lines = answer(capsys, "stages", "resnet20", "--data", "cifar100").splitlines()
    assert lines[0] == "resnet20 on 3x32x32, 100 classes: 278,324 parameters, 40,818,944 MACs"
    assert [line.split() for line in lines[1:]] == [
        ["stage", "depth", "features"],
        ["layer1", "35.8", "%", "16x32x32"],
        ["layer2", "67.9", "%", "32x16x16"],
        ["layer3", "100.0", "%", "64x8x8"],
    ]


def test_stages_of_other_images(capsys: pytest.CaptureFixture[str]) -> None:
    head, _, first, *_ = answer(capsys, "stages", "convnet", "--channels", "3", "--image-size", "16").splitlines()
    assert head.startswith("convnet on 3x16x16, 10 classes: ")
    assert first.split()[-1].startswith("32x")


def test_sizes_are_those_of_the_data() -> None:
    assert list(cli.SHAPES) == list(DATA)
    digits = open_data(load_config([], recipes=CARDS).data, seed=0, device=torch.device("cpu"))
    assert cli.SHAPES["digits"] == (digits.channels, digits.image_size, digits.num_classes)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["card", "dlm"], ["unknown method 'dlm'", "did you mean 'dml'?", "byot"]),
        (["stages", "resnt20"], ["unknown model 'resnt20'", "did you mean 'resnet20'?", "timm/NAME"]),
        (["stages", "convnet", "--data", "cifar"], ["unknown data 'cifar'", "cifar10", "image_folder"]),
        (["stages", "convnet", "--image-size", "0"], ["--image-size", "'0' is not a whole number above 0", "--help"]),
        (["stages", "convnet", "--image-size", "4"], ["needs 8x8 or more, not 4x4"]),
        (["stages"], ["MODEL", "kdschemes stages --help"]),
        (["train"], ["train", "stages", "card"]),
        ([], ["COMMAND", "kdschemes --help"]),
    ],
)
def test_mistakes_are_told_in_one_line(
    arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert [word for word in words if word not in err] == []


@pytest.mark.parametrize("arguments", [["--help"], ["card", "kd"], ["card", "nothing"], ["stages", "--help"]])
def test_torch_is_imported_only_when_needed(arguments: list[str]) -> None:
    program = (
        "import sys\nfrom kdschemes.cli import main\n"
        "try:\n    main(sys.argv[1:])\nfinally:\n    assert 'torch' not in sys.modules"
    )
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=CARDS.parents[2], check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout or done.stderr.startswith("error: ")
