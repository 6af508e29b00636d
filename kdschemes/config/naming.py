"""A `Config` as plain data, and the keys that a run's name leaves out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdschemes.checksums import text_is_intact, text_with_checksum
from kdschemes.config import Config
from kdschemes.config.parse import read_yaml, to_yaml
from kdschemes.errors import UserError, shown

Tree = dict[str, Any]

NOT_HASHED = (
    *("code", "output_dir", "tracker", "project", "group", "job_type", "scheme.file", "data.root", "data.classes"),
    *("data.num_workers", "teacher.placement", "teacher.cache_dir", "teacher.cache_limit_gb", "train.eval_batch_size"),
    *("train.checkpoint_every_epochs", "train.checkpoint_every_steps", "train.log_every_steps", "train.fsdp"),
    *("train.channels_last", "train.compile", "train.deterministic", "train.num_threads", "device"),
)
"""Keys that do not affect a run's name: paths, bookkeeping, and how the same is computed, which changes rounding only.

Data and given weights count by their content.
"""

CURE = "restore it from a copy, or delete it (and results.json, if there is one) and run the same command again"

HASHED_IF_SET = {
    **{
        f"{group}.{key}": None
        for group in ("model", "teacher")
        for key in ("mean", "std", "image_size", "kwargs", "stages")
    },
    **{"train.label_smoothing": 0.0, "train.class_weights": None, "train.patience": None},
    **{f"data.{key}": None for key in ("kwargs", "num_classes", "image_size", "mean", "std", "unlabelled")},
    **{"data.auto_augment": "none", "data.randaugment_ops": 2, "data.randaugment_magnitude": 9},
    **{"data.color_jitter": 0.0, "data.random_erasing": 0.0},
    **{f"{group}.{key}": None for group in ("optim", "teacher.optim") for key in ("kwargs", "layer_decay")},
    **{"data.sampling": "shuffled", "resume_from": None, "plugins": None},
}
"""Keys that affect a run's name only with another value than this one.

Those of networks otherwise follow from the model, its weights or the data; the rest is newer than the names of runs.
"""

TEACHER_TRAINING = ("epochs", "batch_size", "optim", "seed")
"""Keys of `teacher` that affect a run's name only if its teacher is trained first."""


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


def dump_yaml(config: Config) -> str:
    """Return the text of a run's `config.yaml` with its checksum; it can be run again with `experiment=PATH`."""
    return text_with_checksum(to_yaml(to_tree(config)))


def read_config(folder: Path) -> Tree:
    """Return the resolved configuration of a run, from the `config.yaml` in its folder.

    Raises:
        UserError: there is no such file, or it is damaged.
    """
    path = folder / "config.yaml"
    try:
        tree = read_yaml(path)
    except UserError as error:
        why = str(error).removeprefix(shown(path)).strip()
        raise UserError(f"{path} is damaged: it {why}; {CURE}") from None
    if not text_is_intact(path.read_text(encoding="utf-8")):
        raise UserError(f"{path} is damaged: it does not match its checksum; {CURE}")
    return tree


def in_line(value: Any) -> str:
    """Return a value as YAML on one line, as on a command line."""
    return to_yaml(value, flow=True, width=1 << 30).removesuffix("\n").removesuffix("\n...")
