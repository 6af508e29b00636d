"""Parameters and multiply-accumulates of a network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from kdschemes.errors import UserError, first_line, out_of_memory
from kdschemes.models.exits import ExitNetwork


def count_parameters(network: nn.Module) -> int:
    """Return the number of parameters, trainable or not, counting shared ones once and no buffers."""
    return sum(parameter.numel() for parameter in network.parameters())


def count_macs(network: nn.Module, channels: int, image_size: int) -> int:
    """Return the multiply-accumulates of one image's forward pass, in convolutions and matrix products.

    1 MAC is one fused multiply-add. Raises `UserError` if the network does not accept such an image.
    """
    with probing(network, channels, image_size, batch=1) as image:
        return macs_of(network, image)


def count_exit_macs(network: ExitNetwork, channels: int, image_size: int) -> dict[str, int]:
    """Return, by exit, the multiply-accumulates for one image up to that exit's logits."""
    with probing(network, channels, image_size, batch=1) as image:
        return {
            name: macs_of(lambda x, name=name: network.forward_until_exit(x, name), image)
            for name in network.exit_stages
        }


def macs_of(function: Callable[..., Any], images: Tensor) -> int:
    """Return the multiply-accumulates of `function(images)`, including attention."""
    with torch.enable_grad(), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        function(images)
    return int(counter.get_total_flops()) // 2


@contextmanager
def probing(network: nn.Module, channels: int, image_size: int, batch: int) -> Iterator[Tensor]:
    """Yield zero images for a trial forward pass, in evaluation mode without gradients.

    Training modes and random generators are restored. Raises `UserError` if the network fails on images of that size.
    """
    parameter = next(network.parameters())
    modes = {module: module.training for module in network.modules()}
    devices = [parameter.device] if parameter.device.type == "cuda" else []
    network.eval()
    try:
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            yield torch.zeros(batch, channels, image_size, image_size, dtype=parameter.dtype, device=parameter.device)
    except (RuntimeError, AssertionError, ValueError, ZeroDivisionError) as error:
        if isinstance(error, UserError) or out_of_memory(error):
            raise
        name = getattr(getattr(network, "spec", None), "name", type(network).__name__)
        raise UserError(
            f"{name} does not accept {channels}x{image_size}x{image_size} images; "
            f"use larger ones or another network: {first_line(error)}"
        ) from error
    finally:
        for module, mode in modes.items():
            module.training = mode
