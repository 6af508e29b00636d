"""The code of a run: its commit, marked if files differ, and none outside of a checkout."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdschemes import __version__
from kdschemes.config.load import load_config
from kdschemes.training import code
from tests import REPOSITORY


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package of one file in a git repository that has not added it yet."""
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / "__init__.py").write_text("a = 1\n")
    git(tmp_path, "init", "-q")
    monkeypatch.setattr(code, "PACKAGE", folder)
    code.commit.cache_clear()
    yield folder
    code.commit.cache_clear()


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    return subprocess.run(["git", *identity, *words], cwd=folder, check=True, capture_output=True, text=True).stdout


def test_the_commit_is_that_of_the_checkout_and_says_if_files_differ(package: Path) -> None:
    assert code.commit() is None, "a package that git does not track (site-packages in somebody's repository)"
    code.commit.cache_clear()
    git(package, "add", ".")
    git(package, "commit", "-qm", "one")
    (package / "other.py").write_text("untracked\n")
    head = git(package, "rev-parse", "HEAD")[:12]
    assert code.commit() == head
    (package / "__init__.py").write_text("a = 2\n")
    assert code.commit() == head, "the process has imported the files as they were"
    code.commit.cache_clear()
    assert code.commit() == f"{head}-dirty"


def test_the_code_of_a_run(package: Path) -> None:
    config = load_config(["scheme=supervised", "seed=3"], recipes=REPOSITORY / "experiments")
    assert code.code_of(config, Path("runs/x")) == {
        "version": __version__,
        "command": "kdschemes train scheme=supervised seed=3",
    }
