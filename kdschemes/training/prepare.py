"""Prepare a scheme for training: place its weights, wrap it for several processes, create its optimizer."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from kdschemes.config import Config
from kdschemes.core.distillation import Distillation
from kdschemes.core.placement import place_frozen, split_trained
from kdschemes.training.optim import Groups, build_optimizer


def prepare(
    scheme: Distillation, config: Config, accelerator: Accelerator
) -> tuple[nn.Module, torch.optim.Optimizer, Groups]:
    """Return the wrapped scheme that the loop calls, its optimizer, and the trained parameters of each network."""
    if config.train.channels_last:
        scheme = scheme.to(memory_format=torch.channels_last)
    if config.scheme.uses_teacher:
        place_frozen(scheme, config.teacher, accelerator.device)
    if config.train.compile:
        for node in scheme.nodes.values():
            node.compile()
    if config.train.fsdp:
        split_trained(scheme, accelerator.device)
    groups = scheme.parameter_groups()
    # All processes make the same updates to these buffers, so DDP need not broadcast them before each forward pass.
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(  # type: ignore[no-untyped-call]
        scheme, scheme.replicated_buffers()
    )
    decay = config.optim.layer_decay
    scales = None if decay is None else scheme.lr_scales(decay)
    optimizer = build_optimizer(config.optim, groups, scheme.lr_multipliers, scales)
    if config.train.fsdp:
        model = accelerator.prepare_model(scheme, device_placement=False, evaluation_mode=True)
        return model, accelerator.prepare(optimizer), groups
    model, optimizer = accelerator.prepare(scheme, optimizer)
    return model, optimizer, groups
