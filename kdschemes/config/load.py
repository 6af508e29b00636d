"""Read `KEY=VALUE` overrides and recipes into a `Config`."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kdschemes.config import ADAMW, Config, Model, Optim, Teacher, Train, schemes
from kdschemes.config.aliases import expand
from kdschemes.config.checks import (
    check_cache,
    check_dropout,
    check_inputs,
    check_labels,
    check_large,
    check_models,
    check_optim,
    check_teachers,
    check_unlabelled,
    check_view,
    model_names,
)
from kdschemes.config.code import DIGITS, GIVEN, Code, CodeRefused, allow, code_digest, parse_code, refused
from kdschemes.config.data import DATA, OwnData
from kdschemes.config.losses import KINDS, Losses, loss_named
from kdschemes.config.models import has_layer_norms
from kdschemes.config.naming import Tree, read_config
from kdschemes.config.optimizers import SGD_LIKE, TIMM, check_optimizer
from kdschemes.config.parse import parse_word
from kdschemes.config.paths import expand as expand_path
from kdschemes.config.plugins import load_installed, load_plugins
from kdschemes.config.prerequisites import prerequisite_models
from kdschemes.config.recipes import GROUPS, TOPOLOGY, merge, nest, read_recipe, topology_file
from kdschemes.config.renamed import RENAMED_METHODS
from kdschemes.config.schemes.custom import Topology
from kdschemes.config.unknown import no_such
from kdschemes.config.validate import choose, make, make_loss, unknown_key, validate
from kdschemes.errors import UserError, nearest, shown

DEFAULT_SCHEME = "online"

DEFAULT_DATA = "digits"

CODE_KEYS = (
    *("model", "model.name", "teacher", "teacher.name", "scheme.peers", "scheme.large_model", "scheme.assistants"),
    *("data", "data.name", "plugins"),
)
"""The keys whose values may name Python code."""


def load_config(arguments: Sequence[str], *, recipes: Path, say: Callable[[str], None] | None = None) -> Config:
    """Build the configuration of a run from a command line.

    Later wins: the defaults of the options, those of the data set, of the optimizer and of the method's losses, the
    recipe `experiment=NAME` (`recipes/NAME.yaml`, or a path to any such file, including a run's `config.yaml`; without
    one, the configuration of the run `resume_from`), the overrides in their order. With `say`, a short key such as
    `epochs` stands for the one key that it can mean (`aliases.expand`), which is reported by calling `say`.

    Raises:
        UserError: an unknown key or choice, a value of the wrong type or out of range, or an unreadable recipe.
    """
    pairs = [_parse(argument) for argument in arguments]
    tree: Tree = {}
    for key, value in pairs:
        if key == "experiment":
            merge(tree, read_recipe(value, recipes))
    parent = dict(pairs).get("resume_from")
    if isinstance(parent, str) and not any(key == "experiment" for key, _ in pairs):
        merge(tree, read_config(Path(expand_path(parent))))
    pairs = [(key, value) for key, value in pairs if key != "experiment"]
    load_plugins(dict(pairs).get("plugins", tree.get("plugins")), {})
    if say is not None:
        pairs = _expanded(pairs, tree, say)
    overrides: Tree = {}
    for key, value in pairs:
        merge(overrides, nest(key, value))
    _forget_other_choices(tree, overrides)
    for name in _typed_code(pairs):  # to use it as it is now
        tree.get("code", {}).pop(name, None)
    merge(tree, overrides)
    return build_config(tree, strict=overrides)


def allow_typed(arguments: Sequence[str], *, recipes: Path) -> None:
    """Allow the code that the user's own arguments name to run, in this process and those that it starts.

    It is that of `experiment=`, a topology, and of the keys in `CODE_KEYS`.

    Raises:
        UserError: such a file or module cannot be read.
    """
    pairs = [_parse(argument) for argument in arguments if argument.partition("=")[0] in (*CODE_KEYS, "experiment")]
    for key, value in pairs:
        if key == "experiment" and (file := topology_file(value, recipes)) is not None:
            allow(Code(str(file), None, True))
    for name in _typed_code(pairs):
        code = parse_code(name)
        assert code is not None
        allow(code)


def load_typed_plugins(arguments: Sequence[str]) -> None:
    """Load the plugins that the user's own arguments name, and those of installed packages, for `--help`.

    Raises:
        UserError: one cannot be loaded.
    """
    allow_typed(arguments, recipes=Path())
    for key, value in map(_parse, arguments):
        if key == "plugins":
            load_plugins(value, {})
    load_installed()


def check_allowed(configs: Iterable[Config]) -> None:
    """Refuse code that the user did not allow.

    Raises:
        CodeRefused: some was not.
    """
    named: list[tuple[str, Code]] = []
    for config in configs:
        if isinstance(config.scheme, Topology):
            named.append(("topology", config.scheme.code))
        if (code := parse_code(config.data.name)) is not None:
            named.append(("data", code))
        named += [("network", code) for name in model_names(config) if (code := parse_code(name)) is not None]
    if found := refused(named):
        raise CodeRefused(found)


def build_config(tree: Mapping[str, Any], *, strict: Mapping[str, Any] | None = None) -> Config:
    """Build a `Config` from nested plain data, as returned by `to_tree`, after loading the plugins that it names.

    Groups that the scheme does not use are an error in `strict` (what the user typed) and ignored elsewhere.

    Raises:
        CodeRefused: the user did not allow a plugin.
        UserError: anything that is wrong in it.
    """
    load_plugins(tree.get("plugins"), _digests(tree))
    try:
        return _build(tree, strict)
    except UserError:
        if not load_installed():
            raise
        return _build(tree, strict)


def _build(tree: Mapping[str, Any], strict: Mapping[str, Any] | None) -> Config:
    fields = {field.name for field in dataclasses.fields(Config)}
    for key in tree:
        if key not in fields:
            raise unknown_key(key)
    for group in GROUPS:
        if not isinstance(tree.get(group, {}), Mapping):
            raise UserError(f"{group}={shown(tree[group])}: give its keys, as {group}.KEY=VALUE")
    data_name = tree.get("data", {}).get("name", DEFAULT_DATA)
    own = parse_code(data_name) is not None or str(data_name).startswith(GIVEN)
    data_class = OwnData if own else choose(DATA, data_name, "data")
    given, tree = tree, {}
    merge(tree, data_class.run_defaults)
    merge(tree, given)
    scheme_tree = dict(tree.get("scheme", {}))
    scheme_class = _scheme_class(scheme_tree)
    variant = dict(scheme_class.variants.get(str(scheme_tree.get("variant")), {}))  # type: ignore[attr-defined]
    losses = _losses(tree, scheme_class, variant.pop("losses", scheme_class.losses))  # type: ignore[attr-defined]
    scheme = make(scheme_class, _as_published(variant | scheme_tree, scheme_class, losses), "scheme")
    for group in ("teacher", "losses"):
        if strict and strict.get(group) and not getattr(scheme, f"uses_{group}"):
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
    data = make(data_class, tree.get("data", {}), "data")
    if data.name == "image_folder" and data.root is None:
        raise UserError("data=image_folder needs data.root, the folder with train/ and test/ (or val/)")
    top = {key: value for key, value in tree.items() if key not in GROUPS}
    if isinstance(top.get("tracker"), str):
        top["tracker"] = [] if top["tracker"] == "none" else [top["tracker"]]
    if isinstance(trackers := top.get("tracker"), list) and len(set(map(str, trackers))) < len(trackers):
        raise UserError(f"tracker={shown(trackers)} names a tracker twice")
    if isinstance(top.get("plugins"), str):
        top["plugins"] = [top["plugins"]]
    model, train = make(Model, tree.get("model", {}), "model"), make(Train, tree.get("train", {}), "train")
    scalars = {field.name: getattr(Config(), field.name) for field in dataclasses.fields(Config)} | top
    config: Config = validate(
        Config,
        scalars
        | {
            "scheme": scheme,
            "data": data,
            "model": model,
            "teacher": _teacher(tree.get("teacher", {}), prerequisite_models(scheme)),
            "losses": losses,
            "optim": _optim(tree.get("optim", {}), scheme.trained_models(model.name), train.epochs, "optim"),
            "train": train,
        },
        "",
    )
    check_models(config)
    check_dropout(config)
    check_inputs(config)
    check_teachers(config)
    check_labels(config)
    check_unlabelled(config)
    check_large(config)
    check_cache(config)
    check_view(config)
    check_optim(config)
    names = [*model_names(config), config.data.name, *(config.plugins or ())]
    names = [name for name in dict.fromkeys(names) if parse_code(name) is not None]
    return dataclasses.replace(config, code={name: config.code.get(name) or _digest(name) for name in names})


def _digest(name: str) -> str:
    code = parse_code(name)
    assert code is not None
    return code_digest(code)[:DIGITS]


def _typed_code(pairs: Iterable[tuple[str, Any]]) -> list[str]:
    """Return the code that the user's own values name, without the names of anything else."""
    values = [value for key, value in pairs if key in CODE_KEYS]
    names = [name for value in values for name in (value if isinstance(value, list) else [value])]
    return [name for name in names if parse_code(name) is not None]


def _parse(argument: str) -> tuple[str, Any]:
    key, equals, text = argument.partition("=")
    if not equals or not key:
        raise UserError(f"'{shown(argument)}' is not KEY=VALUE{nearest(argument, ['--help'])} (--help lists the keys)")
    if key.startswith(("+", "~", "-")):
        raise UserError(f"'{shown(argument)}': write {shown(key.lstrip('+~-'))}=VALUE, without '{key[0]}'")
    try:
        value = parse_word(text)
    except UserError as error:
        raise UserError(f"{shown(argument)}: {error}") from None
    return key, value if key != "experiment" or isinstance(value, str) else text


def _expanded(
    pairs: Sequence[tuple[str, Any]], recipe: Mapping[str, Any], say: Callable[[str], None]
) -> list[tuple[str, Any]]:
    """Return the keys of a command line by their true names, for the method that it and its recipe choose."""
    chosen: Tree = {}
    for key, value in pairs:
        if key in ("scheme", "method", "scheme.name", "scheme.method"):
            merge(chosen, nest(key, value))
    tree: Tree = {}
    merge(tree, {"scheme": recipe.get("scheme", {})})
    _forget_other_choices(tree, chosen)
    merge(tree, chosen)
    expanded: list[tuple[str, Any]] = []
    for found, note in expand(pairs, _scheme_class(tree.get("scheme", {}))):
        expanded += found
        if note:
            say(note)
    return expanded


def _digests(tree: Mapping[str, Any]) -> Mapping[str, str]:
    code = tree.get("code", {})
    if not isinstance(code, Mapping) or not all(isinstance(digest, str) for digest in code.values()):
        raise UserError(f"code={shown(code)}: a run writes this key itself: remove it")
    return code


def _forget_other_choices(tree: Tree, overrides: Mapping[str, Any]) -> None:
    """Drop the keys of a scheme, method, data set or loss that an override replaces with another."""
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
    for old, new in ((tree, overrides), (tree.get("teacher", {}), overrides.get("teacher", {}))):
        was, now = (x.get("optim") if isinstance(x, Mapping) else None for x in (old, new))
        if (
            isinstance(was, Mapping)
            and isinstance(now, Mapping)
            and now.get("name", was.get("name")) != was.get("name")
        ):
            del old["optim"]
    _forget_published(tree, overrides)
    for kind, new in overrides.get("losses", {}).items() if isinstance(overrides.get("losses"), Mapping) else ():
        old = tree.get("losses", {}).get(kind, {})
        if isinstance(new, Mapping) and "name" in new and "name" in old and new["name"] != old["name"]:
            del tree["losses"][kind]


def _forget_variant(tree: Tree, overrides: Mapping[str, Any]) -> None:
    """Drop what the variants of a method set, including losses, where an override chooses another variant."""
    old, new = tree.get("scheme", {}), overrides.get("scheme", {})
    if "variant" not in new:
        return
    scheme_class = _scheme_class(old | new)
    if new["variant"] != old.get("variant", getattr(scheme_class, "variant", None)):
        for key in {key for keys in scheme_class.variants.values() for key in keys}:  # type: ignore[attr-defined]
            (tree if key == "losses" else old).pop(key, None)


def _forget_published(tree: Tree, overrides: Mapping[str, Any]) -> None:
    """Drop the weights where an override changes from or to a loss that was published with its own weights."""
    old, new = (x["losses"] if isinstance(x.get("losses"), Mapping) else {} for x in (tree, overrides))
    for kind in KINDS:
        was, now = (x[kind].get("name") if isinstance(x.get(kind), Mapping) else None for x in (old, new))
        found = [loss_named(str(name)) for name in (was, now) if now not in (None, was)]
        if any(loss[1].ce_weight is not None for loss in found if loss is not None):  # type: ignore[attr-defined]
            for key in ("alpha", "ce_weight"):
                tree.get("scheme", {}).pop(key, None)


def _teacher(tree: Mapping[str, Any], assistants: Iterable[str]) -> Teacher:
    """Return the options of the teacher, whose optimizer, also that of assistants, depends on no other group."""
    teacher: Teacher = make(Teacher, {key: value for key, value in tree.items() if key != "optim"}, "teacher")
    names = [*(teacher.name if isinstance(teacher.name, list) else [teacher.name]), *assistants]
    return dataclasses.replace(teacher, optim=_optim(tree.get("optim", {}), names, teacher.epochs, "teacher.optim"))


def _optim(tree: Any, models: Iterable[str], epochs: int, prefix: str) -> Optim:
    """Return an optimizer with the defaults that suit the networks which it trains."""
    if not isinstance(tree, Mapping):
        raise UserError(f"{prefix}={shown(tree)}: give its keys, as {prefix}.KEY=VALUE")
    tree = {"name": "adamw" if any(map(has_layer_norms, models)) else "sgd"} | dict(tree)
    check_optimizer(tree["name"], f"{prefix}.name")
    like_sgd = str(tree["name"]).removeprefix(TIMM) in SGD_LIKE
    optim: Optim = make(Optim, ({} if like_sgd else ADAMW) | tree, prefix)
    if "warmup_epochs" in tree:
        return optim
    return dataclasses.replace(optim, warmup_epochs=min(optim.warmup_epochs, epochs / 10))


def _losses(tree: Mapping[str, Any], scheme_class: type, start: Mapping[str, Any]) -> Losses:
    loss_tree: Tree = {}
    extra: list[Any] = []
    if scheme_class.uses_losses:  # type: ignore[attr-defined]
        merge(loss_tree, start)
        given = dict(tree.get("losses", {}))
        extra = _extra_losses(given.pop("extra", None))
        given = _normalize_losses(given)
        _forget_other_choices({"losses": loss_tree}, {"losses": given})
        merge(loss_tree, given)
    losses = Losses(**{kind: make_loss(kind, loss_tree.get(kind, {})) for kind in KINDS}, extra=extra)
    names = [options.name for _, options in losses.chosen()]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"the loss {name} is chosen twice: remove it from losses.extra")
    return losses


def _normalize_losses(tree: Mapping[str, Any]) -> Tree:
    for kind in tree:
        if kind not in KINDS:
            raise unknown_key(f"losses.{kind}")
    return {kind: value if isinstance(value, Mapping) else {"name": value} for kind, value in tree.items()}


def _extra_losses(given: Any) -> list[Any]:
    made = []
    for entry in given if isinstance(given, list) else [] if given is None else [given]:
        tree = entry if isinstance(entry, Mapping) else {"name": entry}
        found = loss_named(str(tree.get("name")))
        if found is None:
            names = [name for table in KINDS.values() for name in table if name != "none"]
            raise no_such("losses.extra", tree.get("name"), names)
        made.append(make(found[1], tree, "losses.extra"))
    return made


def _as_published(tree: Tree, scheme_class: type, losses: Losses) -> Tree:
    """Set the cross-entropy weight that a loss was published with, unless the user gives one."""
    published = [o.ce_weight for _, o in losses.chosen() if o.ce_weight is not None]
    fields = {field.name for field in dataclasses.fields(scheme_class)}
    if published and "ce_weight" in fields:
        tree = {key: value for key, value in {"ce_weight": published[0], "alpha": 1.0}.items() if key in fields} | tree
    return tree


def _scheme_class(tree: Mapping[str, Any]) -> type:
    name = tree.get("name", DEFAULT_SCHEME)
    if name == TOPOLOGY:
        _check_topology(tree)
        return Topology
    methods = choose(schemes.SCHEMES, name, "scheme")
    method = tree.get("method", next(iter(methods)))
    if not isinstance(method, str) or method not in methods:
        if str(method) in RENAMED_METHODS:
            raise UserError(f"method={method} is now method={RENAMED_METHODS[str(method)]}")
        raise no_such("method", method, methods)
    cls: type = methods[method]
    return cls


def _check_topology(tree: Mapping[str, Any]) -> None:
    path = Path(str(tree.get("file") or ""))
    if not tree.get("file"):
        raise UserError(f"scheme={TOPOLOGY} is a Python recipe: choose it with experiment=NAME or experiment=PATH.py")
    if not path.is_file():
        raise UserError(f"recipe {path} not found")
    if hashlib.sha256(path.read_bytes()).hexdigest()[:16] != tree.get("digest"):
        raise UserError(f"recipe {path} has changed since this configuration was made: choose it with experiment=")
