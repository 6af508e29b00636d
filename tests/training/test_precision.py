"""The choice of `precision=auto`, and the warning where bf16 is slow."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kdschemes.storage.naming import run_name
from kdschemes.training.precision import choose_precision
from tests import REPOSITORY
from tests.schemes.cases import configure


def test_auto_keeps_the_precision_of_a_run_that_was_started(tmp_path: Path) -> None:
    config = configure("scheme=supervised", "device=cpu", f"output_dir={tmp_path}", "precision=auto")
    state = torch.get_rng_state()
    chosen, reason = choose_precision(config)
    assert torch.equal(torch.get_rng_state(), state)
    assert dataclasses.replace(config, precision=chosen.precision) == chosen
    assert re.fullmatch(rf"precision=auto: {chosen.precision}(, because .*|; a step in bf16 takes [\d.]+ .*)", reason)
    for precision in ("bf16", "fp32"):
        given = dataclasses.replace(config, precision=precision)
        (tmp_path / run_name(given)).mkdir()
        assert choose_precision(config) == (given, f"precision=auto: {precision}, with which this run was started")
        (tmp_path / run_name(given)).rmdir()


@pytest.mark.slow
def test_without_bf16_instructions_bf16_is_slow_and_auto_is_fp32(tmp_path: Path) -> None:
    """In a process where torch uses AVX2 only."""
    program = (
        "from kdschemes.training.precision import choose_precision\n"
        "from tests.schemes.cases import configure\n"
        "for precision in ('precision=bf16', 'precision=auto'):\n"
        "    config, reason = choose_precision(configure('scheme=supervised', 'device=cpu', precision))\n"
        "    print(config.precision, reason)"
    )
    environment = os.environ | {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "PYTHONPATH": str(REPOSITORY),
    }
    ended = subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    given, auto = ended.stdout.splitlines()
    line = r"bf16 precision=bf16: this processor has no bf16 instructions; a step takes [\d.]+ times as long as in fp32"
    assert re.fullmatch(line, given)
    assert auto == "fp32 precision=auto: fp32, because this processor has no bf16 instructions"
