"""Read `KEY=VALUE` overrides and recipes into a `Config`, and a `Config` back into plain data."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from kdschemes.config import MODELS, Config, Model, Optim, Teacher, Train, schemes
from kdschemes.config.data import DATA
from kdschemes.config.describe import allowed, choices
from kdschemes.config.losses import KINDS, Losses, loss_named
from kdschemes.config.schemes.topology import Topology
from kdschemes.errors import UserError, nearest, unknown

DEFAULT_SCHEME = "online"
DEFAULT_DATA = "digits"
GROUPS = ("scheme", "data", "model", "teacher", "losses", "optim", "train")
RECIPES_SHOWN = 12
NOT_HASHED = (
    *("output", "tracker", "project", "group", "job_type", "scheme.file", "teacher.placement", "train.shard"),
    *("teacher.cache_folder", "teacher.cache_limit"),
)
TOPOLOGY, TOPOLOGIES, STUDIES, SWEEPS = "topology", "topologies", "studies", "sweeps"

Tree = dict[str, Any]


def load_config(arguments: Sequence[str], *, recipes: Path) -> Config:
    """Build the configuration of a run from a command line.

    Later wins: the defaults of the options, the losses that the method starts from, the recipe `experiment=NAME`
    (`recipes/NAME.yaml`, or a path to any such file, a run's `config.yaml` too), the overrides in their order.

    Raises:
        UserError: an unknown key or choice, a value of the wrong type or out of range, a recipe that can't be read.
    """
    pairs = [_parse(argument) for argument in arguments]
    tree: Tree = {}
    for key, value in pairs:
        if key == "experiment":
            _merge(tree, _read_recipe(value, recipes))
    overrides: Tree = {}
    for key, value in pairs:
        if key != "experiment":
            _merge(overrides, _nest(key, value))
    _forget_other_choices(tree, overrides)
    _merge(tree, overrides)
    return build_config(tree, strict=overrides)


def build_config(tree: Mapping[str, Any], *, strict: Mapping[str, Any] | None = None) -> Config:
    """Build a `Config` from nested plain data, as `to_tree` writes it.

    Groups in `strict` (what the user typed) that the scheme does not use are refused; elsewhere they are ignored.
    """
    fields = {field.name for field in dataclasses.fields(Config)}
    for key in tree:
        if key not in fields:
            raise _unknown_key(key)
    for group in GROUPS:
        if not isinstance(tree.get(group, {}), Mapping):
            raise UserError(f"{group}={tree[group]}: give its keys, as {group}.KEY=VALUE")
    scheme_tree = dict(tree.get("scheme", {}))
    scheme_class = _scheme_class(scheme_tree)
    variant = dict(scheme_class.variants.get(str(scheme_tree.get("variant")), {}))  # type: ignore[attr-defined]
    losses = _losses(tree, scheme_class, variant.pop("losses", scheme_class.losses))  # type: ignore[attr-defined]
    scheme = _make(scheme_class, _as_published(variant | scheme_tree, scheme_class, losses), "scheme")
    for group in ("teacher", "losses"):
        if strict and group in strict and not getattr(scheme, f"uses_{group}"):
            users = [
                f"{name}/{method}"
                for name, methods in schemes.SCHEMES.items()
                for method, cls in methods.items()
                if getattr(cls, f"uses_{group}")
            ]
            raise UserError(
                f"{group}.{next(iter(strict[group]))} has no effect with scheme={scheme.name} method={scheme.method}: "
                f"{group} is for {', '.join(users)}"
            )
    data_tree = tree.get("data", {})
    data = _make(_choose(DATA, data_tree.get("name", DEFAULT_DATA), "data"), data_tree, "data")
    if data.name == "image_folder" and data.root is None:
        raise UserError("data=image_folder needs data.root, the folder that holds train/ and test/ (or val/)")
    top = {key: value for key, value in tree.items() if key not in GROUPS}
    if isinstance(top.get("tracker"), str):
        top["tracker"] = [] if top["tracker"] == "none" else [top["tracker"]]
    scalars = {field.name: getattr(Config(), field.name) for field in dataclasses.fields(Config)} | top
    config: Config = _validate(
        Config,
        scalars
        | {
            "scheme": scheme,
            "data": data,
            "model": _make(Model, tree.get("model", {}), "model"),
            "teacher": _make(Teacher, tree.get("teacher", {}), "teacher"),
            "losses": losses,
            "optim": _make(Optim, tree.get("optim", {}), "optim"),
            "train": _make(Train, tree.get("train", {}), "train"),
        },
        "",
    )
    _check_models(config)
    _check_teachers(config)
    _check_labels(config)
    _check_large(config)
    _check_cache(config)
    return config


def to_tree(config: Config) -> Tree:
    """Return the resolved configuration as nested plain data; `build_config` gives the same `Config` back."""
    tree = dataclasses.asdict(config)
    for group in ("teacher", "losses"):
        if not getattr(config.scheme, f"uses_{group}"):
            del tree[group]
    return tree


def config_hash(config: Config) -> str:
    """Return 8 hexadecimal digits that name what is computed.

    Where it is written and who watches (`output`, `tracker`, `project`, `group`, `job_type`) do not count, nor where
    weights are kept, nor a group that the scheme does not use.
    """
    tree = to_tree(config)
    for name in NOT_HASHED:
        group, _, key = name.rpartition(".")
        (tree.get(group, {}) if group else tree).pop(key, None)
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:8]


def run_name(config: Config) -> str:
    """Return the name of the run's folder: readable parts, then the hash of the configuration."""
    model = config.model.name.replace("/", "_")
    parts = (config.scheme.name, config.scheme.method, config.data.name, model, f"seed{config.seed}")
    return "-".join((*parts, config_hash(config)))


def dump_yaml(config: Config) -> str:
    """Return the text of a run's `config.yaml`, which `experiment=PATH` runs again."""
    text: str = yaml.safe_dump(to_tree(config), sort_keys=False)
    return text


def all_keys() -> dict[str, dataclasses.Field[Any]]:
    """Return every key of every choice, as typed on the command line, with its dataclass field."""
    keys: dict[str, dataclasses.Field[Any]] = {}
    for prefix, cls in choices():
        for field in dataclasses.fields(cls):
            keys.setdefault(f"{prefix}.{field.name}" if prefix else field.name, field)
    return keys


def _parse(argument: str) -> tuple[str, Any]:
    key, equals, text = argument.partition("=")
    if not equals or not key:
        raise UserError(f"'{argument}' is not KEY=VALUE{nearest(argument, ['--help'])} (--help lists the keys)")
    if key.startswith(("+", "~", "-")):
        raise UserError(f"'{argument}': write {key.lstrip('+~-')}=VALUE, without '{key[0]}'")
    try:
        return key, yaml.safe_load(text) if text else None
    except (yaml.YAMLError, ValueError):
        raise UserError(f"{argument}: the value cannot be read; put quotes around text with : , [ or {{") from None


def _nest(key: str, value: Any) -> Tree:
    if key == "method":
        key = "scheme.method"
    parts = key.split(".")
    if (key in GROUPS or key in {f"losses.{kind}" for kind in KINDS}) and not isinstance(value, Mapping):
        if key in ("losses", "train"):
            raise UserError(f"{key}={value}: give its keys, as {key}.KEY=VALUE")
        parts.append("name")
    for part in reversed(parts):
        value = {part: value}
    tree: Tree = value
    return tree


def _merge(into: Tree, update: Mapping[Any, Any]) -> None:
    for key, value in update.items():
        key = str(key)
        if isinstance(value, Mapping):
            if not isinstance(into.get(key), dict):
                into[key] = {}
            _merge(into[key], value)
        else:
            into[key] = value


def _forget_other_choices(tree: Tree, overrides: Mapping[str, Any]) -> None:
    """Where an override chooses another scheme, method, data set or loss, drop the keys of the old one."""
    for group, default in (("scheme", DEFAULT_SCHEME), ("data", DEFAULT_DATA)):
        old, new = tree.get(group, {}), overrides.get(group, {})
        name = old.get("name", default)
        other_name = new.get("name", name) != name
        method = old.get("method", next(iter(schemes.SCHEMES.get(str(name), ())), None))
        if other_name or new.get("method", method) != method:
            tree.pop(group, None)
            if not other_name:
                tree[group] = {"name": name}
            if group == "scheme":
                tree.pop("losses", None)
    _forget_variant(tree, overrides)
    _forget_published(tree, overrides)
    for kind, new in overrides.get("losses", {}).items() if isinstance(overrides.get("losses"), Mapping) else ():
        old = tree.get("losses", {}).get(kind, {})
        if isinstance(new, Mapping) and "name" in new and new["name"] != old.get("name", new["name"]):
            del tree["losses"][kind]


def _forget_variant(tree: Tree, overrides: Mapping[str, Any]) -> None:
    """Where an override chooses another variant of a method, drop what the variants set, the losses included."""
    old, new = tree.get("scheme", {}), overrides.get("scheme", {})
    if "variant" not in new:
        return
    scheme_class = _scheme_class(old | new)
    if new["variant"] != old.get("variant", getattr(scheme_class, "variant", None)):
        for key in {key for keys in scheme_class.variants.values() for key in keys}:  # type: ignore[attr-defined]
            (tree if key == "losses" else old).pop(key, None)


def _forget_published(tree: Tree, overrides: Mapping[str, Any]) -> None:
    """Where an override goes from or to a loss that was published with weights of its own, drop the old weights."""
    old, new = (x["losses"] if isinstance(x.get("losses"), Mapping) else {} for x in (tree, overrides))
    for kind in KINDS:
        was, now = (x[kind].get("name") if isinstance(x.get(kind), Mapping) else None for x in (old, new))
        found = [loss_named(str(name)) for name in (was, now) if now not in (None, was)]
        if any(loss[1].hard is not None for loss in found if loss is not None):  # type: ignore[attr-defined]
            for key in ("alpha", "hard"):
                tree.get("scheme", {}).pop(key, None)


def _losses(tree: Mapping[str, Any], scheme_class: type, start: Mapping[str, Any]) -> Losses:
    loss_tree: Tree = {}
    more: list[Any] = []
    if scheme_class.uses_losses:  # type: ignore[attr-defined]
        _merge(loss_tree, start)
        given = dict(tree.get("losses", {}))
        more = _more_losses(given.pop("more", None))
        given = _normalise_losses(given)
        _forget_other_choices({"losses": loss_tree}, {"losses": given})
        _merge(loss_tree, given)
    losses = Losses(**{kind: _make_loss(kind, loss_tree.get(kind, {})) for kind in KINDS}, more=more)
    names = [options.name for _, options in losses.chosen()]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"the loss {name} is chosen twice: take it out of losses.more")
    return losses


def _normalise_losses(tree: Mapping[str, Any]) -> Tree:
    for kind in tree:
        if kind not in KINDS:
            raise _unknown_key(f"losses.{kind}")
    return {kind: value if isinstance(value, Mapping) else {"name": value} for kind, value in tree.items()}


def _more_losses(given: Any) -> list[Any]:
    made = []
    for entry in given if isinstance(given, list) else [] if given is None else [given]:
        tree = entry if isinstance(entry, Mapping) else {"name": entry}
        found = loss_named(str(tree.get("name")))
        if found is None:
            names = [name for table in KINDS.values() for name in table if name != "none"]
            raise unknown("loss in losses.more", str(tree.get("name")), names)
        made.append(_make(found[1], tree, "losses.more"))
    return made


def _as_published(tree: Tree, scheme_class: type, losses: Losses) -> Tree:
    """Give the weight of cross-entropy that a loss was published beside, where the user gives none."""
    published = [o.hard for _, o in losses.chosen() if o.hard is not None]
    fields = {field.name for field in dataclasses.fields(scheme_class)}
    if published and "hard" in fields:
        tree = {key: value for key, value in {"hard": published[0], "alpha": 1.0}.items() if key in fields} | tree
    return tree


def _read_recipe(name: Any, recipes: Path) -> Tree:
    path = Path(str(name))
    if path.suffix not in (".yaml", ".yml", ".py"):
        found = [place for place in (recipes / f"{name}.yaml", recipes / f"{name}.py") if place.is_file()]
        if not found:
            named = recipes.rglob("*.yaml")
            files = [file for file in named if file.relative_to(recipes).parts[0] not in (STUDIES, SWEEPS)]
            files += recipes.glob(f"{TOPOLOGIES}/*.py")
            known = sorted(str(p.relative_to(recipes).with_suffix("")) for p in files)
            raise _unknown_recipe(str(name), known, recipes)
        path = found[0]
    if path.suffix == ".py":
        return _read_topology(path)
    try:
        tree = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"recipe {path} cannot be read: {getattr(error, 'strerror', None) or 'not text'}") from None
    except yaml.YAMLError as error:
        line = getattr(getattr(error, "problem_mark", None), "line", 0) + 1
        raise UserError(f"recipe {path} is not YAML (line {line})") from None
    if not isinstance(tree, dict):
        raise UserError(f"recipe {path} holds no keys")
    return _nested(tree)


def _read_topology(path: Path) -> Tree:
    """Read a recipe in Python without running it: where it is, what it is, and the keys in its literal `RECIPE`."""
    try:
        text = path.read_bytes()
        parsed = ast.parse(text, filename=str(path))
    except OSError as error:
        raise UserError(f"recipe {path} cannot be read: {error.strerror or error}") from None
    except (SyntaxError, ValueError) as error:
        raise UserError(f"recipe {path} is not Python (line {getattr(error, 'lineno', None) or 1})") from None
    tree: Tree = {}
    for statement in parsed.body:
        if isinstance(statement, ast.Assign) and [ast.unparse(target) for target in statement.targets] == ["RECIPE"]:
            try:
                tree = ast.literal_eval(statement.value)
            except ValueError:
                tree = {}
            if not tree or not isinstance(tree, dict):
                raise UserError(f"RECIPE in {path} must be a dictionary of keys and plain values") from None
    scheme = {"name": TOPOLOGY, "method": path.stem, "file": str(path)}
    nested = _nested(tree)
    _merge(nested, {"scheme": scheme | {"digest": hashlib.sha256(text).hexdigest()[:16]}})
    return nested


def _nested(tree: Mapping[Any, Any]) -> Tree:
    nested: Tree = {}
    for key, value in tree.items():
        _merge(nested, _nest(str(key), value))
    return nested


def _unknown_recipe(name: str, known: Sequence[str], recipes: Path) -> UserError:
    """Return the error for a recipe that is not there; of many recipes it names the closest only."""
    if not known:
        return UserError(f"no recipes in {recipes}")
    if len(known) <= RECIPES_SHOWN:
        return unknown("experiment", name, known)
    closest = ", ".join(get_close_matches(name, known, n=RECIPES_SHOWN, cutoff=0.0))
    return UserError(
        f"unknown experiment '{name}'{nearest(name, known)} (the closest of the {len(known)} in {recipes}: {closest})"
    )


def _scheme_class(tree: Mapping[str, Any]) -> type:
    name = tree.get("name", DEFAULT_SCHEME)
    if name == TOPOLOGY:
        _check_topology(tree)
        return Topology
    methods = _choose(schemes.SCHEMES, name, "scheme")
    method = tree.get("method", next(iter(methods)))
    if not isinstance(method, str) or method not in methods:
        for other, table in schemes.SCHEMES.items():
            if method in table:
                raise UserError(f"method={method} belongs to scheme={other}; scheme={name} has {', '.join(methods)}")
        raise unknown("method", str(method), methods)
    cls: type = methods[method]
    return cls


def _check_topology(tree: Mapping[str, Any]) -> None:
    path = Path(str(tree.get("file") or ""))
    if not tree.get("file"):
        raise UserError(f"scheme={TOPOLOGY} is a recipe in Python: choose it by experiment=NAME or experiment=PATH.py")
    if not path.is_file():
        raise UserError(f"recipe {path} is not there")
    if hashlib.sha256(path.read_bytes()).hexdigest()[:16] != tree.get("digest"):
        raise UserError(f"recipe {path} is not the one that this configuration was made with: choose it by experiment=")


def _choose(table: Mapping[str, Any], name: Any, kind: str) -> Any:
    if not isinstance(name, str) or name not in table:
        raise unknown(kind, str(name), table)
    return table[name]


def _make_loss(kind: str, tree: Mapping[str, Any]) -> Any:
    key = f"losses.{kind}"
    name = str(tree.get("name", "none"))
    elsewhere = loss_named(name)
    if name not in KINDS[kind] and elsewhere is not None:
        raise UserError(f"{key}={name}: {name} is a {elsewhere[0]} loss, write losses.{elsewhere[0]}={name}")
    return _make(_choose(KINDS[kind], tree.get("name", "none"), key), tree, key)


def _make(cls: type, tree: Mapping[str, Any], prefix: str) -> Any:
    fields = {field.name for field in dataclasses.fields(cls)}
    for key in tree:
        if key not in fields:
            raise _unknown_key(f"{prefix}.{key}", holder=tree.get("name", getattr(cls, "name", "")))
    return _validate(cls, tree, prefix)


@cache
def _adapter(cls: type) -> Any:
    return TypeAdapter(cls)


def _validate(cls: type, values: Mapping[str, Any], prefix: str) -> Any:
    try:
        made = _adapter(cls).validate_python(dict(values))
    except ValidationError as error:
        raise _not_allowed(cls, str(error.errors()[0]["loc"][0]), values, prefix) from None
    for key, value in values.items():
        if not _all_finite(getattr(made, key)):
            raise UserError(f"{_join(prefix, key)}={value}: must be a finite number")
        if _truth_taken_for_number(value, getattr(made, key)):
            raise _not_allowed(cls, key, values, prefix)
    return made


def _not_allowed(cls: type, key: str, values: Mapping[str, Any], prefix: str) -> UserError:
    rule = allowed(next(field for field in dataclasses.fields(cls) if field.name == key))
    value = values[key]
    hint = nearest(str(value), rule.words) if rule.words else ""
    if "text" in rule.text and not isinstance(value, str | list | Mapping | None):
        hint = f"""; quote it twice: '"{value}"'"""
    shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else value
    return UserError(f"{_join(prefix, key)}={shown} is not allowed{hint} (must be {rule.text})")


def _all_finite(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_all_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def _truth_taken_for_number(given: Any, taken: Any) -> bool:
    if isinstance(given, list) and isinstance(taken, list):
        return any(map(_truth_taken_for_number, given, taken))
    return isinstance(given, bool) and not isinstance(taken, bool)


def _unknown_key(key: str, holder: str = "") -> UserError:
    known = all_keys()
    leaf = key.rpartition(".")[2]
    same_leaf = [other for other in known if other.rpartition(".")[2] == leaf]
    where = f" for {key.rpartition('.')[0]}={holder}" if holder and key in known else ""
    if key in known:
        return UserError(f"key '{key}' does not exist{where} (--help lists the keys of each choice)")
    same = "' or '".join(same_leaf[:3])
    suggestion = f"; did you mean '{same}'?" if same else nearest(key, known)
    if not suggestion:
        by_leaf = {other.rpartition(".")[2]: other for other in known}
        close = nearest(leaf, by_leaf)
        suggestion = close.replace(close.split("'")[1], by_leaf[close.split("'")[1]]) if close else ""
    return UserError(f"unknown key '{key}'{suggestion} (--help lists all keys)")


def _join(prefix: str, key: str) -> str:
    return f"{prefix}.{key}" if prefix else key


def _check_models(config: Config) -> None:
    names = [config.model.name]
    names += _as_list(config.teacher.name) if config.scheme.uses_teacher else []
    for key in ("peers", "assistants"):
        models = getattr(config.scheme, key, None)
        names += models if isinstance(models, list) else []
    names += [big] if (big := getattr(config.scheme, "big", None)) is not None else []
    for name in names:
        if name not in MODELS and not name.startswith("timm/"):
            raise unknown("model", name, (*MODELS, "timm/NAME"))


def _check_labels(config: Config) -> None:
    mixes = [key for key in ("mixup", "cutmix") if getattr(config.data, key)]
    if len(mixes) > 1:
        raise UserError(
            f"data.mixup={config.data.mixup} and data.cutmix={config.data.cutmix} exclude each other: set one to 0"
        )
    readers = [options.name for _, options in config.losses.chosen() if options.reads_labels]
    readers += [config.scheme.method] * config.scheme.reads_labels
    for key in mixes if readers else ():
        raise UserError(
            f"{readers[0]} needs one label a sample, and data.{key}={getattr(config.data, key)} gives two: "
            f"set data.{key}=0 or choose another {'loss' if readers[0] != config.scheme.method else 'method'}"
        )


def _check_large(config: Config) -> None:
    """Refuse what split or offloaded weights cannot be combined with."""
    placement = config.teacher.placement
    for key, chosen in (
        ("train.shard=true", config.train.shard),
        (f"teacher.placement={placement}", config.scheme.uses_teacher and placement != "device"),
    ):
        if chosen and config.train.compile:
            raise UserError(f"{key} and train.compile=true exclude each other: leave one out")
    if config.train.shard and not config.train.sync_bn:
        raise UserError("train.shard=true needs train.sync_bn=true: no process sends its statistics to the others")
    if config.train.shard and config.precision == "fp16":
        raise UserError("train.shard=true has no gradient scaler for precision=fp16: use precision=bf16 or fp32")


def _check_cache(config: Config) -> None:
    if config.scheme.uses_teacher and config.teacher.cache != "none" and config.train.compile:
        raise UserError(
            f"teacher.cache={config.teacher.cache} and train.compile=true exclude each other: what is stored must not "
            "depend on a compiler's choices"
        )


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else [value]


def _check_teachers(config: Config) -> None:
    if not config.scheme.uses_teacher:
        return
    count = len(_as_list(config.teacher.name))
    for key in ("weights", "checkpoint"):
        value = getattr(config.teacher, key)
        if value is not None and len(_as_list(value)) != count:
            raise UserError(f"teacher.{key} has {len(_as_list(value))} entries for {count} teachers: give one each")
    if config.teacher.weights is not None and sum(config.teacher.weights) <= 0:
        raise UserError("teacher.weights are all zero: at least one teacher must count")
