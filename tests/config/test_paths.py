"""`~` is the home folder in every path, on the command line and in recipes; no other module expands it."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdschemes import cli
from kdschemes.config import Config
from kdschemes.config.help import choices
from kdschemes.config.naming import dump_yaml
from kdschemes.config.paths import expand
from kdschemes.errors import UserError
from kdschemes.models import load_model
from tests import REPOSITORY
from tests.config.cases import error, load, recipe

KEYS = {
    "output_dir": [],
    "data.root": [],
    "data.root ": ["data=image_folder"],
    "model.checkpoint": [],
    "teacher.checkpoint": ["scheme=offline"],
    "teacher.cache_dir": ["scheme=offline"],
}
"""Every key that holds a path, with what else it needs."""


def value(config: Config, key: str) -> object:
    for name in key.strip().split("."):
        config = getattr(config, name)
    return config


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.mark.parametrize(("key", "more"), KEYS.items())
def test_the_home_folder_in_a_key(key: str, more: list[str], home: Path, tmp_path: Path) -> None:
    config = load(*more, f"{key.strip()}=~/a b/~c")
    assert value(config, key) == f"{home}/a b/~c"
    saved = tmp_path / "config.yaml"
    saved.write_text(dump_yaml(config))
    assert load(f"experiment={saved}") == config
    for path, problem in (
        ("~nosuchuser/x", "there is no user nosuchuser; write ./~nosuchuser for a file or folder of that name"),
        ("a/" + "b" * 256, "a name of 256 bytes: files have names of at most 255"),
        ("é" * 128, "a name of 256 bytes"),
        ("a/" * 3_000, "a path of 6000 bytes: paths have at most 4095"),
    ):
        message = error(*more, f"{key.strip()}={path}")
        assert message.startswith(f"{key.strip()}={path[:200]}")
        assert problem in message
        assert len(message) < 400


def test_every_key_that_names_a_file_or_folder_is_here() -> None:
    words = ("file", "folder", "dir", "root", "checkpoint")
    keys = {f"{prefix}.{name}" if prefix else name for prefix, cls in choices() for name in cls.__dataclass_fields__}
    found = {key for key in keys if key.rpartition(".")[2].rpartition("_")[2] in words}
    assert found == {key.strip() for key in KEYS} | {"scheme.file"}


def test_the_home_folder_in_lists_recipes_and_names(home: Path, tmp_path: Path) -> None:
    assert load("scheme.peers=2", "model.checkpoint=[~/a,b]").model.checkpoint == [f"{home}/a", "b"]
    assert "there is no user nosuchuser" in error("scheme.peers=2", "model.checkpoint=[a,~nosuchuser]")
    assert load("experiment=mine", recipes=recipe(tmp_path, "output_dir: ~/runs")).output_dir == f"{home}/runs"
    assert load("model.checkpoint=hf_hub:a/b").model.checkpoint == "hf_hub:a/b"
    home.mkdir()
    recipe(home, "seed: 3")
    assert load("experiment=~/mine.yaml").seed == 3
    assert error("experiment=~nosuchuser/mine.yaml").startswith("there is no user nosuchuser")


COMMANDS = [
    ["compare", "PATH", "b"], ["compare", "a", "PATH"], ["cite", "PATH"], ["export", "PATH", "b"],
    ["cache", "verify", "PATH"], ["study", "run", "PATH"], ["study", "submit", "PATH"], ["study", "status", "PATH"],
    ["study", "report", "PATH"],
]  # fmt: skip
WITH_DEFAULTS = [
    ["export", "a", "PATH"], ["cache", "list", "PATH"], ["wandb", "sync", "PATH"],
    ["wandb", "dashboard", "--out", "PATH"], ["study", "report", "a", "--output", "PATH"],
    ["study", "report", "a", "--out", "PATH"], ["study", "status", "a", "--output", "PATH"],
]  # fmt: skip


@pytest.mark.parametrize("words", [*COMMANDS, *WITH_DEFAULTS], ids=" ".join)
def test_the_home_folder_in_a_command(words: list[str], home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = cli._options([word.replace("PATH", "~/x.yaml") for word in words])
    assert str(home / "x.yaml") in str(options)
    assert cli.main([word.replace("PATH", "~nosuchuser/x") for word in words]) == 2
    assert "there is no user nosuchuser" in capsys.readouterr().err
    if words in COMMANDS:
        assert cli.main([word.replace("PATH", "~/x.yaml") for word in words]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_it_is_expanded_in_one_place(home: Path) -> None:
    assert expand("~") == str(home)
    assert expand("a/~/b") == "a/~/b"
    with pytest.raises(UserError, match=str(home / "x")):
        load_model("~/x")
    files = [path.name for path in (REPOSITORY / "kdschemes").rglob("*.py") if "expanduser(" in path.read_text()]
    assert files == ["paths.py"]
