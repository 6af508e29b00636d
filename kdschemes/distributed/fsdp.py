"""Weights, gradients, and optimizer state sharded over processes (torch's FSDP2)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from kdschemes.distributed.collectives import rank, world_size


def split_over_processes(
    module: nn.Module,
    parts: Iterable[nn.Module],
    device: torch.device,
    method: str,
    whole: Iterable[nn.Parameter] = (),
) -> None:
    """Shard every parameter of `module` over the processes, except those in `whole`.

    Each of `parts` is gathered when it is called and freed afterward; the other parameters are gathered when the module
    or its method `method` is called. Gradients are averaged over processes, as in DDP. Weights become contiguous, the
    only memory format that can be sharded.
    """
    ignored = set(whole)
    for parameter in module.parameters():
        parameter.data = parameter.data.contiguous()
    mesh = init_device_mesh(device.type, (world_size(),))
    for part in parts:
        part.register_forward_hook(_no_view)
        fully_shard(part, mesh=mesh, reshard_after_forward=True, ignored_params=ignored)
        if hasattr(part, "before_activation"):
            _gather_for(part, "before_activation")
    fully_shard(module, mesh=mesh, reshard_after_forward=True, ignored_params=ignored)
    _gather_for(module, method)


def _gather_for(module: nn.Module, method: str) -> None:
    """Gather a module for one of its methods as well, but not again when its `forward` calls that method."""
    plain = getattr(module, method)
    register_fsdp_forward_method(module, method)
    gathering, within = getattr(module, method), []
    module.register_forward_pre_hook(lambda *_: within.append(True))
    module.register_forward_hook(lambda *_: within.clear(), always_call=True)
    setattr(module, method, lambda *arguments: (plain if within else gathering)(*arguments))


def _no_view(part: nn.Module, arguments: object, output: object) -> object:
    """Copy an output that is a view: modified in place later, it would lose the hook that gathers for backward."""
    return output.clone() if isinstance(output, Tensor) and output._base is not None else output


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the repeated blocks of a network: members of a `Sequential` or `ModuleList` whose members have submodules.

    If such a block itself contains such blocks, these are yielded instead.
    """
    for child in module.children():
        if isinstance(child, nn.Sequential | nn.ModuleList) and any(map(_composed, child)):
            for member in child:
                yield from list(blocks(member)) or ([member] if _has_parameters(member) else [])
        else:
            yield from blocks(child)


def _composed(module: nn.Module) -> bool:
    return any(map(_has_parameters, module.children()))


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


@contextlib.contextmanager
def unsharded(module: nn.Module) -> Iterator[None]:
    """Gather all parameters on each process within the block, without training. All processes must enter together.

    The module and its `state_dict` may then be used on a single process. No effect on a module that is not sharded.
    """
    parts = [part for part in module.modules() if isinstance(part, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    layers = list(module.modules()) if parts else []
    hooks = [layer._state_dict_pre_hooks.copy() for layer in layers]  # FSDP's hooks free the gathered weights
    for layer in layers:
        layer._state_dict_pre_hooks.clear()
    try:
        yield
    finally:
        for layer, before in zip(layers, hooks, strict=True):
            layer._state_dict_pre_hooks.update(before)
        for part in parts:
            part.set_reshard_after_forward(True, recurse=False)
            part.reshard()


def to_local(value: Tensor) -> Tensor:
    """Return this process's shard of a sharded tensor, sharing memory; other tensors are returned unchanged."""
    return value.to_local() if isinstance(value, DTensor) else value


def full_state(state: Any) -> Any:
    """Return a state (tensors in dictionaries, lists, and tuples) with sharded tensors gathered on the CPU.

    All processes must call this; the main process gets the tensors, the others get None for each sharded tensor.
    """
    if isinstance(state, DTensor):
        full = state.full_tensor()
        return full.cpu() if rank() == 0 else None
    if isinstance(state, Mapping):
        return {key: full_state(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(map(full_state, state))
    return state


def load_full_state(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load full tensors into a module; each process takes its shard of the sharded ones."""
    own = module.state_dict()
    module.load_state_dict({name: shard_like(value, own.get(name)) for name, value in state.items()})


def load_full_optimizer_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load an optimizer state of full tensors; it is sharded where the parameters are."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    split = {
        number: {key: shard_like(value, parameter) for key, value in state["state"].get(number, {}).items()}
        for number, parameter in zip(numbers, parameters, strict=False)
    }
    optimizer.load_state_dict({**state, "state": {number: values for number, values in split.items() if values}})


def shard_like(value: Any, other: Tensor | None) -> Any:
    """Return this process's shard of a full tensor if `other` is sharded and has the same shape, else `value`."""
    if isinstance(other, DTensor) and isinstance(value, Tensor) and value.shape == other.shape:
        value = value.to(other.device).contiguous()
        return distribute_tensor(value, other.device_mesh, other.placements, src_data_rank=None)
    return value
