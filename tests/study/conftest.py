"""A folder that looks like a clone, and commands in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kdschemes import cli

Answer = Callable[..., tuple[int, str, str]]


@pytest.fixture
def clone(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that looks like a clone with the module's study, made the current one; on a machine without SLURM."""
    place = tmp_path / "clone"
    (place / "slurm").mkdir(parents=True)
    (place / "experiments" / "studies").mkdir(parents=True)
    (place / "run.py").touch()
    (place / "slurm" / "study.sbatch").touch()
    (place / "experiments" / "studies" / "mine.yaml").write_text(request.module.TEXT)
    monkeypatch.chdir(place)
    monkeypatch.setenv("PATH", str(tmp_path))
    return place


@pytest.fixture
def answer(capsys: pytest.CaptureFixture[str]) -> Answer:
    def run(*arguments: str) -> tuple[int, str, str]:
        code = cli.main(arguments)
        return (code, *capsys.readouterr())

    return run
