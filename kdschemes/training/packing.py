"""Which runs can be packed: trained in one process on the same batches, with one teacher forward for all."""

from __future__ import annotations

from collections.abc import Sequence

from kdschemes.config import Config
from kdschemes.core.distillation import Distillation
from kdschemes.core.placement import frozen_nodes

SHARED = (
    "batch_size",
    "grad_accum_steps",
    "drop_last",
    "eval_batch_size",
    "channels_last",
    "deterministic",
    "num_threads",
)
"""Keys of `train` that must be the same in all runs of a pack."""


def is_packable(config: Config) -> bool:
    """Return whether a run can be packed: not with sharded or offloaded weights, nor with a gradient scaler."""
    offloads = config.scheme.uses_teacher and config.teacher.placement != "device"
    return not (config.train.fsdp or offloads or config.precision == "fp16")


def pack_key(config: Config) -> str:
    """Return what must be the same in all runs of a pack, in addition to the auxiliary batches that they read."""
    train = tuple(getattr(config.train, key) for key in SHARED)
    return repr((config.data, config.seed, config.precision, config.device, train))


def share_teachers(scheme: Distillation, others: Sequence[Distillation]) -> None:
    """Replace a scheme's frozen networks with identical ones of other schemes, to free the memory of the copies."""
    candidates = [node for other in others for node in frozen_nodes(other)]
    for node in frozen_nodes(scheme):
        equal = next((other for other in candidates if node.same_network_as(other)), None)
        if equal is not None:
            node.share_forward_with(equal)
