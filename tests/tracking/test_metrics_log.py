"""metrics.jsonl: exact, cut to the checkpoint, readable."""

from __future__ import annotations

import hashlib
import json
import math
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from kdschemes.errors import UserError
from kdschemes.tracking.metrics_log import MetricsLog, read_rows
from tests.tracking.cases import train


def test_lines_read_back_exactly(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    rows = [
        {"kind": "train", "step": 1, "loss/total": 0.1 + 0.2, "loss/b": 1e-300, "loss/a": 1 / 3},
        {"kind": "eval", "split": "val", "student/nll": -math.inf, "student/kl": math.inf},
        {"kind": "final", "heads": {"student": [math.nan, 1]}},
    ]
    for count, row in enumerate(rows, start=1):
        log.write(row)
        assert path.read_bytes().count(b"\n") == count  # flushed
        assert log.offset == path.stat().st_size
    log.sync()
    log.close()
    found = read_rows(path)
    assert found[:2] == rows[:2]
    assert [list(row) for row in found] == [list(row) for row in rows]
    for line in path.read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert '["nan", 1]' in path.read_text()


def test_resuming_gives_the_bytes_of_an_uninterrupted_run(tmp_path):
    whole = MetricsLog(tmp_path / "whole.jsonl")
    for step in range(1, 9):
        whole.write(train(step))
    first = MetricsLog(tmp_path / "cut.jsonl")
    for step in range(1, 5):
        first.write(train(step))
    offset = first.offset
    first.write(train(5))
    first.close()
    with (tmp_path / "cut.jsonl").open("ab") as file:
        file.write(b'{"kind": "tra')
    second = MetricsLog(tmp_path / "cut.jsonl", offset=offset)
    assert second.offset == offset == (tmp_path / "cut.jsonl").stat().st_size
    for step in range(5, 9):
        second.write(train(step))
    assert (tmp_path / "cut.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    whole.close()
    second.close()


def test_a_new_run_starts_an_empty_log(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("old\n")
    MetricsLog(path).close()
    assert path.read_bytes() == b""


def test_lines_after_the_checkpoint_are_cut_and_the_checksum_is_that_of_the_rest(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"a": 1}\n{"b": 2}\n')
    log = MetricsLog(path, offset=9)
    assert log.sync() == (9, hashlib.sha256(b'{"a": 1}\n').hexdigest())
    log.write({"c": 3})
    assert log.sync() == (18, hashlib.sha256(path.read_bytes()).hexdigest())
    log.close()
    assert path.read_text() == '{"a": 1}\n{"c": 3}\n'


def test_a_log_that_cannot_be_written(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        MetricsLog(tmp_path / "missing" / "metrics.jsonl")
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.write(train(1))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, before[1]))
    try:
        with pytest.raises(UserError, match=r"metrics\.jsonl cannot be written: File too large"):
            log.write(train(2, text="x" * 300))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    log.close()
    assert read_rows(tmp_path / "metrics.jsonl") == [train(1)]


def test_read_rows(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_rows(path)
    path.write_text('{"kind": "train", "a": "inf"}\n{"b": 2')
    assert read_rows(path) == [{"kind": "train", "a": math.inf}]
    for broken in ('{"a": 1}\n{"b"\n{"c": 3}\n', '{"a": 1}\n[2]\n'):
        path.write_text(broken)
        with pytest.raises(UserError, match=r"metrics\.jsonl line 2 is not a JSON object"):
            read_rows(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (Path.unlink, "was deleted or renamed"),
        (lambda path: path.rename(path.with_name("other")), "was deleted or renamed"),
        (lambda path: shutil.rmtree(path.parent), "was deleted or renamed"),
        (lambda path: path.write_text("x"), "was cut, added to or replaced"),
        (lambda path: path.write_bytes(path.read_bytes() + b"{}\n"), "was cut, added to or replaced"),
        (lambda path: shutil.copy(path, path.with_name("b")).replace(path), "was cut, added to or replaced"),
    ],
)
def test_a_log_that_is_no_longer_there_is_noticed_by_the_next_line(
    change: Callable[[Path], object], words: str, tmp_path: Path
) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    path.parent.mkdir()
    log = MetricsLog(path)
    log.write({"step": 1})
    change(path)
    with pytest.raises(UserError, match=f"^{path} {words} while this run wrote into it: restore it, or delete"):
        log.write({"step": 2})
    log.close()
