"""A `Config` as plain data, and the names that its runs' folders have."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

import yaml

from kdschemes.config import Config

Tree = dict[str, Any]

NOT_HASHED = (
    *("output_dir", "tracker", "project", "group", "job_type", "scheme.file", "teacher.placement", "train.fsdp"),
    *("teacher.cache_dir", "teacher.cache_limit_gb"),
)
"""Keys that do not count in a run's name."""


def to_tree(config: Config) -> Tree:
    """Return the resolved configuration as nested plain data; `build_config` gives the same `Config` back."""
    tree = dataclasses.asdict(config)
    for group in ("teacher", "losses"):
        if not getattr(config.scheme, f"uses_{group}"):
            del tree[group]
    return tree


def config_hash(config: Config) -> str:
    """Return 8 hexadecimal digits that name what is computed.

    Where it is written and who watches (`output_dir`, `tracker`, `project`, `group`, `job_type`) do not count, nor
    where weights are kept, nor a group that the scheme does not use.
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
