"""Tests mirror the package: `tests/losses/response/test_kd.py` tests `kdschemes/losses/response/kd.py`."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
