"""Plugins: files and installed packages that add methods, losses, networks and data sets."""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from kdschemes import cli, register_dataset, register_loss, register_method, register_model
from kdschemes.cards import read as cards
from kdschemes.config import models, plugins
from kdschemes.config.code import ALLOWED, CodeRefused
from kdschemes.config.data import DATA
from kdschemes.config.load import allow_typed, build_config, load_config
from kdschemes.config.losses import KINDS
from kdschemes.config.naming import dump_yaml, to_tree
from kdschemes.config.prerequisites import prerequisite_runs
from kdschemes.config.schemes import SCHEMES
from kdschemes.core.types import DataSpec
from kdschemes.errors import UserError
from kdschemes.losses.build import MODULES
from kdschemes.models import create_model, load_model, save_weights
from kdschemes.schemes import BUILDERS, build_scheme
from kdschemes.storage.naming import run_name

LOSS = '''
from dataclasses import dataclass
from typing import Literal
from kdschemes import register_loss
from kdschemes.config.losses import Ramp
from kdschemes.core.loss import Loss

@dataclass(frozen=True, kw_only=True)
class Mine(Ramp):
    """The squared distance of the first logits."""
    name: Literal["mine"] = "mine"
    weight: float = 2.0

class MineLoss(Loss[Mine]):
    def forward(self, student, teacher, batch, gather):
        return (student.logits[:, 0] - teacher.logits[:, 0]).square().mean()

register_loss(Mine, MineLoss, kind="response")
'''
NETWORK = """
from torch import nn
from kdschemes import register_model

def tiny(num_classes, channels, image_size, width=4):
    pool = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(nn.Conv2d(channels, width, 3), *pool, nn.Linear(width, num_classes))

register_model("tiny", tiny)
"""
SPEC = DataSpec(10, 1, 8, torch.arange(20) % 10)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with two plugins; afterwards the tables are as before."""
    monkeypatch.setenv(ALLOWED, "")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loss.py").write_text(LOSS)
    (tmp_path / "network.py").write_text(NETWORK)
    tables: list[Any] = [DATA, models.REGISTERED, *KINDS.values(), *SCHEMES.values()]
    tables += [MODULES, BUILDERS, plugins._ORIGINS, plugins._LOADED, cards._CARDS]
    before = [copy.copy(table) for table in tables]
    yield tmp_path
    for table, was in zip(tables, before, strict=True):
        table.clear()
        table.update(was)


def load(*words: str) -> Any:
    allow_typed(words, recipes=Path())
    return load_config(words, recipes=Path())


def test_a_plugins_loss_is_chosen_and_computed(here: Path) -> None:
    config = load("plugins=loss.py", "losses.response=mine", "losses.response.weight=3")
    scheme = build_scheme(config, SPEC)
    assert "mine/peer0->peer1" in [str(term.name) for term in scheme.terms]
    assert config.losses.response.weight == 3.0
    assert config.plugins == ["loss.py"]
    assert list(config.code) == ["loss.py"]


def test_a_changed_plugin_is_another_run_and_its_place_is_not(here: Path) -> None:
    words = ["losses.response=mine"]
    first = load("plugins=loss.py", *words)
    (here / "sub").mkdir()
    (here / "sub" / "loss.py").write_text(LOSS)
    assert run_name(load("plugins=[sub/loss.py]", *words)) == run_name(first)
    (here / "loss.py").write_text(LOSS + "# changed\n")
    assert run_name(load("plugins=loss.py", *words)) != run_name(first)
    with pytest.raises(UserError, match=r"plugin loss\.py has changed since this run began"):
        build_config(to_tree(first))
    (here / "config.yaml").write_text(dump_yaml(first))
    assert load("experiment=config.yaml", "plugins=loss.py").code != first.code


def test_a_teacher_is_not_trained_again_for_another_plugin(here: Path) -> None:
    words = ["scheme=offline", "teacher=convnet"]
    (teacher,) = prerequisite_runs(load("plugins=loss.py", "losses.response=mine", *words))
    (same,) = prerequisite_runs(load(*words))
    assert run_name(teacher) == run_name(same)
    (own,) = prerequisite_runs(load("plugins=network.py", "scheme=offline", "teacher=tiny"))
    assert own.plugins == ["network.py"]


def test_files_choose_plugins_and_cannot_allow_them(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "run").mkdir()
    (here / "run" / "config.yaml").write_text(dump_yaml(load("plugins=loss.py", "losses.response=mine")))
    (here / "study.yaml").write_text("{question: Q, base: {plugins: [loss.py], losses.response: mine}}")
    os.environ[ALLOWED] = ""
    plugins._LOADED.clear()
    for words in ("cite run", "study run study.yaml --dry-run", "train experiment=run/config.yaml"):
        assert cli.main(words.split()) == 2
        said = "plugin loss.py is Python code that a file names, not you; if you trust it, allow it: kdschemes "
        assert said in (error := capsys.readouterr().err), error
        assert "--allow loss.py" in error
        assert error.count("\n") == 1
    assert cli.main(["study", "run", "study.yaml", "--dry-run", "--allow", "loss.py"]) == 0
    assert "losses.response=mine" in capsys.readouterr().out
    assert cli.main(["cite", "run", "--allow", "loss.py"]) == 0


def test_methods_shows_what_a_plugin_adds(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["methods", "mine", "--plugin", "loss.py"]) == 0
    assert "The squared distance of the first logits." in capsys.readouterr().out
    text = LOSS.replace('kind="response")', 'kind="response", card=CARD)')
    bibtex = "@misc{me2026,\n  title = {Mine},\n  author = {Me, I.},\n  year = {2026},\n}"
    front = f"---\npapers: [me2026]\nequation: (z - v)^2\nbibtex: |\n  {bibtex.replace(chr(10), chr(10) + '  ')}\n---\n"
    (here / "loss.py").write_text(f"CARD = {front + '# mine' + chr(10)!r}\n{text}")
    config = load("plugins=loss.py", "losses.response=mine")
    (here / "run").mkdir()
    (here / "run" / "config.yaml").write_text(dump_yaml(config))
    assert cli.main(["cite", "run"]) == 0
    assert "% loss mine (response)\n@misc{me2026," in capsys.readouterr().out


def test_a_plugins_network_is_exported_with_the_plugin(here: Path) -> None:
    config = load("plugins=network.py", "scheme=supervised", "model=tiny", "model.kwargs.width=5")
    assert build_scheme(config, SPEC).parameter_groups()
    network = create_model("tiny", num_classes=10, channels=1, image_size=8, kwargs={"width": 5}).eval()
    save_weights(network, "out")
    images = torch.randn(2, 1, 8, 8)
    assert torch.equal(load_model("out")(images), network(images))
    os.environ[ALLOWED] = ""
    plugins._LOADED.clear()
    with pytest.raises(
        CodeRefused, match=r"plugin network\.py is Python .* load_model\('out', allow=\['network\.py'\]\)"
    ):
        load_model("out")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import nowhere", r"plugin bad\.py cannot be imported \(ModuleNotFoundError: .*'nowhere', bad\.py line 1\)"),
        ("1 +", r"plugin bad\.py cannot be imported \(SyntaxError"),
        ("import kdschemes\nkdschemes.register_model('convnet', print)", "convnet is a network of kdschemes"),
        (
            LOSS.replace('"mine"', '"kd"'),
            "response loss kd is taken by kdschemes.config.losses.response.KD: choose",
        ),
        (
            LOSS.replace('"mine"', '"at"'),
            "response loss at is taken by kdschemes.config.losses.feature.AT: choose",
        ),
        (LOSS.replace('"mine"', '"a b"'), "a name has letters"),
        (LOSS.replace('kind="response"', 'kind="respons"'), "unknown kind of loss 'respons'; did you mean 'response'"),
    ],
)
def test_a_bad_plugin_is_one_line(here: Path, text: str, message: str) -> None:
    (here / "bad.py").write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        load("plugins=bad.py")
    assert "\n" not in str(caught.value)


def test_what_is_no_plugin(here: Path) -> None:
    for words, message in (
        ("plugins=loss", "name a file FILE.py, or a function as MODULE:FUNCTION"),
        ("plugins=loss.py:Mine", "name a file FILE.py"),
        ("plugins=nothing.py", r"nothing\.py cannot be read"),
    ):
        with pytest.raises(UserError, match=message):
            load(words)


def test_a_notebook_may_register_again(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = ModuleType("notebook")
    monkeypatch.setitem(sys.modules, "notebook", notebook)
    for _ in range(2):
        exec(LOSS, vars(notebook))
    assert KINDS["response"]["mine"] is vars(notebook)["Mine"]
    assert build_config({"losses": {"response": "mine"}}).losses.response.weight == 2.0


def test_an_installed_plugin_is_loaded_where_a_name_is_unknown(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = here / "site"
    (package / "kd_mine-1.0.dist-info").mkdir(parents=True)
    (package / "kd_mine.py").write_text(LOSS)
    (package / "kd_mine-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: kd-mine\nVersion: 1.0\n")
    (package / "kd_mine-1.0.dist-info" / "entry_points.txt").write_text("[kdschemes]\nmine = kd_mine\n")
    monkeypatch.syspath_prepend(str(package))
    plugins.load_installed.cache_clear()
    load("losses.response=dkd")
    assert "mine" not in KINDS["response"]
    assert load("losses.response=mine").losses.response.weight == 2.0
    plugins.load_installed.cache_clear()


def test_what_cannot_be_registered(here: Path) -> None:
    digits: Any = DATA["digits"]
    reader: Any = print
    for call, message in (
        (
            lambda: register_method(SCHEMES["online"]["dml"], reader),
            "scheme=online method dml|dml is taken by kdschemes",
        ),
        (lambda: register_dataset(digits, reader), "data digits is taken by kdschemes"),
        (lambda: register_loss(digits, reader, kind="feature"), "Digits is not a dataclass of a loss"),
        (lambda: register_model("timm/x", reader), "a name has letters"),
    ):
        with pytest.raises(UserError, match=message):
            call()
