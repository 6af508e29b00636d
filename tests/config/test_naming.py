"""Configurations as trees, YAML and hashes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kdschemes.config.load import build_config
from kdschemes.config.naming import NOT_HASHED, config_hash, dump_yaml, run_name, to_tree
from tests.config.cases import load, recipe

VARIED = [
    [],
    ["seed=3", "train.epochs=2", "optim.lr=1e-3", "optim.milestones=[0.5]", "optim.clip_grad_norm=1"],
    ["scheme=offline", "teacher=[resnet20,resnet56]", "teacher.weights=[1,3]", "losses.feature=at"],
    ["scheme.peers=[convnet,resnet20]", "losses.response=logit_mse", "losses.relation=rkd"],
    ["scheme=self", "scheme.exits=[stage1]", "losses.feature.stages=[exit:stage4]"],
    ["data=image_folder", "data.root=images", "model=timm/resnet18", "tracker=[wandb,tensorboard]"],
    ["data=cifar10", "data.mixup=0.2", "train.ema=0.9", "precision=bf16", "output_dir=here", "group=mine"],
]


@pytest.mark.parametrize("arguments", VARIED, ids=" ".join)
def test_a_configuration_comes_back_from_its_tree_and_from_its_yaml(arguments: list[str], tmp_path: Path) -> None:
    config = load(*arguments)
    assert build_config(to_tree(config)) == config
    saved = tmp_path / "config.yaml"
    saved.write_text(dump_yaml(config))
    again = load(f"experiment={saved}")
    assert again == config
    assert config_hash(again) == config_hash(config)
    assert run_name(again) == run_name(config)
    assert load(f"experiment={saved}", "seed=77").seed == 77


def test_the_hash_counts_what_is_computed_and_nothing_else() -> None:
    base = load()
    assert re.fullmatch("[0-9a-f]{8}", config_hash(base))
    watched = load("output_dir=elsewhere", "tracker=wandb", "project=p", "group=g", "train.fsdp=true")
    assert config_hash(watched) == config_hash(base)
    offline = load("scheme=offline")
    assert config_hash(load("scheme=offline", "teacher.placement=sharded")) == config_hash(offline)
    assert config_hash(load("scheme=offline", "teacher.precision=bf16")) != config_hash(offline)
    watchers = {"output_dir", "tracker", "project", "group", "job_type"}
    teacher = {"teacher.placement", "teacher.cache_dir", "teacher.cache_limit_gb"}
    assert watchers | teacher | {"scheme.file", "train.fsdp"} == set(NOT_HASHED)
    for other in ("seed=1", "train.epochs=16", "optim.lr=0.2", "data.mixup=0.1", "losses.response.temperature=2"):
        assert config_hash(load(other)) != config_hash(base)
        assert config_hash(load(other)) == config_hash(load(other))
    assert config_hash(load("model.mean=null", "model.std=null", "model.image_size=null")) == config_hash(base)
    for other in ("model.mean=[0.5]", "model.std=[0.5]", "model.image_size=16"):
        assert config_hash(load(other)) != config_hash(base)
    assert config_hash(load("scheme=offline", "teacher.image_size=16")) != config_hash(offline)
    assert config_hash(load("optim.lr=1")) == config_hash(load("optim.lr=1.0")) == config_hash(load("optim.lr=1e0"))
    assert config_hash(load("train.epochs=15", "optim.lr=0.1")) == config_hash(base)


def test_groups_that_a_scheme_does_not_use_are_not_in_its_tree_or_its_hash(tmp_path: Path) -> None:
    assert "teacher" not in to_tree(load("scheme=self"))
    assert {"teacher", "losses"}.isdisjoint(to_tree(load("scheme=supervised")))
    both = recipe(tmp_path, "scheme: offline\nteacher: {name: resnet56, seed: 4}\nlosses: {response: logit_mse}")
    baseline = load("experiment=mine", "scheme=supervised", recipes=both)
    assert config_hash(baseline) == config_hash(load("scheme=supervised"))
