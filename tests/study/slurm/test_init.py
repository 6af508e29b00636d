"""`kdschemes init`: the batch scripts where a user edits them."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdschemes import cli
from kdschemes.study.locate import shipped

OUT = "cannot be written: "


def test_the_scripts_and_a_site_file_appear_and_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["init"]) == 0
    assert capsys.readouterr().out.startswith("slurm: the batch scripts\nslurm/site.sh: fill in ")
    scripts = tmp_path / "slurm"
    expected = {path.relative_to(shipped() / "slurm") for path in (shipped() / "slurm").rglob("*")}
    assert {path.relative_to(scripts) for path in scripts.rglob("*")} == expected | {Path("site.sh")}
    assert (scripts / "site.sh").read_text() == (shipped() / "slurm" / "site.example.sh").read_text()
    assert cli.main(["study", "submit", "alpha_digits", "--dry-run"]) == 0
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first == f"site file: {scripts / 'site.sh'}"
    assert f" {scripts / 'study.sbatch'} " in second


def test_a_folder_that_is_there_is_not_touched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm" / "site.sh").write_text("mine")
    assert cli.main(["init", str(tmp_path)]) == 2
    there = tmp_path / "slurm"
    assert capsys.readouterr().err == f"error: {there} already exists: remove it, or choose another folder\n"
    assert [path.name for path in there.iterdir()] == ["site.sh"]


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert cli.main(["init", str(tmp_path / "file")]) == 2
    assert OUT in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
