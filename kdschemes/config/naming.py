"""A `Config` as plain data, and the names of run folders."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from kdschemes.checksums import text_is_intact, text_with_checksum
from kdschemes.config import Config
from kdschemes.errors import UserError

Tree = dict[str, Any]

NOT_HASHED = (
    *("output_dir", "tracker", "project", "group", "job_type", "scheme.file", "teacher.placement", "train.fsdp"),
    *("teacher.cache_dir", "teacher.cache_limit_gb"),
)
"""Keys that do not affect a run's name."""

CURE = "restore it from a copy, or delete it (and results.json, if there is one) and run the same command again"


def to_tree(config: Config) -> Tree:
    """Return the resolved configuration as nested plain data, from which `build_config` rebuilds the same `Config`."""
    tree = dataclasses.asdict(config)
    for group in ("teacher", "losses"):
        if not getattr(config.scheme, f"uses_{group}"):
            del tree[group]
    return tree


def flatten(tree: Mapping[str, Any], separator: str = ".") -> Tree:
    """Return the leaves of nested data by their joined keys: `train.epochs`, as on the command line."""
    flat: Tree = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}{separator}{rest}": leaf for rest, leaf in flatten(value, separator).items()}
        else:
            flat[str(key)] = value
    return flat


def config_hash(config: Config) -> str:
    """Return 8 hexadecimal digits that identify what is computed.

    The keys in `NOT_HASHED` (output, tracking, placement of weights) and groups that the scheme does not use are
    excluded.
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
    """Return the text of a run's `config.yaml` with its checksum; it can be run again with `experiment=PATH`."""
    return text_with_checksum(yaml.safe_dump(to_tree(config), sort_keys=False))


def read_config(folder: Path) -> Tree:
    """Return the resolved configuration of a run, from the `config.yaml` in its folder.

    Raises:
        UserError: there is no such file, or it is damaged.
    """
    path = folder / "config.yaml"
    try:
        text = path.read_bytes().decode()
        tree = yaml.safe_load(text)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except (yaml.YAMLError, ValueError):
        raise UserError(f"{path} is damaged: it is not YAML; {CURE}") from None
    if not text_is_intact(text):
        raise UserError(f"{path} is damaged: it does not match its checksum; {CURE}")
    if not isinstance(tree, dict) or not all(isinstance(key, str) for key in tree):
        raise UserError(f"{path} is damaged: it contains no keys; {CURE}")
    return tree


def in_line(value: Any) -> str:
    """Return a value as YAML on one line, as on a command line."""
    text: str = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")
