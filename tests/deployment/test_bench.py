"""Teacher, student, exits and 8 bits side by side."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kdschemes import cli
from kdschemes.deployment import bench
from kdschemes.storage.results import read_results

pytestmark = pytest.mark.slow


def test_forms_of_two_runs_side_by_side(
    offline: Path, with_exits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"BLOCKS": 1, "ROUNDS": 2, "BATCHES": (1, 4), "PASSES": 1}.items():
        monkeypatch.setattr(bench, name, value)
    assert cli.main(["bench", str(offline), str(with_exits), "--output", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "bench.json").read_text())
    rows = {row["network"]: row for row in found["rows"]}
    student, exits = "student convnet_quarter (run 1)", "student wrn_16_1 (run 2)"
    networks = ("teacher convnet_quarter", student, exits)
    names = [f"{name}{form}" for name in networks for form in ("", ", onnx", ", int8")]
    assert rows.keys() == {*names, *(f"{exits}, {each}" for each in ("exit1", "exit2", "early exit"))}
    for run, name in ((offline, student), (with_exits, exits)):
        results = read_results(run)
        assert results is not None
        reported = results["heads"]["student"]["last"]["test"]["top1"]
        for form in ("", ", onnx"):
            assert rows[f"{name}{form}"]["top1"] == pytest.approx(reported, abs=0.2)
        assert {key: rows[name][key] for key in ("parameters", "macs")} == {
            key: results["cost"]["student"][key] for key in ("parameters", "macs")
        }
    exit1 = read_results(with_exits)["heads"]["student/exit1"]["last"]["test"]["top1"]  # type: ignore[index]
    assert rows[f"{exits}, exit1"]["top1"] == pytest.approx(exit1, abs=0.2)
    assert rows[f"{exits}, exit1"]["macs"] < rows[f"{exits}, exit2"]["macs"]
    assert rows[f"{student}, int8"]["file_bytes"] < 0.6 * rows[f"{student}, onnx"]["file_bytes"]
    for row in rows.values():
        assert 0 < row["fastest_ms"] <= row["p50_ms"] <= row["p95_ms"]
        assert row["images_per_second"] > 0
        assert row["memory_bytes"] is None or row["memory_bytes"] > 0
    assert (tmp_path / "out" / "bench.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "out" / "bench.md").read_text()
    assert all(name in page and name.split(",")[0] in printed for name in rows)


def test_runs_of_other_images_are_not_compared(
    offline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["bench", str(offline), "data=mnist"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert cli.main(["bench", str(tmp_path)]) == 2
    assert "is not a run folder" in capsys.readouterr().err
