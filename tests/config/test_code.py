"""Only Python that the user typed may run: what allows it, and what does not."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from kdschemes import cli
from kdschemes.config.code import ALLOWED, Code, CodeRefused, allow, load_code, read_allowed
from kdschemes.config.load import allow_typed, check_allowed, load_config
from kdschemes.config.naming import dump_yaml
from kdschemes.errors import UserError

RAN = 'from pathlib import Path\nPath(__file__).with_name("ran").touch()\n'
REFUSED = "error: topology mine.py is Python code that a file names, not you; if you trust it, allow it: kdschemes "
STUDY = "{question: Q, variants: {mine: {experiment: mine.py}, plain: {scheme: supervised}}}"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a topology, a study and a run's folder that name it; none is allowed."""
    monkeypatch.setenv(ALLOWED, "")
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(RAN)
    Path("study.yaml").write_text(STUDY)
    Path("run").mkdir()
    Path("run/config.yaml").write_text(dump_yaml(load_config(["experiment=mine.py"], recipes=tmp_path)))
    Path("run/checkpoint.pt").touch()
    shutil.copy("run/config.yaml", "recipe.yaml")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "allowing"),
    [
        ("train experiment=recipe.yaml seed=3", "train --allow mine.py experiment=recipe.yaml seed=3"),
        ("train experiment=run/config.yaml", "train --allow mine.py experiment=run/config.yaml"),
        ("study run study.yaml", "study run study.yaml --allow mine.py"),
        ("study run study.yaml --dry-run seed=0", None),
        ("study submit study.yaml -- --time=1", "study submit study.yaml --allow mine.py -- --time=1"),
    ],
)
def test_a_file_cannot_allow_its_topology_and_the_message_has_the_command(
    words: str, allowing: str | None, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(here.rglob("*"))
    assert cli.main(words.split()) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert allowing is None or err == f"{REFUSED}{allowing}\n"
    assert sorted(here.rglob("*")) == before


@pytest.mark.parametrize("words", [["--allow", "mine.py"], ["experiment=mine.py"]])
def test_a_study_runs_what_its_command_line_names(
    words: list[str], here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if words == ["experiment=mine.py"]:
        Path("study.yaml").write_text("{question: Q}")
    assert cli.main(["study", "run", "study.yaml", "--parallel", "1", "--dry-run", *words]) == 0
    assert "mine" in capsys.readouterr().out
    monkeypatch.setenv(ALLOWED, "")
    Path("other.py").write_text(RAN + "# other\n")
    Path("study.yaml").write_text(STUDY.replace("mine.py", "other.py"))
    assert cli.main(["study", "run", "study.yaml", "--dry-run", "--allow", "mine.py"]) == 2
    assert "topology other.py is Python code" in capsys.readouterr().err


def test_what_a_study_was_begun_with_is_data(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("study.yaml").write_text("{question: Q}")
    record = {"question": "Q", "overrides": ["experiment=mine.py"], "runs": []}
    folder = here / "runs" / "studies" / "study"
    folder.mkdir(parents=True)
    (folder / "study.yaml").write_text(yaml.safe_dump(record))
    assert cli.main(["study", "run", "study.yaml", "--dry-run"]) == 2
    assert capsys.readouterr().err == f"{REFUSED}study run study.yaml --dry-run --allow mine.py\n"


@pytest.mark.parametrize(
    ("argument", "allowed"),
    [
        ("experiment=mine.py", True),
        ("experiment=topologies/mine", True),
        ("experiment=recipe.yaml", False),
        ("experiment=both", False),
        ("scheme.file=mine.py", False),
        ("seed=3", False),
    ],
)
def test_only_experiment_with_a_python_file_allows(argument: str, allowed: bool, here: Path) -> None:
    (here / "topologies").mkdir()
    for name in ("topologies/mine.py", "both.py"):
        shutil.copy("mine.py", here / name)
    shutil.copy("recipe.yaml", "both.yaml")
    allow_typed([argument], recipes=here)
    config = load_config(["experiment=mine.py"], recipes=here)
    if allowed:
        check_allowed([config])
        assert read_allowed(config.scheme.code, "topology") == RAN.encode()
    else:
        for refused in (lambda: check_allowed([config]), lambda: read_allowed(config.scheme.code, "topology")):
            with pytest.raises(CodeRefused, match=r"^topology mine\.py is Python code"):
                refused()


def test_a_file_is_allowed_as_it_was_then(here: Path) -> None:
    allow(Code("mine.py", None, True))
    scheme = load_config(["experiment=mine.py"], recipes=here).scheme
    Path("mine.py").write_text(RAN + "# changed\n")
    with pytest.raises(CodeRefused):
        read_allowed(scheme.code, "topology", scheme.digest)
    allow(Code("mine.py", None, True))
    with pytest.raises(UserError, match="has changed since this run began"):
        read_allowed(scheme.code, "topology", scheme.digest)


def test_a_function_finds_the_files_beside_its_own_when_it_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv(ALLOWED, "")
    (tmp_path / "late.py").write_text("def make():\n    from beside_late import VALUE\n    return VALUE\n")
    (tmp_path / "beside_late.py").write_text("VALUE = 3\n")
    code = Code(str(tmp_path / "late.py"), "make", True)
    allow(code)
    assert load_code(code, "data")() == 3
    assert sys.path[-1] == str(tmp_path)


def test_allow_takes_its_value_either_way(here: Path) -> None:
    assert cli._allow_flags(["seed=1", "--allow=mine.py", "--allow", "mine.py"]) == ["seed=1"]
    check_allowed([load_config(["experiment=mine.py"], recipes=here)])


def test_other_methods_need_no_permission(here: Path) -> None:
    check_allowed([load_config([], recipes=here)])
    with pytest.raises(UserError, match=r"recipe nowhere\.py cannot be read: No such file"):
        allow(Code("nowhere.py", None, True))


def test_reading_a_run_of_a_topology_needs_no_permission(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["cite", "run"], ["study", "status", "study.yaml"]):
        assert cli.main(command) == 0, capsys.readouterr().err
    assert not (here / "ran").exists()


@pytest.fixture
def export(here: Path) -> Callable[..., int]:
    import torch

    counts = dict.fromkeys(("step", "window_steps", "metrics_offset", "images"), 1)
    texts = dict.fromkeys(("version", "data", "metrics_sha256"), "x")
    others = {
        "seconds": 1.0,
        "wall": 1.0,
        "best": None,
        "previous_best": None,
        "scaler": None,
        "processes": 1,
        "validation_due": False,
    }
    state = {"scheme": {}, "optimizer": {}, "window_sums": torch.zeros(1, 1), **counts, **texts, **others}
    torch.save(state, "run/checkpoint.pt")
    return lambda *words: cli.main(["export", "run", "out", *words])


def test_export_runs_only_what_is_allowed(
    here: Path, export: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert export() == 2
    assert capsys.readouterr().err == f"{REFUSED}export run out --allow mine.py\n"
    assert not (here / "ran").exists()
    assert export("--allow", "mine.py") == 2
    assert "recipe mine.py has no function topology" in capsys.readouterr().err
    assert (here / "ran").exists()
