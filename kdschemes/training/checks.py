"""What a run refuses to start or to continue with: placements that cannot be, values that are not finite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from kdschemes.config import Config
from kdschemes.config.checks import split_keys
from kdschemes.core.distillation import Distillation
from kdschemes.core.placement import frozen_nodes
from kdschemes.distributed.collectives import any_process, world_size
from kdschemes.distributed.fsdp import to_local
from kdschemes.errors import UserError
from kdschemes.teacher_cache import check_cache
from kdschemes.training.state import NEVER


def check_placement(config: Config, scheme: Distillation, sizes: Mapping[str, int], world: int) -> None:
    """Refuse to keep or split weights where it cannot be done, in `world` processes with splits of these `sizes`.

    Raises:
        UserError: it names the key.
    """
    teacher = config.teacher
    for key, value in (("precision", teacher.precision), ("placement", teacher.placement), ("cache", teacher.cache)):
        if config.scheme.uses_teacher and value not in ("fp32", "device", "none") and not frozen_nodes(scheme):
            method = f"scheme={config.scheme.name} method={config.scheme.method}"
            raise UserError(f"teacher.{key}={value} is for frozen teachers, and {method} has none here: leave it out")
    check_cache(config, scheme)
    for key in split_keys(config):
        if config.train.eval_batch_size < 2:
            raise UserError(f"{key} needs train.eval_batch_size=2 or more, not {config.train.eval_batch_size}")
        for split, size in sizes.items():
            if 0 < size < world:
                raise UserError(
                    f"{key} needs a sample of each split for each process: {size} in {split}, {world} processes"
                )
    if config.train.fsdp:
        for name, parameter in scheme.named_parameters():
            if parameter.dim() == 0:
                raise UserError(
                    f"train.fsdp=true splits vectors and matrices, but {name} is a single trained number: "
                    "choose another loss or train.fsdp=false"
                )


def first_bad_term(first_bad: Tensor, term_names: Sequence[str]) -> tuple[str | None, int] | None:
    """Return which term was the first that was not finite, and at which step; None where all are.

    The name is None if only the weighted sum was not finite. All processes must call this and learn the same.
    """
    if world_size() > 1:
        torch.distributed.all_reduce(first_bad, op=torch.distributed.ReduceOp.MIN)
    total, *terms = first_bad.tolist()
    step = min(terms, default=NEVER)
    if step != NEVER:
        return term_names[terms.index(step)], step
    return None if total == NEVER else (None, total)


def bad_network(groups: Mapping[str, Sequence[nn.Parameter]], device: torch.device) -> str | None:
    """Return a network with a weight that is not finite on some process."""
    for name, parameters in groups.items():
        if any_process(not all(bool(to_local(p).isfinite().all()) for p in parameters), device):
            return name
    return None
