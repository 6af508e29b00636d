"""Recipes of the public tables: they load, their losses can be built; and how tables of recipes are read."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
import yaml

from kdschemes.config import Config
from kdschemes.config.load import load_config
from kdschemes.config.losses import NoLoss
from kdschemes.config.recipes import known_recipes, read_recipe
from kdschemes.core.loss import Endpoint
from kdschemes.core.types import DataSpec
from kdschemes.errors import UserError
from kdschemes.losses.build import build_loss
from kdschemes.models import create_model, stages
from tests import REPOSITORY

EXPERIMENTS = REPOSITORY / "experiments"
TABLE = yaml.safe_load((EXPERIMENTS / "repdistiller.yaml").read_text())
NAMES = [name.removeprefix("repdistiller/") for name in known_recipes(EXPERIMENTS) if name.startswith("repdistiller/")]
DATA_SPEC = DataSpec(100, 3, 32, torch.arange(200) % 100)


def load(*arguments: str, recipes: Path = EXPERIMENTS) -> Config:
    return load_config(arguments, recipes=recipes)


def recipe(name: str) -> Config:
    return load(f"experiment=repdistiller/{name}")


@cache
def side(model: str) -> Endpoint:
    torch.manual_seed(0)
    network = create_model(model, num_classes=100, channels=3, image_size=32)
    return Endpoint({stage.name: stage.shape for stage in stages(network, 3, 32)}, network)


def test_every_method_has_every_pair_but_where_nothing_is_published() -> None:
    absent = {f"{row}_{column}" for row in TABLE["rows"] for column in TABLE["columns"]} - set(NAMES)
    assert absent == {"fsp_wrn_40_2_wrn_40_1", "fsp_resnet32x4_shufflenet_v2"}
    assert len(NAMES) == 124
    assert {
        "kd", "hint", "at", "sp", "cc", "vid", "rkd", "pkt", "ab", "ft", "fsp", "nst", "crd",
        "reviewkd", "dkd", "dist", "wttm", "kd_standardized",
    } == set(TABLE["rows"])  # fmt: skip


@pytest.mark.parametrize("row", TABLE["rows"])
def test_recipes_follow_the_protocol(row: str) -> None:
    for column in TABLE["columns"]:
        if (name := f"{row}_{column}") not in NAMES:
            continue
        config = recipe(name)
        assert (config.train.epochs, config.data.val_fraction, config.data.crop_padding) == (240, 0.0, 4), name
        assert [share * config.train.epochs for share in config.optim.milestones] == [150, 180, 210], name
        assert (config.optim.gamma, config.optim.momentum, config.optim.weight_decay) == (0.1, 0.9, 0.0005), name
        assert f"{config.teacher.name}_{config.model.name}" == column
        ((_, chosen),) = config.losses.chosen()
        assert chosen.name == row.removesuffix("_standardized"), name


OF_EACH_KIND = [*(f"{row}_resnet56_resnet20" for row in TABLE["rows"]), *(f"hint_{pair}" for pair in TABLE["columns"])]
"""A pair of networks for each loss, a loss for each pair."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.exhaustive] * (name not in OF_EACH_KIND)) for name in NAMES]
)
def test_the_losses_of_a_recipe_can_be_built(name: str) -> None:
    config = recipe(name)
    ((_, chosen),) = config.losses.chosen()
    student, teacher = side(config.model.name), side(config.teacher.name)
    build_loss(chosen, student=student, teacher=teacher, data_spec=DATA_SPEC)
    baseline = load(f"experiment=repdistiller/{name}", "scheme=supervised")
    assert (baseline.scheme.name, baseline.optim, baseline.model) == ("supervised", config.optim, config.model)


def test_the_table_says_what_was_published_and_where() -> None:
    """Of the numbers three rows are read again: RepDistiller's, the logit standardization's, Zheng and Yang's."""
    for row in TABLE["rows"].values():
        assert row["about"].endswith(")")
        assert "epoch" in row["source"]
        assert all(number is None or 69 < number < 78 for number in row["published"])
    for name, column in TABLE["columns"].items():
        assert name == f"{column['keys']['teacher']}_{column['keys']['model']}"
        assert column["published"]["student"] < column["published"]["teacher"] < 80
    crd, standardized, wttm = (TABLE["rows"][name]["published"] for name in ("crd", "kd_standardized", "wttm"))
    assert crd == [71.16, 73.48, 75.51, 75.48, 74.14, 73.94, 75.65]
    assert standardized == [71.43, 74.17, 76.62, 76.11, 74.37, 74.36, 75.56]
    assert wttm == [71.92, 74.13, 76.06, 76.37, 74.58, 74.44, 76.55]


def test_learning_rates_and_momentum() -> None:
    rates = {name: recipe(name).optim for name in NAMES if name.startswith(("kd_res", "reviewkd_res"))}
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
        return config.scheme.alpha, config.scheme.ce_weight, options.weight

    assert weights("kd_vgg13_vgg8") == (0.9, None, 1.0)
    assert weights("kd_standardized_vgg13_vgg8") == (1.0, 0.1, 9.0)
    assert recipe("kd_standardized_vgg13_vgg8").losses.response.temperature == 3
    assert recipe("kd_standardized_resnet56_resnet20").losses.response.temperature == 2
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


SMALL = """
keys: {seed: 1, optim: {lr: 1, momentum: 0.5}}
columns: {a: {keys: {seed: 3, train.epochs: 3}}, b: {}, 1: {}}
rows:
  x: {about: X, keys: {seed: 2, optim.lr: 2}, cells: {a: {seed: 4}, b: {seed: 5}}}
  y_z: {published: [70.5, null, 0]}
"""


def test_later_keys_of_a_table_win(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "table.yaml").write_text(SMALL)
    names = ["x_1", "x_a", "x_b", "y_z_1", "y_z_a"]
    assert known_recipes(tmp_path) == [f"more/table/{name}" for name in names]
    slow = {"lr": 1, "momentum": 0.5}
    assert [read_recipe(f"more/table/{name}", tmp_path) for name in names] == [
        {"seed": 2, "optim": {"lr": 2, "momentum": 0.5}},
        {"seed": 4, "optim": {"lr": 2, "momentum": 0.5}, "train": {"epochs": 3}},
        {"seed": 5, "optim": {"lr": 2, "momentum": 0.5}},
        {"seed": 1, "optim": slow},
        {"seed": 3, "optim": slow, "train": {"epochs": 3}},
    ]
    assert load("experiment=more/table/x_a", "seed=9", recipes=tmp_path).seed == 9
    with pytest.raises(UserError, match="unknown experiment 'more/table/y_z_b'; did you mean 'more/table/y_z_a'"):
        load("experiment=more/table/y_z_b", recipes=tmp_path)


@pytest.mark.parametrize("name", ["repdistiller", EXPERIMENTS / "repdistiller.yaml"])
def test_a_table_itself_is_no_recipe(name: str | Path) -> None:
    with pytest.raises(UserError, match="is a table of recipes: choose one as repdistiller/ROW_COLUMN"):
        load(f"experiment={name}")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{rows: {}}", "columns has no keys"),
        ("{columns: {a: {}}, rows: 3}", "rows has no keys"),
        ("{columns: {a: 1}, rows: {}}", "column a has no keys"),
        ("{columns: {a: {}}, rows: {x: }}", "row x has no keys"),
        ("{columns: {a: {}}, rows: {x: {keys: kd}}}", "an entry of x_a has no keys"),
        ("{columns: {a: {}}, rows: {x: {key: {}}}}", "unknown key of row x 'key'; did you mean 'keys'?"),
        ("{columns: {a: {key: {}}}, rows: {}}", "unknown key of column a 'key'; did you mean 'keys'?"),
        ("{columns: {a: {}}, rows: {}, seed: 1}", "unknown key of the table 'seed'"),
        (
            "{columns: {abc: {}}, rows: {x: {cells: {abd: {}}}}}",
            "unknown key of cells of row x 'abd'; did you mean 'abc'?",
        ),
        (
            "{columns: {a: {}}, rows: {x: {published: [1, 2]}}}",
            "published of row x needs a value for each of the 1 columns",
        ),
        ("{columns: {a: {}}, rows: {x: {published: 1}}}", "published of row x needs a value for each of the 1 columns"),
    ],
)
def test_a_table_with_a_mistake_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "table.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        load("experiment=table/x_a", recipes=tmp_path)
    assert f"recipe {tmp_path / 'table.yaml'}: {words}" in str(caught.value)
    with pytest.raises(UserError, match="unknown experiment 'tabel'; did you mean 'table'"):
        load("experiment=tabel", recipes=tmp_path)


def test_of_many_recipes_only_the_closest_are_listed() -> None:
    with pytest.raises(UserError) as caught:
        recipe("kd_resnet56_resnet2")
    message = str(caught.value)
    assert "\n" not in message
    assert "did you mean 'repdistiller/kd_resnet56_resnet20'?" in message
    count = len(known_recipes(EXPERIMENTS))
    assert count > len(NAMES)
    assert f"the closest of the {count} in {EXPERIMENTS}: repdistiller/kd_resnet56_resnet20, " in message
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
