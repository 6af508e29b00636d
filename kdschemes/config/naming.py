"""A `Config` as plain data, and the names of run folders."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import yaml

from kdschemes.config import Config

Tree = dict[str, Any]

NOT_HASHED = (
    *("output_dir", "tracker", "project", "group", "job_type", "scheme.file", "teacher.placement", "train.fsdp"),
    *("teacher.cache_dir", "teacher.cache_limit_gb"),
)
"""Keys that do not affect a run's name."""

HASHED_IF_SET = tuple(f"{group}.{key}" for group in ("model", "teacher") for key in ("mean", "std", "image_size"))
"""Keys that affect a run's name unless they are null: they then follow from the model, its weights or the data."""


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

    The keys in `NOT_HASHED` (output, tracking, placement of weights), those in `HASHED_IF_SET` that are null, and
    groups that the scheme does not use are excluded.
    """
    tree = to_tree(config)
    for name in (*NOT_HASHED, *HASHED_IF_SET):
        group, _, key = name.rpartition(".")
        keys = tree.get(group, {}) if group else tree
        if name in NOT_HASHED or keys.get(key) is None:
            keys.pop(key, None)
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:8]


def run_name(config: Config) -> str:
    """Return the name of the run's folder: readable parts, then the hash of the configuration."""
    model = config.model.name.replace("/", "_")
    parts = (config.scheme.name, config.scheme.method, config.data.name, model, f"seed{config.seed}")
    return "-".join((*parts, config_hash(config)))


def dump_yaml(config: Config) -> str:
    """Return the text of a run's `config.yaml`, which can be run again with `experiment=PATH`."""
    text: str = yaml.safe_dump(to_tree(config), sort_keys=False)
    return text


def in_line(value: Any) -> str:
    """Return a value as YAML on one line, as on a command line."""
    text: str = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")
