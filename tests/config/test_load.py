"""Command lines and recipes become one `Config` and back; every mistake is one line that says what is allowed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from kdschemes.config import Config, losses, schemes
from kdschemes.config.data import DATA
from kdschemes.config.load import build_config
from kdschemes.config.losses import feature as feature_maps
from kdschemes.config.losses import response
from kdschemes.config.models import MODELS
from kdschemes.config.naming import dump_yaml, to_tree
from kdschemes.config.recipes import known_recipes
from kdschemes.config.schemes import online as options_online
from kdschemes.config.schemes import self_distillation as self_exits
from kdschemes.config.schemes import supervised
from kdschemes.storage.naming import run_name
from tests import REPOSITORY
from tests.config.cases import METHODS, RECIPES, error, load, recipe

RECIPE_FILES = sorted(file for name in known_recipes(RECIPES) if (file := RECIPES / f"{name}.yaml").is_file())


@pytest.mark.parametrize(("scheme", "method"), METHODS)
def test_every_method_loads_with_its_own_options_and_losses(scheme: str, method: str) -> None:
    config = load(f"scheme={scheme}", f"method={method}")
    cls = schemes.SCHEMES[scheme][method]
    assert type(config.scheme) is cls
    for kind in ("response", "feature", "relation"):
        for key, value in cls.losses.get(kind, {"name": "none"}).items():
            assert getattr(getattr(config.losses, kind), key) == value
    assert run_name(config).startswith(f"{scheme}-{method}-digits-wrn_16_1-seed0-")
    assert build_config(to_tree(config)) == config


def test_a_scheme_without_a_method_takes_its_first() -> None:
    assert load("scheme=supervised").scheme == supervised.Supervised()
    assert load("method=label_smoothing", "scheme=supervised").scheme == supervised.LabelSmoothing()


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


def test_another_choice_replaces_a_loss_that_is_only_named(tmp_path: Path) -> None:
    recipes = recipe(tmp_path, "scheme: offline\nlosses: {response: kd, feature: at}")
    config = load("experiment=mine", "losses.response=dkd", "losses.feature.weight=2", recipes=recipes)
    assert (config.losses.response, config.losses.feature) == (response.DKD(), feature_maps.AT(weight=2.0))
    assert "unknown losses.response 'nan'" in error("experiment=mine", "losses.response=.nan", recipes=recipes)


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
    assert to_tree(build_config(to_tree(config))) == to_tree(config)


def test_recipes_are_there() -> None:
    assert RECIPE_FILES


def test_a_loss_brings_the_cross_entropy_weight_it_was_published_with(tmp_path: Path) -> None:
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
    assert "unknown losses.extra 'att'; did you mean 'at'?" in error("losses.extra=[att]")
    assert "losses.extra.weigth" in error("losses.extra=[{name: at, weigth: 3}]")
    assert "losses.extra.weight=-1 is not allowed" in error("losses.extra=[{name: at, weight: -1}]")
    assert "unknown losses.extra '3'" in error("losses.extra=[3]")


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
        ("precision=fp8", "fp32", ["fp32", "bf16", "fp16", "auto"]),
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
        ("scheme.peers=1", "a whole number at least 2 and at most 64 or a list [text, ...] at least 2 of them"),
        ("scheme.peers=[convnet]", "a whole number at least 2 and at most 64 or a list [text, ...] at least 2 of them"),
        ("train.epochs=0", "a whole number at least 1"),
        ("train.batch_size=1", "a whole number at least 2"),
        ("model.mean=[123.7]", "a list [a number at least 0 and at most 1, ...] or null"),
        ("model.std=[0]", "a list [a number at least 0.001 and at most 1, ...] or null"),
        ("model.image_size=0", "a whole number at least 1"),
        ("train.ema=1", "a number above 0 and below 1 or null"),
        ("train.deterministic=maybe", "true or false"),
        ("data.val_fraction=1", "a number at least 0 and below 1"),
        ("device=gpu", "one of auto, cpu, cuda"),
        ("output_dir=123", "text"),
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


def test_mean_and_std_have_a_value_per_channel_of_the_data() -> None:
    color = load("data=cifar10", "model.mean=[0.5,0.5,0.5]", "model.std=[0.2,0.2,0.2]", "model.image_size=64")
    assert (color.model.mean, color.model.std, color.model.image_size) == ([0.5] * 3, [0.2] * 3, 64)
    assert "model.mean has 3 values, but the images of data=digits have 1 channel" in error("model.mean=[0.5,0.5,0.5]")
    assert "teacher.std has 1 values" in error("scheme=offline", "data=cifar10", "teacher.std=[0.5]")
    assert "data.mean has 1 values, but the images of data=cifar10" in error("data=cifar10", "data.mean=[0.5]")


def test_jitter_is_a_number_or_a_list_whose_hue_is_at_most_half_a_circle() -> None:
    assert load("data.color_jitter=0.4").data.color_jitter == 0.4
    assert load("data.color_jitter=[0.4,0.4,0.2,0.5]").data.color_jitter == [0.4, 0.4, 0.2, 0.5]
    assert "the hue, its fourth number, is at most 0.5" in error("data.color_jitter=[0.4,0.4,0.2,0.6]")
    assert "data.color_jitter" in error("data.color_jitter=[0.4]")
    assert load("data.mixup=0.2", "data.cutmix=1").data.cutmix == 1.0


def test_a_group_without_keys_is_no_mistake() -> None:
    assert load("teacher={}") == load()


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
        ("seed=[", "seed=[: the value is not YAML"),
        ("train=3", "train.KEY=VALUE"),
        ("losses=kd", "write losses.response=kd"),
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
        ("losses: kd", "write losses.response=kd"),
        ("losses: 3", "losses.KEY=VALUE"),
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


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("train.num_threads=1000000", "at most 1024"),
        ("scheme.peers=1000000", "at most 64"),
        ("data.crop_padding=10000000", "at most 64"),
        ("train.batch_size=1000000000", "at most 1000000"),
        ("optim.lr=1e300", "must be a finite number, 0 or from 1e-30 to 1e+30 in size"),
        ("optim.lr=1e-40", "0 or from 1e-30"),
        ("seed=" + "9" * 30, "a whole number is too large"),
        ("seed=" + "9" * 5_000, "a whole number is too large"),
        ("tracker=[wandb,wandb]", "names a tracker twice"),
        ("group=" + "g" * 300, "text at most 128 characters"),
        ("method=[a]", "unknown method '['a']'"),
        (".".join(["a"] * 5_000) + "=1", "unknown key 'a.a.a"),
    ],
)
def test_what_no_real_run_has_is_refused(argument: str, words: str) -> None:
    message = error(argument)
    assert words in message
    assert len(message) < 500


def test_values_are_read_as_yaml() -> None:
    assert (load("seed=010").seed, load("group=exp #1").group, load("output_dir=2026-13-45").output_dir) == (
        *(10, "exp #1", "2026-13-45"),
    )
    assert "seed=1:30 is not allowed" in error("seed=1:30")
    assert not load("train.deterministic=off").train.deterministic
    assert load("optim.lr=1e-3").optim.lr == 1e-3
    assert load("optim.clip_grad_norm=null").optim.clip_grad_norm is None
    assert load("optim={name: adamw, lr: 3}").optim.lr == 3.0
    assert load("tracker=none").tracker == []
    assert load("tracker=wandb").tracker == ["wandb"]
    assert load('output_dir="123"').output_dir == "123"


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
