"""Images without labels: what learns from them, and what does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from kdschemes.config import Config
from kdschemes.config.baselines import baseline_runs
from kdschemes.config.load import allow_typed, load_config
from kdschemes.config.prerequisites import prerequisite_runs
from kdschemes.core.types import Progress
from kdschemes.data import open_data
from kdschemes.schemes import build_scheme
from kdschemes.storage.naming import run_name
from kdschemes.training.train import train
from tests.config.cases import error

MADE = """
import numpy as np

def make():
    random = np.random.default_rng(0)
    labels = np.arange(60) % 3
    images = (random.integers(0, 60, (60, 8, 8)) + 60 * labels[:, None, None]).astype(np.uint8)
    return {"train": (images[:40], labels[:40]), "test": (images[40:], labels[40:]), "pool": images[::2] // 2}
"""

SHORT = ("model=mlp_16", "train.epochs=2", "train.batch_size=16", "train.num_threads=1")
OFFLINE = ("scheme=offline", "teacher=mlp_32", "teacher.epochs=2", "teacher.batch_size=16")


@pytest.fixture
def make(tmp_path: Path) -> str:
    (tmp_path / "pool.py").write_text(MADE)
    return f"data={tmp_path / 'pool.py'}:make"


def read(make: str, *words: str) -> Config:
    allow_typed([make], recipes=Path())
    return load_config([make, *SHORT, *words], recipes=Path())


def test_a_student_learns_from_them_by_its_teacher_alone(make: str, tmp_path: Path) -> None:
    words = (*OFFLINE, "data.unlabelled=pool", f"output_dir={tmp_path / 'runs'}")
    finished = train(read(make, *words))
    rows = [json.loads(line) for line in (finished.folder / "metrics.jsonl").read_text().splitlines()]
    assert any("kd/teacher->student" in str(row) for row in rows)
    assert max(row["step"] for row in rows if "step" in row) == 2 * 5  # of 37 images with labels, and 30 without
    data = open_data(read(make, *words).data, seed=0, device=torch.device("cpu"))
    scheme = build_scheme(read(make, "scheme=online", "data.unlabelled=pool"), data.spec)
    pool = torch.arange(40, 70)
    (batch,) = data.seen_in(0, [pool])
    losses = scheme(batch, Progress(0, 10, 5)).losses
    assert losses["ce/peer0"] == 0.0
    assert losses["kd/peer0->peer1"] > 0


def test_names_of_teachers_and_baselines_do_not_depend_on_them(make: str) -> None:
    plain, more = read(make, *OFFLINE), read(make, *OFFLINE, "data.unlabelled=pool")
    assert run_name(plain) != run_name(more)
    for runs in (prerequisite_runs, baseline_runs):
        assert [run_name(run) for run in runs(plain)] == [run_name(run) for run in runs(more)]


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["scheme=supervised"], "has no term to learn from"),
        (["scheme=self"], "has no term to learn from"),
        (["scheme=offline", "losses.response=none"], "has no term to learn from"),
        (["scheme=offline", "losses.response=dkd"], "the loss dkd needs the label of every image"),
        (["scheme=offline", "losses.relation=crd"], "the loss crd needs the label of every image"),
        (["scheme=offline", "method=camkd"], "method=camkd needs the label of every image"),
        (["scheme=offline", "data.sampling=balanced"], "exclude each other"),
    ],
)
def test_what_needs_labels_is_refused(words: list[str], hint: str, make: str) -> None:
    allow_typed([make], recipes=Path())
    assert hint in error(make, "data.unlabelled=pool", *words)
