"""The optimizer over all networks, its learning rate, and per-network gradient clipping."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from kdschemes.config import Optim
from kdschemes.config.optimizers import TIMM, is_timm
from kdschemes.core.schedules import Schedule, learning_rate, linear_ramp
from kdschemes.core.types import Progress
from kdschemes.errors import UserError, first_line, nearest, shown

Groups = Mapping[str, Sequence[nn.Parameter]]


def build_optimizer(
    options: Optim,
    groups: Groups,
    lr_multipliers: Mapping[str, float] | None = None,
    lr_scales: Mapping[nn.Parameter, float] | None = None,
) -> torch.optim.Optimizer:
    """Return the optimizer, with one parameter group per network; without `decay_vectors`, one more for its vectors.

    `lr_multipliers` are the factors on the learning rate by network, 1 by default; `lr_scales` are further factors, by
    parameter, each of which has groups of its own.

    Raises:
        UserError: timm does not have the optimizer, or it does not accept `kwargs`.
    """
    factors = {name: (lr_multipliers or {}).get(name, 1.0) for name in groups}
    scales = lr_scales or {}
    parameters: list[dict[str, Any]] = []
    for name, group in groups.items():
        for scale in sorted({scales.get(p, 1.0) for p in group}):
            here = [p for p in group if scales.get(p, 1.0) == scale]
            exempt = [p for p in here if p.ndim < 2 and not options.decay_vectors]
            others = [p for p in here if p.ndim >= 2 or options.decay_vectors]
            factor = factors[name] * scale
            for params, decay in ((others, options.weight_decay), (exempt, 0.0)):
                if params:
                    parameters.append({"params": params, "name": name, "factor": factor, "weight_decay": decay})
    if is_timm(options.name):
        return _timm_optimizer(options, parameters)
    if options.name == "sgd":
        nesterov = options.nesterov and options.momentum > 0
        return torch.optim.SGD(parameters, lr=options.lr, momentum=options.momentum, nesterov=nesterov)
    return torch.optim.AdamW(parameters, lr=options.lr, betas=(options.momentum, 0.999))


def _timm_optimizer(options: Optim, parameters: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Return an optimizer of timm's; `optim.momentum` is for those that have one, and kwargs come before its defaults.

    A clipping of its own, which is over all networks, is turned off.
    """
    import timm.optim

    name = options.name.removeprefix(TIMM)
    if name not in timm.optim.list_optimizers():
        raise UserError(f"timm {timm.__version__} has no optimizer {name}: install a newer timm, or choose another")
    made = timm.optim.get_optimizer_class(name, bind_defaults=False)
    accepted = inspect.signature(made).parameters.keys() - {"params", "lr", "weight_decay", "momentum"}
    kwargs = {key: tuple(value) if isinstance(value, list) else value for key, value in (options.kwargs or {}).items()}
    for key in kwargs.keys() - accepted:
        cure = nearest(key, sorted(accepted)) or ": remove it"
        raise UserError(f"{options.name} takes no argument '{shown(key)}'{cure}")
    if "max_grad_norm" in accepted:
        kwargs["max_grad_norm"] = None
    rates = {"lr": options.lr, "weight_decay": options.weight_decay, "momentum": options.momentum}
    try:
        optimizer: torch.optim.Optimizer = timm.optim.create_optimizer_v2(parameters, name, **rates, **kwargs)
    except (AssertionError, TypeError, ValueError) as error:
        raise UserError(f"{options.name} does not accept optim.kwargs={shown(kwargs)}: {first_line(error)}") from None
    return optimizer


def rate_schedule(options: Optim) -> Schedule:
    """Return the learning rate as a function of progress."""
    return learning_rate(
        options.lr_schedule,
        options.lr,
        warmup_epochs=options.warmup_epochs,
        milestones=options.milestones,
        gamma=options.gamma,
    )


def momentum_schedule(options: Optim) -> Schedule:
    """Return the momentum of SGD as a function of progress: linear from `momentum_start` over `momentum_epochs`."""
    start = options.momentum if options.momentum_start is None else options.momentum_start
    change = linear_ramp(options.momentum - start, options.momentum_epochs)
    return lambda progress: start + change(progress)


def set_momentum(optimizer: torch.optim.Optimizer, schedule: Schedule, progress: Progress) -> None:
    """Set every group's momentum for the next step (of SGD)."""
    for group in optimizer.param_groups:
        group["momentum"] = schedule(progress)


def set_rate(optimizer: torch.optim.Optimizer, schedule: Schedule, progress: Progress) -> float:
    """Set every group's learning rate for the next step, times the group's factor; return the rate without it."""
    rate = schedule(progress)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]
    return rate


def clip_gradients(groups: Groups, largest: float) -> None:
    """Clip the gradient norm of each network separately to `largest`.

    A norm over all networks would couple peers: one peer's large gradient would shrink the others' steps.
    """
    for parameters in groups.values():
        nn.utils.clip_grad_norm_(parameters, largest)


@torch.no_grad()
def limit_weights(scheme: nn.Module, largest: float) -> None:
    """Scale down the incoming weights of each trained unit whose L2 norm exceeds `largest` (Srivastava et al. 2014).

    A unit is a row of a linear layer's weight, or an output channel of a convolution's.
    """
    for module in scheme.modules():
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d) and module.weight.requires_grad:
            module.weight.renorm_(p=2, dim=0, maxnorm=largest)
