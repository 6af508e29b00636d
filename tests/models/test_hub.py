"""Without a network, weights on the Hugging Face Hub are one line at once; a local copy needs none: test_weights.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import REPOSITORY

TIMM = "timm/resnet18.a1_in1k"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "name", "error"),
    [
        (
            ["scheme=offline", "teacher.checkpoint=hf_hub:a/b"],
            "a/b",
            "config.json of hf_hub:a/b cannot be",
        ),
        pytest.param(
            ["scheme=supervised", f"model={TIMM}", "model.pretrained=true"],
            TIMM,
            f"{TIMM} cannot be built for 1x224",
            marks=pytest.mark.exhaustive,
        ),
    ],
)
def test_without_a_network_it_is_said_at_once(words: list[str], name: str, error: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "kdschemes.cli", "train", *words, f"output_dir={tmp_path / 'runs'}"]
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9"}
    done = subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    start, download = done.stdout.splitlines()
    assert start.startswith(f"starting {words[0]} ")
    assert download == f"downloading {name} from the Hugging Face Hub"
    assert done.stderr.startswith(f"error: {error}")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "runs").exists()
