"""Renamed keys, methods and values: an old name raises an error that gives the new one."""

from __future__ import annotations

from typing import Any

RENAMED_KEYS = {
    "output": "output_dir",
    "scheme.hard": "scheme.ce_weight",
    "scheme.feature_delay": "scheme.feature_start_epoch",
    "scheme.through_weights": "scheme.grad_through_weights",
    "scheme.teacher_hard": "scheme.teacher_ce_weight",
    "scheme.teacher_rate": "scheme.teacher_lr_multiplier",
    "scheme.rates": "scheme.lr_multipliers",
    "scheme.big": "scheme.large_model",
    "scheme.deepest": "scheme.final_exit_weight",
    "scheme.channels": "scheme.channel_reduction",
    "scheme.enlarged": "scheme.upsample",
    "scheme.positions": "scheme.spatial_reduction",
    "scheme.gap": "scheme.mean_distance",
    "scheme.gap_weight": "scheme.mean_distance_weight",
    "data.fraction": "data.train_fraction",
    "data.omit": "data.exclude_classes",
    "data.parts": "data.num_partitions",
    "data.part": "data.partition",
    "data.part_skew": "data.dirichlet_alpha",
    "data.part_classes": "data.classes_per_partition",
    "data.workers": "data.num_workers",
    "teacher.cache_folder": "teacher.cache_dir",
    "teacher.cache_limit": "teacher.cache_limit_gb",
    "optim.schedule": "optim.lr_schedule",
    "optim.clip": "optim.clip_grad_norm",
    "train.accumulation": "train.grad_accum_steps",
    "train.eval_every": "train.eval_every_epochs",
    "train.checkpoint_every": "train.checkpoint_every_epochs",
    "train.checkpoint_steps": "train.checkpoint_every_steps",
    "train.log_every": "train.log_every_steps",
    "train.shard": "train.fsdp",
    "train.gather": "train.gather_batch",
    "train.threads": "train.num_threads",
    "losses.more": "losses.extra",
    "losses.response.standardise": "losses.response.standardize",
    "losses.response.correct": "losses.response.label_prob",
    "losses.feature.form": "losses.feature.variant",
    "losses.feature.normalise": "losses.feature.normalize",
    "losses.relation.normalise": "losses.relation.normalize",
    "losses.relation.rows": "losses.relation.row_norm",
    "losses.relation.form": "losses.relation.variant",
    "losses.relation.standardise": "losses.relation.standardize",
}

RENAMED_METHODS = {"mean": "codistillation", "ema": "mean_teacher", "partial": "partial_teacher"}

RENAMED_VALUES = {
    "scheme.views": {"own": "independent"},
    "scheme.view": {"own": "independent"},
    "scheme.topology": {"shared_stem": "shared_trunk"},
    "losses.relation.variant": {"neighbour": "neighbor"},
}

RENAMED_STUDY_KEYS = {"first": "prerequisites"}


def renamed_key(key: str) -> str | None:
    """Return the new name of a key; a key of `losses.extra` is looked up under every kind of loss."""
    group, _, leaf = key.rpartition(".")
    groups = [f"losses.{kind}" for kind in ("response", "feature", "relation")] if group == "losses.extra" else [group]
    for old in (f"{group}.{leaf}" if group else leaf for group in groups):
        if old in RENAMED_KEYS:
            new = RENAMED_KEYS[old]
            return f"losses.extra.{new.rpartition('.')[2]}" if group == "losses.extra" else new
    return None


def renamed_value(key: str, value: Any) -> str | None:
    """Return the new name of a key's value."""
    return RENAMED_VALUES.get(key, {}).get(value) if isinstance(value, str) else None
