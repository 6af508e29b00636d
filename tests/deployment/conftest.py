"""Small finished runs on digits that the tests of this folder share."""

from __future__ import annotations

from pathlib import Path

import pytest
from filelock import FileLock

from kdschemes.config.load import load_config
from kdschemes.training.train import train

SHORT = ["train.num_threads=1", "train.epochs=4", "teacher.epochs=4", "optim.lr=0.05", "train.batch_size=32"]


def finished(place: Path, *words: str) -> Path:
    """Return the folder of a run."""
    return train(load_config([*words, f"output_dir={place}"], recipes=place)).folder


def finished_once(place: Path, *words: str) -> Path:
    """Return the folder of a run that the first of several test processes trains."""
    with FileLock(f"{place}.lock"):
        return finished(place, *words)


@pytest.fixture(scope="session")
def offline(common: Path) -> Path:
    """A student and the teacher that was trained first, both networks of one class."""
    words = ["scheme=offline", "model=convnet_quarter", "teacher.name=convnet_quarter", "data.train_fraction=0.5"]
    return finished_once(common / "offline", *SHORT, *words)


@pytest.fixture(scope="session")
def with_exits(common: Path) -> Path:
    """A network with two exits."""
    words = ["scheme=self", "model=wrn_16_1", "scheme.exit_head=linear", "losses.feature=none"]
    return finished_once(common / "self", *(word for word in SHORT if "teacher" not in word), *words)
