"""The precision in which every loss is computed."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

F = TypeVar("F", bound=Callable[..., Tensor])


def full_precision(function: F) -> F:
    """Run `function` with autocast off and half-precision inputs cast to float32; float64 stays float64.

    Gradients have the dtype of the inputs.
    """

    @wraps(function)
    def raised(*args: Any, **kwargs: Any) -> Tensor:
        device = next(a.device for a in (*args, *kwargs.values()) if isinstance(a, Tensor))
        with torch.autocast(device.type, enabled=False):
            return function(*(_raise(a) for a in args), **{name: _raise(a) for name, a in kwargs.items()})

    return cast(F, raised)


def _raise(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.to(torch.promote_types(value.dtype, torch.float32))
    return value
