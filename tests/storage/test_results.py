"""results.json: atomic, plain, whole."""

from __future__ import annotations

import json
import math
import os
import resource
from contextlib import contextmanager

import pytest

from kdschemes.errors import UserError
from kdschemes.storage.results import plain, read_results, write_json, write_results


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


HEADS = {"student": {"last": {"epoch": 2, "val": None, "test": {"top1": 71.5, "nll": "nan"}}, "best": None}}
RESULTS = {"run": "r", "seed": 3, "primary_head": "student", "heads": HEADS, "early_exit": {"any": 1}}


def test_results_read_back_with_their_checksum(tmp_path):
    assert read_results(tmp_path) is None
    write_results(tmp_path, RESULTS)
    assert read_results(tmp_path) == RESULTS
    path = tmp_path / "results.json"
    path.write_text(path.read_text().replace("71.5", "75.1"))
    with pytest.raises(
        UserError, match=r"results\.json is damaged \(it does not match its checksum\): delete it and run"
    ):
        read_results(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": "3"}, "seed: Input should be a valid integer"),
        ({"seed": True}, "seed: Input should be a valid integer"),
        ({"heads": []}, "heads: Input should be"),
        ({"heads": {"student": {"final": None}}}, r"heads\.student\.final"),
        ({"heads": {"student": {"last": {"epoch": "2"}}}}, r"heads\.student\.last\.epoch"),
        ({"primary_head": None}, "primary_head: Input should be a valid string"),
        ({"cost": {"student": {"macs": []}}}, r"cost\.student\.macs"),
    ],
)
def test_wrong_types_are_refused(change, words, tmp_path):
    write_json(tmp_path / "results.json", RESULTS | change)
    with pytest.raises(UserError, match=rf"results\.json is damaged \({words}") as error:
        read_results(tmp_path)
    assert "\n" not in str(error.value)


def test_a_pipe_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "results.json")
    with pytest.raises(UserError, match=r"results\.json is damaged \(it is not a file\)"):
        read_results(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "3", "[]", "null", '{"heads": {}}', "[" * 1000, "\ud800"])
def test_what_is_no_results_is_refused(content, tmp_path):
    (tmp_path / "results.json").write_bytes(content.encode(errors="surrogatepass"))
    with pytest.raises(UserError, match=r"results\.json is damaged \("):
        read_results(tmp_path)
