"""Checks before and during a run: placements that cannot work, values that are not finite."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from kdschemes.config import Config
from kdschemes.config.checks import split_keys
from kdschemes.config.losses import loss_named
from kdschemes.core.distillation import Distillation
from kdschemes.core.placement import frozen_nodes
from kdschemes.distributed.collectives import any_process, world_size
from kdschemes.distributed.fsdp import to_local
from kdschemes.errors import UserError
from kdschemes.teacher_cache import check_cache
from kdschemes.training.optim import Groups
from kdschemes.training.state import NEVER, State

LARGE = 0.9
"""Share of the weighted sum from which feature and relation losses are said to be large."""


def check_placement(config: Config, scheme: Distillation, sizes: Mapping[str, int], world: int) -> None:
    """Check that the weights can be placed as configured, with `world` processes and data splits of these `sizes`.

    Raises:
        UserError: they cannot; the message names the key.
    """
    teacher = config.teacher
    for key, value in (("precision", teacher.precision), ("placement", teacher.placement), ("cache", teacher.cache)):
        if config.scheme.uses_teacher and value not in ("fp32", "device", "none") and not frozen_nodes(scheme):
            method = f"scheme={config.scheme.name} method={config.scheme.method}"
            raise UserError(f"teacher.{key}={value} applies to frozen teachers, and {method} has none: remove it")
    check_cache(config, scheme)
    for key in split_keys(config):
        if config.train.eval_batch_size < 2:
            raise UserError(f"{key} needs train.eval_batch_size of 2 or more, not {config.train.eval_batch_size}")
        for split, size in sizes.items():
            if 0 < size < world:
                raise UserError(f"{key} needs a sample of {split} for each process: {size} for {world} processes")
    if config.train.fsdp:
        for name, parameter in scheme.named_parameters():
            if parameter.dim() == 0:
                raise UserError(
                    f"train.fsdp=true cannot shard scalar parameters, and {name} is one: "
                    "choose another loss or train.fsdp=false"
                )


def first_not_finite(scheme: Distillation, state: State, groups: Groups) -> str | None:
    """Return what was not finite first: a term, their weighted sum, or a weight of `groups`; None if all are finite.

    All processes must call this; all get the same result.
    """
    if world_size() > 1:
        torch.distributed.all_reduce(state.first_bad, op=torch.distributed.ReduceOp.MIN)
    total, *terms = state.first_bad.tolist()
    if (step := min(terms, default=NEVER)) != NEVER:
        term = scheme.terms[terms.index(step)]
        return f"term {term.name} is not finite at step {step} (it teaches {term.target})"
    if total != NEVER:
        return f"the weighted sum of the terms is not finite at step {total}"
    for name, parameters in groups.items():
        if any_process(not all(bool(to_local(p).isfinite().all()) for p in parameters), state.first_bad.device):
            return f"a weight of {name} is not finite after step {state.step}"
    return None


def remedies(config: Config) -> str:
    """Return what may keep a run's values finite, of what it does not do already."""
    clip = config.optim.clip_grad_norm
    found = [f"optim.lr={config.optim.lr / 10:.3g}"]
    found += ["optim.clip_grad_norm=1"] * (clip is None or clip > 1)
    found += ["precision=fp32"] * (config.precision != "fp32")
    return " or ".join(found)


def large_share(losses: Mapping[str, float], weights: Mapping[str, float], clip: float | None) -> str | None:
    """Return that feature and relation losses are most of the weighted sum, and what this means; None if they are not.

    `losses` are the terms' values and their "total", `weights` their weights, by name.
    """
    kinds = {name: loss_named(name.partition("/")[0]) for name in weights}
    large = {n: weights[n] * losses[n] for n, found in kinds.items() if found and found[0] != "response"}
    share = sum(large.values()) / losses["total"] if losses["total"] > 0 else 0.0
    if share < LARGE or not large:
        return None
    largest = max(large, key=lambda name: large[name]).partition("/")[0]
    bound = f"gradients are clipped at {clip:g}" if clip is not None else "gradients are not clipped"
    return (
        f"note: {100 * share:.0f} % of the weighted loss are features and relations, most of it {largest}: {bound}; if "
        "the labels are learned slowly, lower its weight, or let it ramp (schedule=linear or cosine)"
    )
