"""The examples of docs/custom.md run as a reader would: its files in an empty folder, its commands there."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kdschemes import cli
from tests import REPOSITORY

PAGE = (REPOSITORY / "docs" / "custom.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
FILES = {found[1]: text for text in BLOCKS if (found := re.match(r"# (\w+\.py)\n", text))}
TRAINS = re.findall(r"^kdschemes train (?!--help).*$", PAGE, flags=re.MULTILINE)
HELP = re.findall(r"^kdschemes (train --help .*)$", PAGE, flags=re.MULTILINE)
SHORT = "output_dir=runs train.epochs=1 train.batch_size=16 train.num_threads=1"
DIGITS = "data.train_fraction=0.1 model=convnet_quarter"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        Path(name).write_text(text)
    return tmp_path


def test_examples_have_at_most_twenty_lines() -> None:
    assert set(FILES) == {"nets.py", "arrays.py", "items.py", "hub.py", "pairs.py", "reverse.py", "ring.py"}
    for text in BLOCKS:
        lines = [line for line in text.splitlines() if line.strip() and not line.startswith(("import ", "from ", "# "))]
        assert len(lines) <= 20, text


def local_images(name: str) -> object:
    """Return what `datasets.load_dataset` returns, from images made here instead of downloaded ones."""
    import datasets

    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    generator = np.random.default_rng(len(name))
    columns = {
        split: {
            "img": list(generator.integers(0, 255, (count, 8, 8, 3), dtype=np.uint8)),
            "label": [k % 2 for k in range(count)],
        }
        for split, count in (("train", 64), ("test", 32))
    }
    splits = {split: datasets.Dataset.from_dict(rows, features=features) for split, rows in columns.items()}
    return datasets.DatasetDict(splits)


@pytest.mark.slow
@pytest.mark.parametrize("line", TRAINS)
def test_commands_train(
    line: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    more = DIGITS if "data=" not in line and "model=" not in line else ""
    words = shlex.split(line)[1:]
    own_data = "model=convnet_quarter" if "data=" in line else ""
    if "scheme=offline" in line:
        more += " teacher.epochs=1 teacher.batch_size=16"
    if line.endswith("hub.py:make"):
        pytest.importorskip("datasets")
        monkeypatch.setattr("datasets.load_dataset", local_images)
        own_data += " teacher=convnet_quarter"
    assert cli.main([*words, *f"{SHORT} {more} {own_data}".split()]) == 0, capsys.readouterr().err
    (run,) = [path for path in (here / "runs").iterdir() if not path.name.startswith("supervised")]
    flags = [word for name in re.findall(r"\w+\.py(?::\w+)?", line) for word in ("--allow", name)]
    assert cli.main(["cite", str(run), *flags]) == 0
    assert cli.main(["study", "report", str(run), *flags]) == 0, capsys.readouterr().err


@pytest.mark.usefixtures("here")
def test_the_help_of_a_plugin(capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = HELP
    assert cli.main(line.split()) == 0
    assert "reverse_kl" in capsys.readouterr().out


@pytest.mark.slow
def test_the_example_in_python_runs(here: Path) -> None:
    (example,) = [text for text in BLOCKS if "kdschemes.train(" in text]
    (here / "example.py").write_text(example)
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", "example.py"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2_000:]
    accuracy, folder = done.stdout.splitlines()[-1].split(" ", 1)
    assert 0 <= float(accuracy) <= 100
    assert Path(folder).parent == Path("runs")
