"""results.json: atomic, plain, whole."""

from __future__ import annotations

import json
import math
import resource
from contextlib import contextmanager

import pytest

from kdschemes.errors import UserError
from kdschemes.storage.results import plain, write_json


@contextmanager
def largest_file(size):
    """Let the system refuse to write past `size` bytes, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_write_json_reads_back(tmp_path):
    path = tmp_path / "results.json"
    data = {"a": 0.1 + 0.2, "b": [1, 2.5e-300], "bad": [math.nan, math.inf, -math.inf], "none": None, "t": (1,)}
    write_json(path, data)
    found = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert found == data | {"bad": ["nan", "inf", "-inf"], "t": [1]}
    assert list(found) == list(data)
    assert math.isnan(float(found["bad"][0]))
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "results.json"
    write_json(path, {"old": True})
    with largest_file(1000), pytest.raises(UserError, match=r"results\.json cannot be written: File too large") as e:
        write_json(path, list(range(5000)))
    assert "\n" not in str(e.value)
    assert json.loads(path.read_text()) == {"old": True}
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_no_such_folder(tmp_path):
    with pytest.raises(UserError, match=r"missing/results\.json cannot be written: No such file"):
        write_json(tmp_path / "missing" / "results.json", {})


def test_plain_leaves_the_rest_alone():
    assert plain({"a": (1, [math.nan]), "b": "inf", "c": True}) == {"a": [1, ["nan"]], "b": "inf", "c": True}
