"""Recipes of the public tables: the files are what the generator writes, they load, and their losses can be built."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
import yaml

from experiments.repdistiller import FOLDER, METHODS, PAIRS, main, recipes
from kdschemes.config import Config
from kdschemes.config.load import load_config
from kdschemes.config.losses import NoLoss
from kdschemes.core.loss import Side
from kdschemes.core.types import Task
from kdschemes.errors import UserError
from kdschemes.losses.build import build_loss
from kdschemes.models import create_model, stages

EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"
TEXTS = recipes()
TASK = Task(100, 3, 32, torch.arange(200) % 100)


def load(*arguments: str, recipes: Path = EXPERIMENTS) -> Config:
    return load_config(arguments, recipes=recipes)


def recipe(name: str) -> Config:
    return load(f"experiment=repdistiller/{name}")


@cache
def side(model: str) -> Side:
    torch.manual_seed(0)
    network = create_model(model, num_classes=100, channels=3, image_size=32)
    return Side({stage.name: stage.shape for stage in stages(network, 3, 32)}, network)


def test_files_are_what_the_generator_writes() -> None:
    assert {path: path.read_text() for path in FOLDER.glob("*")} == TEXTS


def test_the_generator_writes_and_removes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import experiments.repdistiller as generator

    monkeypatch.setattr(generator, "FOLDER", tmp_path / "new")
    main()
    (tmp_path / "new" / "old.yaml").write_text("seed: 1")
    main()
    assert {path.name for path in (tmp_path / "new").iterdir()} == {path.name for path in TEXTS}


def test_every_method_has_every_pair_but_where_nothing_is_published() -> None:
    names = {path.stem for path in TEXTS}
    absent = {f"{method}_{pair.name}" for method in METHODS for pair in PAIRS} - names
    assert absent == {"fsp_wrn_40_2_wrn_40_1", "fsp_resnet32x4_shufflenet_v2"}
    assert {
        "kd", "hint", "at", "sp", "cc", "vid", "rkd", "pkt", "ab", "ft", "fsp", "nst", "crd",
        "reviewkd", "dkd", "dist", "wttm", "kd_standardised",
    } == set(METHODS)  # fmt: skip


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.stem)
def test_a_recipe_follows_the_protocol_and_its_losses_can_be_built(path: Path) -> None:
    config = recipe(path.stem)
    method = METHODS[next(name for name in sorted(METHODS, key=len, reverse=True) if path.stem.startswith(f"{name}_"))]
    assert (config.train.epochs, config.data.val_fraction, config.data.crop_padding) == (240, 0.0, 4)
    assert [share * config.train.epochs for share in config.optim.milestones] == [150, 180, 210]
    assert (config.optim.gamma, config.optim.momentum, config.optim.weight_decay) == (0.1, 0.9, 0.0005)
    chosen = [options for _, options in config.losses.chosen()]
    assert [options.name for options in chosen] == [
        options["name"] for options in method.losses.values() if options["name"] != "none"
    ]
    student, teacher = side(config.model.name), side(config.teacher.name)
    build_loss(chosen[0], student=student, teacher=teacher, task=TASK)
    baseline = load(f"experiment=repdistiller/{path.stem}", "scheme=supervised")
    assert (baseline.scheme.name, baseline.optim, baseline.model) == ("supervised", config.optim, config.model)


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.stem)
def test_a_recipe_says_what_it_is_and_what_was_published(path: Path) -> None:
    comments = [line for line in TEXTS[path].splitlines() if line.startswith("#")]
    joined = " ".join(line.removeprefix("#").strip() for line in comments)
    keys = yaml.safe_load(TEXTS[path])
    assert list(keys) == ["scheme", "model", "teacher", "losses", "data", "optim", "train"]
    assert f"teacher {keys['teacher']['name']}, student {keys['model']['name']} (" in joined
    command = f"accelerate launch run.py experiment=repdistiller/{path.stem} teacher.checkpoint=PATH data.root=PATH"
    assert command in joined
    for words in ("Baseline:", "Published: teacher 7", "epoch", "Not run at full length by us yet."):
        assert words in joined
    number = float(joined.partition("this method ")[2].split()[0])
    assert 69 < number < 78


def test_published_numbers_by_method() -> None:
    """Three rows of the tables, read again: RepDistiller's, the logit standardisation's, Zheng and Yang's."""
    crd, standardised, wttm = (METHODS[name].accuracy for name in ("crd", "kd_standardised", "wttm"))
    assert crd == (71.16, 73.48, 75.51, 75.48, 74.14, 73.94, 75.65)
    assert standardised == (71.43, 74.17, 76.62, 76.11, 74.37, 74.36, 75.56)
    assert wttm == (71.92, 74.13, 76.06, 76.37, 74.58, 74.44, 76.55)
    assert all(len(method.accuracy) == len(PAIRS) for method in METHODS.values())


def test_learning_rates_and_momentum() -> None:
    rates = {path.stem: recipe(path.stem).optim for path in TEXTS if path.stem.startswith(("kd_res", "reviewkd_res"))}
    assert rates["kd_resnet56_resnet20"].lr == 0.05
    assert rates["kd_resnet32x4_shufflenet_v2"].lr == 0.01
    assert not rates["kd_resnet56_resnet20"].nesterov
    assert rates["reviewkd_resnet56_resnet20"].lr == 0.1
    assert rates["reviewkd_resnet32x4_shufflenet_v2"].lr == 0.02
    assert rates["reviewkd_resnet56_resnet20"].nesterov
    assert recipe("reviewkd_vgg13_vgg8").train.batch_size == 128
    assert recipe("crd_vgg13_vgg8").train.batch_size == 64


def test_weights_of_cross_entropy_and_distillation() -> None:
    def weights(name: str) -> tuple[float, float | None, float]:
        config = recipe(name)
        options = next(options for _, options in config.losses.chosen())
        return config.scheme.alpha, config.scheme.hard, options.weight

    assert weights("kd_vgg13_vgg8") == (0.9, None, 1.0)
    assert weights("kd_standardised_vgg13_vgg8") == (1.0, 0.1, 9.0)
    assert recipe("kd_standardised_vgg13_vgg8").losses.response.temperature == 3
    assert recipe("kd_standardised_resnet56_resnet20").losses.response.temperature == 2
    for name in ("dkd", "dist", "wttm"):
        assert weights(f"{name}_vgg13_vgg8")[:2] == (1.0, 1.0)
    assert recipe("dkd_wrn_40_2_wrn_16_2").losses.response.beta == 6
    assert isinstance(recipe("at_vgg13_vgg8").losses.response, NoLoss)
    assert recipe("reviewkd_resnet56_resnet20").losses.feature.weight == 0.6


def test_stages_are_those_of_the_public_code() -> None:
    def pairs(name: str) -> str | list[str]:
        config = recipe(name)
        return next(options for _, options in config.losses.chosen()).stages

    assert pairs("at_resnet56_resnet20") == "all"
    assert pairs("at_vgg13_vgg8") == [f"layer{n}:layer{n}" for n in (2, 3, 4, 5)]
    assert pairs("at_resnet32x4_shufflenet_v2") == [f"layer{n}:layer{n}" for n in (1, 2, 3)]
    assert pairs("hint_vgg13_vgg8") == "middle"
    assert pairs("hint_resnet32x4_shufflenet_v2") == ["layer2:layer2"]
    assert pairs("sp_resnet32x4_shufflenet_v2") == ["layer3:layer3"]
    assert pairs("crd_resnet32x4_shufflenet_v2") == "last"


def test_the_older_recipe_is_the_same_run() -> None:
    assert load("experiment=cifar100/resnet56_resnet20") == recipe("kd_resnet56_resnet20")


def test_of_many_recipes_only_the_closest_are_listed() -> None:
    with pytest.raises(UserError) as caught:
        recipe("kd_resnet56_resnet2")
    message = str(caught.value)
    assert "\n" not in message
    assert "did you mean 'repdistiller/kd_resnet56_resnet20'?" in message
    named = EXPERIMENTS.rglob("*.yaml")
    files = [file for file in named if file.relative_to(EXPERIMENTS).parts[0] not in ("studies", "sweeps")]
    files += EXPERIMENTS.glob("topologies/*.py")
    assert f"the closest of the {len(files)} in {EXPERIMENTS}: repdistiller/kd_resnet56_resnet20, " in message
    assert message.count(",") == 11
    with pytest.raises(UserError, match=r"unknown experiment 'zzz' \(the closest of the"):
        load("experiment=zzz")


def test_of_few_recipes_all_are_listed(tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        (tmp_path / f"{name}.yaml").write_text("seed: 1")
    with pytest.raises(UserError, match=r"unknown experiment 'tow' \(choose from one, three, two\)|did you mean 'two'"):
        load("experiment=tow", recipes=tmp_path)
    with pytest.raises(UserError, match="no recipes in"):
        load("experiment=one", recipes=tmp_path / "none")
