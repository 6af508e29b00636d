"""Command lines and recipes become one `Config` and back; every mistake is one line that says what is allowed."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
import yaml

from kdschemes.config import Config, losses, schemes
from kdschemes.config.data import DATA
from kdschemes.config.help import GROUPS, LOSS_PREFIXES, choices, description, help_text
from kdschemes.config.load import build_config, load_config
from kdschemes.config.losses import feature as feature_maps
from kdschemes.config.losses import response
from kdschemes.config.models import MODELS
from kdschemes.config.naming import NOT_HASHED, config_hash, dump_yaml, run_name, to_tree
from kdschemes.config.recipes import known_recipes
from kdschemes.config.schemes import online as options_online
from kdschemes.config.schemes import self_distillation as self_exits
from kdschemes.config.schemes import supervised
from kdschemes.config.validate import all_keys
from kdschemes.errors import UserError
from tests import REPOSITORY

RECIPES = REPOSITORY / "experiments"
RECIPE_FILES = sorted(file for name in known_recipes(RECIPES) if (file := RECIPES / f"{name}.yaml").is_file())
METHODS = [(scheme, method) for scheme, methods in schemes.SCHEMES.items() for method in methods]


def load(*arguments: str, recipes: Path = RECIPES) -> Config:
    return load_config(arguments, recipes=recipes)


def error(*arguments: str, recipes: Path = RECIPES) -> str:
    with pytest.raises(UserError) as caught:
        load(*arguments, recipes=recipes)
    message = str(caught.value)
    assert message
    assert "\n" not in message
    return message


def recipe(folder: Path, text: str) -> Path:
    (folder / "mine.yaml").write_text(text)
    return folder


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


@pytest.mark.parametrize(("scheme", "method"), METHODS)
def test_every_method_loads_with_its_own_options_and_losses(scheme: str, method: str) -> None:
    config = load(f"scheme={scheme}", f"method={method}")
    cls = schemes.SCHEMES[scheme][method]
    assert type(config.scheme) is cls
    for kind in ("response", "feature", "relation"):
        for key, value in cls.losses.get(kind, {"name": "none"}).items():
            assert getattr(getattr(config.losses, kind), key) == value
    assert run_name(config).startswith(f"{scheme}-{method}-digits-convnet-seed0-")
    assert build_config(to_tree(config)) == config


def test_a_scheme_without_a_method_takes_its_first() -> None:
    assert load("scheme=supervised").scheme == supervised.Supervised()
    assert load("method=label_smoothing", "scheme=supervised").scheme == supervised.LabelSmoothing()


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
    assert config_hash(load("optim.lr=1")) == config_hash(load("optim.lr=1.0")) == config_hash(load("optim.lr=1e0"))
    assert config_hash(load("train.epochs=15", "optim.lr=0.1")) == config_hash(base)


def test_groups_that_a_scheme_does_not_use_are_not_in_its_tree_or_its_hash(tmp_path: Path) -> None:
    assert "teacher" not in to_tree(load("scheme=self"))
    assert {"teacher", "losses"}.isdisjoint(to_tree(load("scheme=supervised")))
    both = recipe(tmp_path, "scheme: offline\nteacher: {name: resnet56, seed: 4}\nlosses: {response: logit_mse}")
    baseline = load("experiment=mine", "scheme=supervised", recipes=both)
    assert config_hash(baseline) == config_hash(load("scheme=supervised"))


def test_later_overrides_win_over_earlier_ones_over_the_recipe_over_the_defaults(tmp_path: Path) -> None:
    recipes = recipe(tmp_path, "train.epochs: 7\ntrain: {batch_size: 64}\noptim: {lr: 0.3}\nmodel: resnet20")
    config = load("train.epochs=8", "experiment=mine", "train.epochs=9", recipes=recipes)
    assert (config.train.epochs, config.train.batch_size, config.optim.lr) == (9, 64, 0.3)
    assert config.train.eval_batch_size == 500
    assert config.model.name == "resnet20"


RECIPE = """
scheme: {name: offline, method: kd, alpha: 0.3}
teacher: {name: resnet56}
data: {name: cifar10, crop_padding: 2, root: here}
losses: {response: {name: kd, temperature: 7, weight: 2}, feature: {name: at, weight: 5}}
"""


def test_another_choice_drops_the_options_of_the_old_one(tmp_path: Path) -> None:
    recipes = recipe(tmp_path, RECIPE)

    def loaded(*overrides: str) -> Config:
        return load("experiment=mine", *overrides, recipes=recipes)

    assert loaded("scheme=offline").scheme.alpha == 0.3
    assert loaded("scheme.alpha=0.4").losses.response.temperature == 7
    online = loaded("scheme=online")
    assert online.scheme == options_online.OnlineDML()
    assert online.losses == load("scheme=online").losses
    assert loaded("scheme=online", "losses.response.weight=3").losses.response == response.KD(
        weight=3.0, temperature=1.0
    )
    assert loaded("data=cifar100").data == load("data=cifar100").data
    assert loaded("data=cifar10").data.crop_padding == 2
    assert loaded("losses.response=logit_mse").losses.response == response.LogitMSE()
    assert loaded("losses.response=logit_mse").losses.feature == feature_maps.AT(weight=5.0)
    assert loaded("losses.response=kd").losses.response.temperature == 7
    assert loaded("losses.feature=none").losses.feature == losses.NoLoss()
    assert loaded("scheme=supervised").scheme == supervised.Supervised()


def test_another_choice_drops_the_options_of_the_default_one_too(tmp_path: Path) -> None:
    recipes = recipe(tmp_path, "scheme: {peers: 3}\ndata: {crop_padding: 2}")
    assert load("experiment=mine", "scheme=online", recipes=recipes).scheme.peers == 3
    config = load("experiment=mine", "scheme=self", "data=cifar10", recipes=recipes)
    assert config.scheme == self_exits.SelfBYOT()
    assert config.data == load("data=cifar10").data


def test_another_method_of_the_same_scheme_drops_the_options_of_the_old_one(tmp_path: Path) -> None:
    recipes = recipe(tmp_path, "scheme: {name: supervised, label_smoothing: 0.3}")
    assert load("experiment=mine", "method=ce", recipes=recipes).scheme.label_smoothing == 0.3
    assert load("experiment=mine", "method=label_smoothing", recipes=recipes).scheme == supervised.LabelSmoothing()


def test_losses_none_takes_the_default_loss_of_a_method_away() -> None:
    assert load("losses.response=none").losses.response == losses.NoLoss()
    assert load("scheme=self", "losses.feature=at").losses.feature == feature_maps.AT()
    assert load("scheme=self", "losses.feature.weight=2").losses.feature == feature_maps.Hint(weight=2.0)


@pytest.mark.parametrize("path", RECIPE_FILES, ids=lambda path: path.stem)
def test_every_recipe_loads_by_name(path: Path) -> None:
    name = path.relative_to(RECIPES).with_suffix("")
    config = load(f"experiment={name}")
    assert load(f"experiment={path}") == config
    assert build_config(to_tree(config)) == config


def test_recipes_are_there() -> None:
    assert RECIPE_FILES


def test_a_loss_brings_the_weight_of_cross_entropy_that_it_was_published_beside(tmp_path: Path) -> None:
    def weights(*overrides: str) -> tuple[float, float | None]:
        scheme = load("scheme=offline", *overrides).scheme
        return scheme.alpha, scheme.ce_weight

    assert weights() == (0.9, None)
    assert weights("losses.response=dkd") == (1.0, 1.0)
    assert weights("losses.response=dkd", "scheme.ce_weight=0.5") == (1.0, 0.5)
    assert weights("losses.response=dkd", "scheme.alpha=0.4") == (0.4, 1.0)
    assert weights("losses.extra=[dkd]", "losses.response=none") == (1.0, 1.0)
    assert load("scheme=self", "losses.response=dkd").scheme == self_exits.SelfBYOT()
    for first, second in (("kd", "dkd"), ("dkd", "kd")):
        saved = tmp_path / f"{first}.yaml"
        saved.write_text(dump_yaml(load("scheme=offline", f"losses.response={first}")))
        assert weights(f"experiment={saved}", f"losses.response={second}") == weights(f"losses.response={second}")
    kept = recipe(tmp_path, "scheme: {name: offline, alpha: 0.3}")
    assert load("experiment=mine", "losses.response=logit_mse", recipes=kept).scheme.alpha == 0.3


def test_further_losses_of_any_kind() -> None:
    config = load("scheme=offline", "losses.feature=hint", "losses.extra=[{name: at, weight: 5, stages: last}, rkd]")
    chosen = [(kind, options.name) for kind, options in config.losses.chosen()]
    assert chosen == [("response", "kd"), ("feature", "hint"), ("feature", "at"), ("relation", "rkd")]
    assert config.losses.extra[0] == feature_maps.AT(weight=5.0, stages="last")
    assert build_config(to_tree(config)) == config
    assert load("losses.extra=at").losses.extra == [feature_maps.AT()]
    assert "chosen twice" in error("losses.extra=[at]", "losses.feature=at")
    assert "unknown loss in losses.extra 'att'; did you mean 'at'?" in error("losses.extra=[att]")
    assert "losses.extra.weigth" in error("losses.extra=[{name: at, weigth: 3}]")
    assert "losses.extra.weight=-1 is not allowed" in error("losses.extra=[{name: at, weight: -1}]")
    assert "unknown loss" in error("losses.extra=[3]")


def test_a_loss_of_another_kind_is_shown_its_place() -> None:
    assert error("losses.response=ofd") == "losses.response=ofd: ofd is a feature loss, write losses.feature=ofd"


def test_a_loss_of_labels_refuses_mixed_labels() -> None:
    assert "dkd needs one label per sample" in error("losses.response=dkd", "data.mixup=0.2")


UNKNOWN_KEYS = {
    "optim.lrr=1": "optim.lr",
    "lr=0.1": "optim.lr",
    "alpha=0.3": "scheme.alpha",
    "losses.response.temperatur=1": "losses.response.temperature",
    "trian=3": "train",
    "epochs=3": "train.epochs",
    "sede=1": "seed",
}


@pytest.mark.parametrize(("argument", "suggestion"), UNKNOWN_KEYS.items())
def test_an_unknown_key_is_refused_with_the_nearest_one(argument: str, suggestion: str) -> None:
    message = error(argument)
    assert f"unknown key '{argument.partition('=')[0]}'" in message
    assert f"'{suggestion}'" in message.partition("did you mean")[2]
    assert "--help" in message


@pytest.mark.parametrize(
    ("arguments", "choice"),
    [
        (["scheme.alpha=0.5"], "scheme=online"),
        (["data=digits", "data.image_size=3"], "data=digits"),
        (["losses.feature.weight=3"], "losses.feature=none"),
        (["losses.response=logit_mse", "losses.response.temperature=3"], "losses.response=logit_mse"),
    ],
)
def test_a_key_of_another_choice_is_refused(arguments: list[str], choice: str) -> None:
    message = error(*arguments)
    assert f"'{arguments[-1].partition('=')[0]}'" in message
    assert f"for {choice} " in message


@pytest.mark.parametrize(
    ("argument", "nearest", "allowed"),
    [
        ("scheme=ofline", "offline", schemes.SCHEMES),
        ("data=cifar", "cifar10", DATA),
        ("losses.response=kdd", "kd", losses.RESPONSE),
        ("losses.feature=hnt", "hint", losses.FEATURE),
        ("losses.relation=fpsp", "fsp", losses.RELATION),
        ("model=resent20", "resnet20", MODELS),
        ("method=dmll", "dml", schemes.SCHEMES["online"]),
        ("scheme.peers=[convnet,covnet]", "convnet", MODELS),
        ("precision=fp8", "fp32", ["fp32", "bf16", "fp16"]),
        ("tracker=wnadb", "wandb", ["wandb", "tensorboard"]),
        ("optim=sdg", "sgd", ["sgd", "adamw"]),
        ("experiment=cifar100/resnet56_resnet2", "cifar100/resnet56_resnet20", ["cifar100/resnet56_resnet20"]),
    ],
)
def test_an_unknown_choice_is_refused_with_the_nearest_and_all_choices(
    argument: str, nearest: str, allowed: list[str]
) -> None:
    message = error(argument)
    assert f"did you mean '{nearest}'?" in message
    for word in allowed:
        assert word in message.partition("did you mean")[2]


def test_a_method_of_another_scheme_is_refused_with_its_scheme() -> None:
    assert "method=byot belongs to scheme=self" in error("method=byot")


@pytest.mark.parametrize(
    ("argument", "rule"),
    [
        ("seed=abc", "a whole number at least 0"),
        ("seed=1.5", "a whole number at least 0"),
        ("seed=-1", "a whole number at least 0"),
        ("seed=true", "a whole number at least 0"),
        ("seed=null", "a whole number at least 0"),
        ("seed=[1]", "a whole number at least 0"),
        ("seed.x=1", "a whole number at least 0"),
        ("optim.lr=true", "a number above 0"),
        ("optim.lr=0", "a number above 0"),
        ("optim.lr=fast", "a number above 0"),
        ("optim.lr=nan", "a number above 0"),
        ("optim.lr=.nan", "a number above 0"),
        ("optim.lr=inf", "a finite number"),
        ("optim.lr=.inf", "a finite number"),
        ("optim.lr=1e400", "a finite number"),
        ("losses.response.weight=inf", "a finite number"),
        ("optim.milestones=[true]", "a list [a number above 0 and below 1, ...]"),
        ("optim.milestones=[0.5, 1.0]", "a list [a number above 0 and below 1, ...]"),
        ("optim.milestones=0.5", "a list [a number above 0 and below 1, ...]"),
        ("losses.response.temperature=0", "a number above 0"),
        ("losses.response.temperature=-2", "a number above 0"),
        ("scheme.peers=1", "a whole number at least 2 or a list [text, ...] at least 2 of them"),
        ("scheme.peers=[convnet]", "a whole number at least 2 or a list [text, ...] at least 2 of them"),
        ("train.epochs=0", "a whole number at least 1"),
        ("train.batch_size=1", "a whole number at least 2"),
        ("train.ema=1", "a number above 0 and below 1 or null"),
        ("train.deterministic=maybe", "true or false"),
        ("data.val_fraction=1", "a number at least 0 and below 1"),
        ("device=gpu", "one of auto, cpu, cuda"),
        ("output_dir=123", "text"),
        ("data.root=2026-01-31", "text"),
    ],
)
def test_a_value_of_the_wrong_type_or_out_of_range_is_refused_with_what_is_allowed(argument: str, rule: str) -> None:
    message = error(argument)
    assert argument.partition("=")[0].removesuffix(".x") in message
    assert f"must be {rule}" in message


@pytest.mark.parametrize("alpha", ["-0.1", "1.1", "nan", "inf", "true", "half"])
@pytest.mark.parametrize("scheme", ["offline", "self"])
def test_alpha_is_between_0_and_1(scheme: str, alpha: str) -> None:
    message = error(f"scheme={scheme}", f"scheme.alpha={alpha}")
    assert "scheme.alpha" in message
    assert "must be a number at least 0 and at most 1" in message
    assert [load(f"scheme={scheme}", f"scheme.alpha={edge}").scheme.alpha for edge in ("0", "1")] == [0.0, 1.0]


def test_teachers_weights_and_checkpoints_are_one_each() -> None:
    two = ("scheme=offline", "teacher=[resnet20,resnet56]")
    assert "1 entries for 2 teachers" in error(*two, "teacher.weights=[1]")
    assert "1 entries for 2 teachers" in error(*two, "teacher.checkpoint=a.safetensors")
    assert "teacher.weights are all zero" in error(*two, "teacher.weights=[0,0]")
    assert "a finite number" in error(*two, "teacher.weights=[1,.inf]")
    assert "at least 1 of them" in error("scheme=offline", "teacher=[]")


@pytest.mark.parametrize(
    ("arguments", "group", "users"),
    [
        (["scheme=online", "teacher=resnet56"], "teacher.name", "offline/kd"),
        (["teacher.seed=1"], "teacher.seed", "offline/kd"),
        (["scheme=supervised", "teacher.checkpoint=x"], "teacher.checkpoint", "offline/kd"),
        (["scheme=supervised", "losses.response=kd"], "losses.response", "offline/kd"),
    ],
)
def test_a_group_without_effect_is_refused(arguments: list[str], group: str, users: str) -> None:
    message = error(*arguments)
    assert f"{group} has no effect" in message
    assert f" is for {users}" in message


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("seed", "is not KEY=VALUE"),
        ("=3", "is not KEY=VALUE"),
        ("-x", "is not KEY=VALUE"),
        ("--seed=1", "write seed=VALUE, without '-'"),
        ("+seed=1", "write seed=VALUE, without '+'"),
        ("seed=[", "cannot parse the value"),
        ("output_dir=2026-13-45", "cannot parse the value"),
        ("train=3", "train.KEY=VALUE"),
        ("losses=kd", "losses.KEY=VALUE"),
        ("data=image_folder", "needs data.root"),
        ("experiment=/nowhere/at/all.yaml", "No such file"),
        ("scheme=", "unknown scheme 'None'"),
        ("scheme=[a]", "unknown scheme"),
        ("optim={1: 2}", "optim.1"),
        (".=3", "unknown key"),
    ],
)
def test_what_is_no_override_is_refused(argument: str, words: str) -> None:
    assert words in error(argument)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [", "is not YAML (line"),
        ("- a\n- b", "has no keys"),
        ("", "has no keys"),
        ("optim: {lrr: 1}", "unknown key 'optim.lrr'"),
        ("losses: kd", "losses.KEY=VALUE"),
        ("experiment: other", "unknown key 'experiment'"),
        ("train: {epochs: true}", "a whole number at least 1"),
    ],
)
def test_a_recipe_with_a_mistake_is_refused(tmp_path: Path, text: str, words: str) -> None:
    assert words in error("experiment=mine", recipes=recipe(tmp_path, text))


def test_a_recipe_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_bytes(b"\xff\xfe\x00")
    assert "not text" in error("experiment=mine", recipes=tmp_path)
    assert "no recipes in" in error("experiment=x", recipes=tmp_path / "empty")


def test_values_are_read_as_yaml() -> None:
    assert load("optim.lr=1e-3").optim.lr == 1e-3
    assert load("optim.clip_grad_norm=null").optim.clip_grad_norm is None
    assert load("optim={name: adamw, lr: 3}").optim.lr == 3.0
    assert load("tracker=none").tracker == []
    assert load("tracker=wandb").tracker == ["wandb"]
    assert load('output_dir="123"').output_dir == "123"


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
        ("scheme=offline method=dml", "unknown method 'dml'"),
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


def test_the_configuration_is_read_without_torch() -> None:
    code = (
        "import sys; from pathlib import Path; from kdschemes.config.load import load_config; "
        "from kdschemes.config.naming import dump_yaml; "
        "from kdschemes.config.help import help_text; help_text(['all']); "
        "print(dump_yaml(load_config(['scheme=self'], recipes=Path('.')))); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'accelerate')))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert yaml.safe_load(done.stdout)["scheme"]["method"] == "byot"
