"""Ctrl-C while the program starts."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import REPOSITORY


def hear_interrupts() -> None:
    """Undo what a shell does to processes in the background."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize(
    ("command", "module"),
    [
        (["-m", "kdschemes", "methods"], "kdschemes.cards"),
        ([str(REPOSITORY / "run.py")], "kdschemes.errors"),
        ([str(REPOSITORY / "run.py")], "pydantic.dataclasses"),
        pytest.param([str(REPOSITORY / "run.py")], "numpy", marks=pytest.mark.slow),  # torch is half imported
    ],
)
def test_an_interrupt_during_the_imports_leaves_no_trace(command: list[str], module: str, tmp_path: Path) -> None:
    """The signal is sent when a module has just been imported."""
    words = [sys.executable, "-X", "importtime", *command]
    pipes = {"stderr": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(words, cwd=tmp_path, text=True, preexec_fn=hear_interrupts, **pipes) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.rpartition("|")[2].strip() == module:
                break
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    assert [line for line in err.splitlines() if not line.startswith("import time:")] == []
    assert process.returncode == 130
