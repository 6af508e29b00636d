"""The command that trains a run, from its configuration."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdschemes.config import Config
from kdschemes.config.load import load_config
from kdschemes.config.naming import Tree, flatten, in_line, to_tree
from kdschemes.errors import UserError

ELSEWHERE = ("output_dir", "tracker", "project", "group", "job_type")
"""Keys of where results go, which a command leaves out."""

CHOICES = ("plugins", "scheme.method", "data.root")
"""Keys on which the defaults of others depend, like all that end in `.name`."""


def command_of(config: Config, folder: Path) -> str:
    """Return `kdschemes train KEY=VALUE ...` with the keys of a run that differ from the defaults.

    If these do not make the same configuration (a topology from a file), the `config.yaml` in `folder` is named.
    """
    wanted = _flat(config)
    chosen = {key: value for key, value in wanted.items() if key.endswith(".name") or key in CHOICES}
    try:
        defaults = _flat(_loaded(chosen))
        given = chosen | {key: value for key, value in wanted.items() if defaults.get(key, ...) != value}
        for key in chosen:
            fewer = {other: value for other, value in given.items() if other != key}
            if key != "scheme.name" and _gives(fewer, wanted):
                given = fewer
        if _gives(given, wanted):
            return shlex.join(["kdschemes", "train", *_words(given)])
    except UserError:
        pass
    return shlex.join(["kdschemes", "train", f"experiment={folder / 'config.yaml'}"])


def _flat(config: Config) -> Tree:
    tree = {key: value for key, value in to_tree(config).items() if key not in (*ELSEWHERE, "code")}
    return flatten(tree)


def _loaded(keys: Mapping[str, Any]) -> Config:
    return load_config(_words(keys), recipes=Path())


def _gives(keys: Mapping[str, Any], wanted: Tree) -> bool:
    try:
        return _flat(_loaded(keys)) == wanted
    except UserError:
        return False


def _words(keys: Mapping[str, Any]) -> list[str]:
    return [f"{_short(key)}={in_line(value)}" for key, value in keys.items()]


def _short(key: str) -> str:
    return "method" if key == "scheme.method" else key.removesuffix(".name") if key != "teacher.optim.name" else key
