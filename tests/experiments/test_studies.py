"""The shipped studies: each reads, expands as its header says, names analyses that exist and runs at full size too."""

from __future__ import annotations

import re
import shlex
from functools import cache

import pytest
import torch
import yaml

from kdschemes.config import Config
from kdschemes.config.data import CIFAR100, Digits
from kdschemes.config.load import load_config
from kdschemes.core.types import DataSpec
from kdschemes.data import open_data
from kdschemes.evaluation.cost import training_macs
from kdschemes.models import count_macs, create_model
from kdschemes.report.analyses import ANALYSES
from kdschemes.schemes import build_scheme
from kdschemes.study.spec import StudyFile, read_study
from tests import REPOSITORY

EXPERIMENTS = REPOSITORY / "experiments"
SHIPPED = {path.stem: path for path in sorted((EXPERIMENTS / "studies").glob("*.yaml"))}
FULL_SIZE = [name for name in SHIPPED if name not in ("alpha_digits", "first_look")]
"""All but those that are of digits alone."""

COMMAND = re.compile(r"^#.*?(kdschemes study run .+)$", re.MULTILINE)


def read(name: str, *words: str) -> StudyFile:
    return read_study(SHIPPED[name], words, recipes=EXPERIMENTS)


def header(name: str) -> str:
    return SHIPPED[name].read_text().partition("\nquestion:")[0]


def commands(name: str) -> list[list[str]]:
    return [shlex.split(command)[3:] for command in COMMAND.findall(header(name))]


@pytest.mark.parametrize("name", FULL_SIZE)
def test_a_study_says_its_commands_its_cost_and_what_is_published(name: str) -> None:
    study = read(name)
    assert study.keys.question.endswith("?")
    text = header(name)
    assert all(line.startswith("#") and len(line) <= 120 for line in text.splitlines())
    for part in ("# Command:", "# Cost:", "# Literature:"):
        assert part in text
    assert len({run.seed for run in study.runs}) >= 3
    assert f"{len(study.runs)} runs" in text
    assert any(words[0] == name for words in commands(name))
    assert set(study.keys.analyses) <= ANALYSES.keys()


@pytest.mark.parametrize("name", FULL_SIZE)
def test_a_study_runs_on_digits_and_at_full_size(name: str) -> None:
    base = yaml.safe_load(SHIPPED[name].read_text()).get("base") or {}
    assert not {"data", "data.name", "train.epochs", "output_dir"} & base.keys()
    assert base.get("experiment") == ("digits/study" if name != "schemes_cifar100" else None)
    assert {type(run.config.data) for run in read(name).runs} == {Digits}
    (words,) = [words for words in commands(name) if "experiment=cifar100/study" in words][:1]
    full = read(words[0], *words[1:])
    assert str(full.output) == "runs/cifar100"
    for run in full.runs:
        assert isinstance(run.config.data, CIFAR100)
        assert (run.config.optim.lr, run.config.optim.lr_schedule) == (base.get("optim.lr", 0.1), "cosine")
        if "equal compute" not in run.label:
            assert run.config.train.epochs == 200


def folders(name: str) -> set[str]:
    return {run.folder for run in read(name).runs}


@pytest.mark.slow
def test_studies_find_each_others_runs() -> None:
    assert folders("sensitivity") == folders("alpha_temperature")
    assert folders("fidelity") == folders("alpha_effect") | folders("temperature_effect")
    assert folders("temperature_limit") < folders("temperature_effect")
    assert len(folders("alpha_temperature") & folders("alpha_effect")) == 15
    assert len(folders("alpha_temperature") & folders("temperature_effect")) == 12


def test_batches_of_every_share_of_the_images_fit() -> None:
    sizes = {}
    for run in read("efficiency").runs:
        config = run.config
        data = open_data(config.data, seed=0, device=torch.device("cpu"))
        data.check_batches(config.train.batch_size, config.train.grad_accum_steps, 1, config.train.drop_last)
        sizes[config.data.train_fraction] = data.sizes["train"]
    assert sizes[0.01] == 10
    assert sizes[1.0] == 1008
    assert sorted(sizes.values()) == [sizes[share] for share in sorted(sizes)]


DATA_SPECS = {"schemes": DataSpec(10, 1, 8), "schemes_cifar100": DataSpec(100, 3, 32)}


@cache
def compute(name: str) -> dict[str, float]:
    """Return the training compute of a run of each variant, in multiply-accumulates for each training image."""
    words = ["experiment=cifar100/study"] if name == "schemes_cifar100" else []
    found = {}
    for run in read(name, *words).runs:
        if run.variant is not None and run.variant not in found:
            found[run.variant] = run.config.train.epochs * macs(run.config, DATA_SPECS[name])
    return found


def macs(config: Config, data_spec: DataSpec) -> int:
    torch.manual_seed(0)
    return training_macs(build_scheme(config, data_spec), data_spec.channels, data_spec.image_size)


@pytest.mark.parametrize("name", DATA_SPECS)
def test_variants_of_equal_compute_have_that_of_the_most_expensive_of_equal_epochs(name: str) -> None:
    found = compute(name)
    epochs = {run.variant: run.config.train.epochs for run in read(name, "experiment=cifar100/study").runs}
    equal = [variant for variant in found if variant.endswith(" (equal compute)")]
    assert len(equal) == 4
    budget = max(cost for variant, cost in found.items() if variant not in equal)
    assert budget == found["offline"]
    for variant in equal:
        assert found[variant] == pytest.approx(budget, rel=0.02)
        assert epochs[variant] > epochs["offline"] or name == "schemes"
        assert found[variant.removesuffix(" (equal compute)")] < budget / 2


@pytest.mark.parametrize("name", DATA_SPECS)
def test_compute_is_three_forward_passes_of_what_is_trained_and_one_of_what_is_frozen(name: str) -> None:
    data_spec, found = DATA_SPECS[name], compute(name)
    forward = {
        model: count_macs(
            create_model(
                model, num_classes=data_spec.num_classes, channels=data_spec.channels, image_size=data_spec.image_size
            ),
            data_spec.channels,
            data_spec.image_size,
        )
        for model in ("convnet", "resnet18_cifar")
    }
    epochs = 15 if name == "schemes" else 200
    assert found["supervised"] == epochs * 3 * forward["convnet"]
    assert found["offline"] == epochs * (3 * forward["convnet"] + forward["resnet18_cifar"])
    assert found["online"] == 2 * found["supervised"]
    assert found["self"] == found["deep supervision"] > found["supervised"]


def test_the_recipe_at_full_size_leaves_scheme_networks_and_losses_to_the_study() -> None:
    full, digits = (yaml.safe_load((EXPERIMENTS / name / "study.yaml").read_text()) for name in ("cifar100", "digits"))
    assert list(full) == list(digits) == ["data", "optim", "train", "teacher"]
    assert "name" not in full["teacher"].keys() | digits["teacher"].keys()
    config = load_config(["experiment=cifar100/study"], recipes=EXPERIMENTS)
    assert (config.train.epochs, config.train.batch_size, config.optim.weight_decay) == (200, 128, 5e-4)
