"""What is chosen if nothing is said: an optimizer that suits the network, and a teacher independent of its student."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from kdschemes.config import ADAMW, Optim
from kdschemes.config.baselines import baseline_runs, command
from kdschemes.config.load import build_config
from kdschemes.config.models import MODELS, has_layer_norms
from kdschemes.config.naming import dump_yaml, to_tree
from kdschemes.config.prerequisites import prerequisite_runs
from kdschemes.storage.naming import run_name
from tests.config.cases import error, load

VIT = "timm/vit_tiny_patch16_224"


def test_a_transformer_is_trained_by_adamw_and_a_convolutional_network_by_sgd() -> None:
    assert load("model=resnet20", "train.epochs=200").optim == Optim()
    transformer = load(f"model={VIT}", "train.epochs=200").optim
    assert transformer == Optim(name="adamw", **ADAMW)  # type: ignore[arg-type]
    assert not transformer.decay_vectors
    assert load(f"scheme.peers=[convnet,{VIT}]").optim.name == "adamw"
    assert load("optim.name=adamw").optim.lr == 0.001
    assert load(f"model={VIT}", "optim=sgd").optim.lr == 0.1
    assert load(f"model={VIT}", "optim.lr=0.2").optim.lr == 0.2


def test_the_resolved_optimizer_is_recorded(tmp_path: Path) -> None:
    config = load("scheme=offline", f"model={VIT}", f"teacher={VIT}", "teacher.optim.lr=0.002")
    file = tmp_path / "config.yaml"
    file.write_text(dump_yaml(config))
    assert to_tree(config)["optim"]["lr"] == 0.001
    assert to_tree(config)["teacher"]["optim"]["lr"] == 0.002
    assert load(f"experiment={file}") == build_config(to_tree(config)) == config
    other = load(f"experiment={file}", "optim=sgd", "teacher.optim.name=sgd")
    assert (other.optim.lr, other.teacher.optim.lr) == (0.1, 0.1)


def test_warm_up_takes_a_tenth_of_a_short_training_unless_it_is_given() -> None:
    assert load("train.epochs=5").optim.warmup_epochs == 0.5
    assert load("train.epochs=5", "optim.warmup_epochs=1").optim.warmup_epochs == 1.0
    assert load("scheme=offline", "teacher.epochs=2", "train.epochs=200").teacher.optim.warmup_epochs == 0.2


STUDENTS = [
    ["optim.lr=0.01", "optim.clip_grad_norm=null", "optim.name=adamw"],
    ["train.epochs=3", "train.batch_size=32", "train.ema=0.9"],
    ["losses.response=dkd", "losses.feature=at", "scheme.alpha=0.2"],
    [f"model={VIT}"],
    ["data.train_fraction=0.5", "seed=7"],
    ["method=partial_teacher"],
]


@pytest.mark.parametrize("choices", STUDENTS, ids=" ".join)
def test_no_choice_for_the_student_retrains_the_teacher(choices: list[str]) -> None:
    plain, other = load("scheme=offline"), load("scheme=offline", *choices)
    assert run_name(plain) != run_name(other)
    assert [run_name(run) for run in prerequisite_runs(plain)] == [run_name(run) for run in prerequisite_runs(other)]


def test_the_teacher_has_keys_of_its_own() -> None:
    (run,) = prerequisite_runs(
        load("scheme=offline", "teacher.optim.lr=0.02", "teacher.epochs=7", "teacher.batch_size=50", "train.epochs=3")
    )
    assert (run.optim.lr, run.train.epochs, run.train.batch_size) == (0.02, 7, 50)
    (assistant,) = prerequisite_runs(load("scheme=offline", "method=takd", "teacher.optim.lr=0.02"))
    assert assistant.optim.lr == 0.02
    assert prerequisite_runs(load("scheme=self", "method=ban", "optim.lr=0.3"))[0].optim.lr == 0.3
    assert "'teacher.optim.lrr'" in error("scheme=offline", "teacher.optim.lrr=1")
    assert "teacher.optim.name=adam is not allowed" in error("scheme=offline", "teacher.optim=adam")


@pytest.mark.parametrize("name", ["repdistiller/kd_resnet56_resnet20", "cifar100/resnet56_resnet20", "cifar100/study"])
def test_published_settings_are_not_changed_by_defaults(name: str) -> None:
    config = load(f"experiment={name}", "scheme=offline")
    for optim in (config.optim, config.teacher.optim):
        assert (optim.clip_grad_norm, optim.warmup_epochs, optim.decay_vectors) == (None, 0.0, True)
    assert (config.teacher.epochs, config.teacher.batch_size) == (config.train.epochs, config.train.batch_size)


KINDS = [
    *("test_vit", "test_convnext", "mixer_s32_224", "pit_ti_224", "poolformer_s12", "deit_tiny_patch16_224"),
    *("levit_128s", "mobilevit_xxs", "test_resnet", "mixnet_s", "swiftformer_xs", "vgg11_bn", "resnet18"),
]


@pytest.mark.parametrize("name", KINDS)
def test_names_tell_which_networks_have_layer_norms(name: str) -> None:
    with torch.device("meta"):
        modules = list(timm.create_model(name).modules())
    layers = sum("LayerNorm" in type(m).__name__ or type(m).__name__ == "GroupNorm1" for m in modules)
    assert has_layer_norms(f"timm/{name}") == (layers > sum(isinstance(m, nn.BatchNorm2d) for m in modules))


def test_none_of_our_own_networks_is_taken_for_one_with_layer_norms() -> None:
    assert not any(map(has_layer_norms, MODELS))


@pytest.mark.parametrize(
    ("arguments", "methods"),
    [
        (["scheme=supervised"], []),
        (["scheme=supervised", "method=label_smoothing"], ["ce"]),
        (["scheme=supervised", "method=deep_supervision"], ["ce"]),
        (["scheme=offline", "losses.feature=at"], ["ce"]),
        (["scheme.peers=[resnet20,convnet]"], ["ce"]),
        (["scheme=self", "scheme.exits=[stage1,stage2]", "scheme.exit_head=linear"], ["ce", "deep_supervision"]),
        (["model.checkpoint=[a,b]"], []),
    ],
)
def test_the_command_of_a_baseline_is_a_run_that_differs_in_the_method_alone(
    arguments: list[str], methods: list[str], tmp_path: Path
) -> None:
    config = load(*arguments, "seed=3", "train.epochs=7", "optim.lr=0.03")
    (tmp_path / "config.yaml").write_text(dump_yaml(config))
    runs = baseline_runs(config)
    assert [run.scheme.method for run in runs] == methods
    for run in runs:
        words = shlex.split(command(run, config, tmp_path))[2:]
        assert run_name(load(*words)) == run_name(run)
        assert (run.data, run.train, run.optim, run.seed) == (config.data, config.train, config.optim, config.seed)
