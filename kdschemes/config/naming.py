"""A `Config` as plain data, and the names of run folders."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from kdschemes.config import Config
from kdschemes.config.parse import to_yaml

Tree = dict[str, Any]

MOST_OF_A_PART = 80
"""Characters of a part of a run's name: a folder's name has at most 255 bytes."""

NOT_HASHED = (
    *("output_dir", "tracker", "project", "group", "job_type", "scheme.file", "teacher.placement", "train.fsdp"),
    *("teacher.cache_dir", "teacher.cache_limit_gb"),
)
"""Keys that do not affect a run's name."""


def to_tree(config: Config) -> Tree:
    """Return the resolved configuration as nested plain data, from which `build_config` rebuilds the same `Config`."""
    tree = dataclasses.asdict(config)
    for group in ("teacher", "losses"):
        if not getattr(config.scheme, f"uses_{group}"):
            del tree[group]
    return tree


def flatten(tree: Mapping[Any, Any], separator: str = ".") -> Tree:
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
    return "-".join((*(part[:MOST_OF_A_PART] for part in parts), config_hash(config)))


def dump_yaml(config: Config) -> str:
    """Return the text of a run's `config.yaml`, which can be run again with `experiment=PATH`."""
    return to_yaml(to_tree(config))


def in_line(value: Any) -> str:
    """Return a value as YAML on one line, as on a command line."""
    return to_yaml(value, flow=True, width=1 << 30).removesuffix("\n").removesuffix("\n...")
