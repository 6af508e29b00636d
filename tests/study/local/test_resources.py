"""Cores and places for workers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kdschemes.config.load import load_config
from kdschemes.study.local import resources as slots
from kdschemes.study.local.resources import free_bytes, make_slots, shares


def test_cores_are_shared_equally() -> None:
    assert shares([0, 1, 2, 3], 2) == [[0, 1], [2, 3]]
    assert shares([4, 5, 6, 7, 8], 3) == [[4], [5, 6], [7, 8]]
    assert shares([3, 5], 4) == [[3], [5], [3], [5]]
    assert shares([3], 1) == [[3]]


def test_places_on_a_machine_without_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = load_config(["device=cpu"], recipes=tmp_path)
    cores = sorted(os.sched_getaffinity(0))
    assert [slot.cores for slot in make_slots(3, [config])] == shares(cores, 3)
    assert len(make_slots(None, [config])) == min(slots.CPU_WORKERS, len(cores))
    assert all(slot.environment == {} for slot in make_slots(3, [config]))
    assert 0 < free_bytes([config]) < 1e13
