"""Short keys: which stand for a key, and what is said of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdschemes.config import Config
from kdschemes.config.aliases import ALIASES, short_keys
from kdschemes.config.load import load_config
from kdschemes.config.validate import all_keys
from kdschemes.errors import UserError

RECIPES = Path(__file__).parents[2] / "experiments"


def load(*words: str) -> tuple[Config, list[str]]:
    notes: list[str] = []
    return load_config(words, recipes=RECIPES, say=notes.append), notes


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("scheme.temperature=8", "losses.response.temperature=8"),
        ("temperature=8", "losses.response.temperature=8"),
        ("T=8", "losses.response.temperature=8"),
        ("losses=dkd", "losses.response=dkd"),
        ("losses=[dkd,hint,at,rkd]", "losses.response=dkd losses.feature=hint losses.relation=rkd losses.extra=[at]"),
        ("losses.feature=[hint,at]", "losses.feature=hint losses.extra=[at]"),
        ("device=gpu", "device=cuda"),
        ("epochs=5", "train.epochs=5"),
        ("lr=.1", "optim.lr=0.1"),
        ("batch_size=64", "train.batch_size=64"),
        ("alpha=0.5", "scheme.alpha=0.5"),
        ("wd=0.01", "optim.weight_decay=0.01"),
        ("student=resnet20", "model=resnet20"),
        ("mixup=0.2", "data.mixup=0.2"),
        ("ema=0.9", "train.ema=0.9"),
    ],
)
def test_a_short_key_is_the_key_that_it_stands_for(typed: str, meant: str) -> None:
    config, notes = load("scheme=offline", typed)
    assert config == load("scheme=offline", *meant.split())[0]
    assert notes == [f"{typed.replace('=.', '=0.').replace(',', ', ')} stands for {meant}"]


def test_the_keys_of_the_method_come_first() -> None:
    config, notes = load("scheme=offline", "method=camkd", "temperature=2", "scheme.alpha=3")
    assert (config.scheme.temperature, config.scheme.alpha) == (2, 3)
    assert notes == ["temperature=2 stands for scheme.temperature=2"]
    smoothed, _ = load("scheme=supervised", "label_smoothing=0.2")
    assert smoothed.scheme.label_smoothing == 0.2


@pytest.mark.parametrize("key", ["checkpoint", "pretrained", "weight", "name", "image_size"])
def test_a_word_that_may_be_several_keys_is_none(key: str) -> None:
    with pytest.raises(UserError, match="unknown key"):
        load("scheme=offline", f"{key}=1")


def test_every_alias_leads_to_a_key() -> None:
    keys = {*all_keys(), "model", "data", "optim"}
    assert {*ALIASES.values(), *short_keys().values()} <= keys
    assert not set(short_keys()) & keys


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["losses=kdd"], "losses=kdd: no loss is called 'kdd'"),
        (["losses.feature=[hint,rkd]"], "rkd is a relation loss, write losses.relation=rkd"),
        (["losses=[hint,at]", "losses.extra=[nst]"], "both name losses: remove one of them"),
        (["scheme=online", "scheme.peers=1"], "a network alone is scheme=supervised"),
        (["scheme=online", "peers=1"], "a network alone is scheme=supervised"),
        (["device=cuda:0"], "CUDA_VISIBLE_DEVICES"),
        (["scheme=supervised", "temperature=4"], "losses.response has no effect with scheme=supervised"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_the_right_key(words: list[str], said: str) -> None:
    with pytest.raises(UserError) as error:
        load("scheme=offline", *words)
    assert said in str(error.value)


def test_only_what_is_typed_is_expanded() -> None:
    with pytest.raises(UserError, match="unknown key 'epochs'"):
        load_config(["epochs=5"], recipes=RECIPES)
