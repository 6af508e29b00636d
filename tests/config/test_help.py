"""Help by topic; every key says what it means."""

from __future__ import annotations

import re
import shlex
from dataclasses import fields, is_dataclass

import pytest

from kdschemes.config import Config, losses
from kdschemes.config.data import DATA
from kdschemes.config.help import GROUPS, LOSS_PREFIXES, choices, description, help_text
from kdschemes.config.load import build_config, load_config
from kdschemes.config.models import MODELS
from kdschemes.config.naming import to_tree
from kdschemes.config.validate import all_keys
from kdschemes.errors import UserError
from tests import REPOSITORY
from tests.config.cases import METHODS


def test_help_lists_every_key_with_its_default_and_what_is_allowed() -> None:
    text = help_text(["all"])
    words = {line.split("=")[0].strip() for line in text.splitlines() if line.startswith("  ")}
    groups = {"scheme", "data", "model", "teacher", "losses", "optim", "train"}
    for key, field in all_keys().items():
        names_a_choice = key.rpartition(".")[2] in ("name", "method")
        kind, _, leaf = key.rpartition(".")
        if kind in LOSS_PREFIXES and leaf in {field.name for field in fields(losses.Ramp)}:
            key = f"losses.KIND.{leaf}"
        if key in LOSS_PREFIXES:
            continue
        assert key in words or key in groups or (names_a_choice and key not in ("model.name", "teacher.name")), key
        assert key in words or field.type not in ("int", "float", "str", "bool"), key
    for scheme, method in METHODS:
        assert f"scheme={scheme} method={method}: " in text
    for name in DATA:
        assert f"data={name}: " in text
    for kind, table in (("response", losses.RESPONSE), ("feature", losses.FEATURE), ("relation", losses.RELATION)):
        for name in set(table) - {"none"}:
            assert f"losses.{kind}={name}: " in text
    assert "experiment=" in text
    assert re.search(r"optim\.lr=0\.1 +peak learning rate.*\[a number above 0\]", text)
    assert re.search(r"scheme\.alpha=0\.9 .*\[a number at least 0 and at most 1\]", text)


def test_help_alone_is_a_page_that_fits_the_screen() -> None:
    lines = help_text().splitlines()
    assert len(lines) <= 60
    assert max(map(len, lines)) <= 100
    keys = {found[1] for line in lines if (found := re.match(r"  ([a-z_.]+)=", line))}
    assert {"scheme", "data", "optim.lr", "train.epochs", "seed"} <= keys
    assert keys <= {*all_keys(), *GROUPS, *LOSS_PREFIXES, "method", "experiment"}
    examples = [shlex.split(line)[2:] for line in lines if line.startswith("  kdschemes train")]
    for words in (words[: words.index("two")] if "two" in words else words for words in examples):
        load_config(words, recipes=REPOSITORY / "experiments")


@pytest.mark.parametrize(
    ("words", "shown", "hidden"),
    [
        ("scheme", ["scheme=online", "  dml ", "  byot "], ["optim."]),
        ("scheme=offline", ["  camkd ", "scheme=offline method=kd: ", "scheme.alpha=0.9"], ["  dml "]),
        ("scheme=offline method=camkd", ["scheme.beta=50.0", "keys of teacher"], ["losses", "optim."]),
        ("method=byot", ["scheme=self method=byot", "losses.feature=hint", "scheme.exits=all"], ["teacher"]),
        ("byot", ["scheme=self method=byot: "], []),
        ("losses", ["losses.response", "  dkd ", "  crd ", "losses.KIND.ramp_epochs=20.0"], ["optim."]),
        ("losses.feature", ["  hint "], ["  dkd "]),
        ("losses.response=dkd", ["losses.response.beta=8.0", "[a number at least 0]"], ["losses.response.scale"]),
        ("dkd", ["losses.response.beta=8.0"], []),
        ("kd", ["scheme=offline method=kd: ", "losses.response=kd: "], []),
        ("data", ["  cifar100 ", "data.mixup=0.0"], ["data.image_size"]),
        ("data=image_folder", ["data.image_size=224"], ["data.crop_padding"]),
        ("optim", ["optim.lr=0.1", "optim.name=sgd"], ["train."]),
        ("optim.lr", ["optim.lr=0.1"], ["optim.name"]),
        ("run", ["experiment=", "output_dir=runs"], ["optim."]),
        (
            "scheme=offline optim.lr=1 model=resnet20",
            ["method=kd: ", "optim.lr=0.1", "model.checkpoint"],
            ["optim.name"],
        ),
    ],
)
def test_help_on_a_topic(words: str, shown: list[str], hidden: list[str]) -> None:
    text = help_text(words.split())
    assert [word for word in shown if word not in text] == []
    assert [word for word in hidden if word in text] == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("optmi", "no help on 'optmi'; did you mean 'optim'?"),
        ("train.epoch", "did you mean 'train.epochs'?"),
        ("camk", "did you mean 'camkd'?"),
        ("scheme=ofline", "did you mean 'offline'?"),
        ("scheme=offline method=dml", "write scheme=online method=dml"),
        ("method=ema", "method=ema is now method=mean_teacher"),
        ("losses.response=dk", "did you mean 'dkd'?"),
        ("data=cifar", "unknown data 'cifar'"),
        ("optim.clip", "optim.clip is now optim.clip_grad_norm"),
    ],
)
def test_help_on_nothing_that_there_is(words: str, told: str) -> None:
    with pytest.raises(UserError) as error:
        help_text(words.split())
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_every_key_says_what_it_means_and_its_default_is_allowed() -> None:
    for prefix, cls in choices():
        for field in fields(cls):
            names_a_choice = field.name in ("name", "method", *losses.KINDS)
            names_a_choice = names_a_choice or is_dataclass(getattr(Config(), field.name, None))
            assert names_a_choice or description(cls, field), f"{prefix}.{field.name}"
    defaults = build_config({})
    for group in ("model", "optim", "train", "data"):
        assert build_config({group: to_tree(defaults)[group]}) == defaults


def test_help_on_models_lists_them() -> None:
    for group in ("model", "teacher"):
        assert {*MODELS, "timm/NAME"} <= set(re.split(r"[\s,]+", help_text([group])))
