"""The shipped studies: each reads, expands as its header says, names analyses that exist and runs at full size too."""

from __future__ import annotations

import re
import shlex
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml

from kdschemes.config import Config
from kdschemes.config.data import CIFAR100, MNIST, Digits, FashionMNIST
from kdschemes.config.load import load_config
from kdschemes.core.types import DataSpec
from kdschemes.data import open_data
from kdschemes.evaluation.cost import training_macs
from kdschemes.models import count_macs, create_model
from kdschemes.report import report
from kdschemes.report.analyses import ANALYSES
from kdschemes.schemes import build_scheme
from kdschemes.study.prerequisites import with_prerequisites
from kdschemes.study.record import remember, write_study
from kdschemes.study.spec import StudyFile, read_study
from kdschemes.training.train import train
from tests import REPOSITORY
from tests.images import write_images

EXPERIMENTS = REPOSITORY / "experiments"
SHIPPED = {path.stem: path for path in sorted((EXPERIMENTS / "studies").glob("*.yaml"))}
OF_PAPERS = {
    "nayak2019_mnist": {"lenet5": 99.34, "half alone": 98.92, "half from lenet5": 99.25},
    "nayak2019_fashion": {"lenet5": 90.84, "half alone": 89.43, "half from lenet5": 89.66},
    "stanton2021": {"60,000 images": 99},
    "mirzadeh2020": {"alone": 41.09, "from plain10": 44.57, "from plain10 by plain4": 44.92},
    "cifar100_resnet56_resnet20": {"alone": 69.06, "kd": 70.66, "dkd": 71.97},
    "deck_alpha": {},
    "deck_temperature": {},
    "deck_length": {},
}
"""Studies of a fixed data set, at full length, and what was published for their points."""

ON_MNIST = {
    "hinton2015": {
        "large": 67,
        "800 units alone": 146,
        "800 units from 1200": 74,
        "800 units from 1200, no 3": 206,
        "800 units from 1200, only 7 and 8": 4730,
    },
    "muller2019": {
        "large": 0.67,
        "large_smooth": 0.59,
        "from the teacher without label smoothing": 0.74,
        "from the teacher with label smoothing": 0.91,
    },
}
"""Those whose fully connected networks and omitted classes are those of MNIST."""

LIKE_OTHERS = ("nayak2019_fashion", "cifar100_resnet56_resnet20", "deck_temperature", "deck_length", "muller2019")
"""Studies whose runs differ from another's only in their data, networks or values."""

ON_DIGITS = ("alpha_digits", "first_look")
"""Studies of digits alone."""

FULL_SIZE = [name for name in SHIPPED if name not in OF_PAPERS | ON_MNIST and name not in ON_DIGITS]
"""Those that run on digits and at full size."""

COMMAND = re.compile(r"^#.*?(kdschemes study run .+)$", re.MULTILINE)


@cache
def read(name: str, *words: str) -> StudyFile:
    return read_study(SHIPPED[name], words, recipes=EXPERIMENTS)


def header(name: str) -> str:
    return SHIPPED[name].read_text().partition("\nquestion:")[0]


def commands(name: str) -> list[list[str]]:
    text = header(name).replace("\n#             ", " ")
    return [shlex.split(command)[3:] for command in COMMAND.findall(text)]


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_study_loads_and_says_what_it_costs(name: str) -> None:
    study, text = read(name), header(name)
    assert re.search(rf"^# Command: +kdschemes study (run|submit) {name}\b", text, flags=re.MULTILINE)
    assert "# Cost: " in text
    assert len({run.seed for run in study.runs}) > 1
    assert f"{len(study.runs)} runs" in text


@pytest.mark.parametrize("name", FULL_SIZE)
def test_a_study_says_its_commands_its_cost_and_what_is_published(name: str) -> None:
    study = read(name)
    assert study.keys.question.endswith("?")
    text = header(name)
    assert all(line.startswith("#") and len(line) <= 120 for line in text.splitlines())
    assert "# Literature:" in text
    assert len({run.seed for run in study.runs}) >= 3
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


@pytest.mark.parametrize("name", OF_PAPERS | ON_MNIST)
def test_a_study_of_a_paper_sets_what_its_results_depend_on(name: str) -> None:
    study, text = read(name), header(name)
    assert "# Smallest:" in text
    assert "# Literature:" in text
    assert {type(run.config.data) for run in study.runs} <= {MNIST, FashionMNIST, CIFAR100}
    val_fraction = {**dict.fromkeys(ON_MNIST, 0.05), "deck_length": 0.1}.get(name, 0)
    assert {(run.config.data.val_fraction, run.config.precision) for run in study.runs} == {(val_fraction, "bf16")}
    base = study.keys.base
    keys = ("name", "lr", "momentum", "weight_decay", "lr_schedule", "warmup_epochs", "clip_grad_norm")
    assert {f"optim.{key}" for key in keys} <= base.keys()
    assert len({run.seed for run in study.runs}) >= (2 if name.startswith("deck") else 3)
    given = [each.values for each in study.keys.published]
    assert {label: value for values in given for label, value in values.items()} == (OF_PAPERS | ON_MNIST)[name]
    assert all(each.differs for each in study.keys.published)


def test_the_deck_has_its_points() -> None:
    values = {"deck_alpha": [0, 0.1, 0.3, 0.5, 0.7, 0.9, 1], "deck_temperature": [1, 2, 4, 8, 16, 32]}
    for name, expected in values.items():
        points = [next(iter(run.grid.values())) for run in read(name).runs if run.grid]
        assert sorted(points) == sorted(2 * expected)
    shared = folders("deck_alpha") & folders("deck_temperature")
    assert len(shared) == 2  # two seeds at alpha = 0.9, T = 4
    seeds = [{run.seed for run in read(name).runs} for name in ("deck_length", "deck_alpha", "deck_temperature")]
    assert seeds[0].isdisjoint(seeds[1] | seeds[2])  # the length is chosen on other seeds


def reported(study: StudyFile) -> str:
    """Train the runs of a study in this process; return its report in Markdown, which lacks none of them."""
    runs = with_prerequisites(study)
    for run in runs:
        train(run.config)
    folder = study.output / "studies" / study.name
    folder.mkdir(parents=True)
    write_study(remember(folder, study, runs))
    assert "written: " in report([str(folder)], output=None, out=None)
    assert (folder / "report.html").is_file()
    text = (folder / "report.md").read_text()
    assert "Not finished" not in text
    return text


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.exhaustive] * (name in LIKE_OTHERS)) for name in OF_PAPERS]
)
def test_the_smallest_form_of_a_study_runs_to_its_report(name: str, tmp_path: Path) -> None:
    """The study on a few images of its shape, with one seed and the ends of its grid, in this process.

    `kdschemes study run` itself is tested in tests/study/local.
    """
    smallest = commands(name)[1]
    assert smallest[0] == name
    tree = yaml.safe_load(SHIPPED[name].read_text())
    side = 32 if tree["base"]["data"]["name"] == "cifar100" else 28
    write_images(tmp_path / "images", 16, side)
    tree["base"]["data"] = {"name": "image_folder", "root": str(tmp_path / "images"), "val_fraction": 0}
    tree["base"]["data"] |= {"image_size": side, "num_workers": 0, "classes": 2}
    for keys in (*tree.get("prerequisites", {}).values(), *tree.get("variants", {}).values()):
        keys |= {"data.train_fraction": 0.5} if "data.train_fraction" in keys else {}
    for key, values in tree.get("grid", {}).items():
        tree["grid"][key] = [1, 2] if key == "train.epochs" else [values[0], values[-1]]
    file = tmp_path / f"{name}.yaml"
    file.write_text(yaml.safe_dump(tree | {"seeds": [0]}, sort_keys=False))
    words = [word for word in smallest[1:] if not word.startswith(("data.", "output_dir="))]
    study = read_study(file, [*words, f"output_dir={tmp_path / 'runs'}"], recipes=EXPERIMENTS)
    text = reported(study)
    for label, value in OF_PAPERS[name].items():
        assert re.search(
            rf"^\| {re.escape(label)}( \(teaches\))? \| {value:g} \| \d+\.\d\d \| 0 \|", text, re.MULTILINE
        )
        assert "Published and ours" in text
    assert all(line in text for each in study.keys.published for line in each.differs)
    if name.startswith("deck"):
        assert "![lines](lines.png)" in text


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.exhaustive] * (name in LIKE_OTHERS)) for name in ON_MNIST]
)
def test_the_smallest_form_of_a_study_of_mnist_runs_to_its_report(name: str, shared: Path, tmp_path: Path) -> None:
    tree = yaml.safe_load(SHIPPED[name].read_text()) | {"seeds": [0]}
    for label in [label for label in tree["variants"] if re.match(r"300? units.*(?<!T=8)(?<!T=40)$", label)]:
        del tree["variants"][label]
    file = tmp_path / f"{name}.yaml"
    file.write_text(yaml.safe_dump(tree, sort_keys=False))
    words = [word for word in commands(name)[1][1:] if not word.startswith(("data.root=", "output_dir="))]
    study = read_study(
        file, [*words, f"data.root={shared / 'data' / 'mnist'}", f"output_dir={tmp_path / 'runs'}"], recipes=EXPERIMENTS
    )
    text = reported(study)
    for label, value in ON_MNIST[name].items():
        assert re.search(rf"^\| {re.escape(label)}( \(teaches\))? \| {value:g} \| [\d.]+ \| 0 \|", text, re.MULTILINE)
    if name == "hinton2015":
        assert "The statements of Hinton et al. (2015) on MNIST" in text
        assert "| no 3 | 206 (133 on 3s) |" in text


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
