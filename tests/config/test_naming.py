"""Configurations as trees and YAML."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdschemes.config.load import build_config
from kdschemes.config.naming import dump_yaml, to_tree
from kdschemes.storage.naming import config_hash, run_name
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
    assert load(f"experiment={saved}", "seed=77").seed == 77


def test_groups_that_a_scheme_does_not_use_are_not_in_its_tree_or_its_hash(tmp_path: Path) -> None:
    assert "teacher" not in to_tree(load("scheme=self"))
    assert {"teacher", "losses"}.isdisjoint(to_tree(load("scheme=supervised")))
    both = recipe(tmp_path, "scheme: offline\nteacher: {name: resnet56, seed: 4}\nlosses: {response: logit_mse}")
    baseline = load("experiment=mine", "scheme=supervised", recipes=both)
    assert config_hash(baseline) == config_hash(load("scheme=supervised"))


def test_a_long_name_is_cut_to_a_folders_name_and_keeps_its_hash() -> None:
    names = [run_name(load(f"model=timm/{'x' * count}")) for count in (70, 500, 501)]
    assert names[0].startswith(f"online-dml-digits-timm_{'x' * 70}-seed0-")
    assert len(set(names)) == 3
    assert max(map(len, names)) < 255
