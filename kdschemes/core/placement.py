"""Placement of weights: in bfloat16, offloaded to the CPU, or sharded over the processes."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from kdschemes.config import Teacher
from kdschemes.core.distillation import Distillation
from kdschemes.core.frozen import Frozen
from kdschemes.core.types import Batch
from kdschemes.distributed.fsdp import blocks, split_over_processes


def frozen_nodes(scheme: Distillation) -> list[Frozen]:
    return [node for node in scheme.nodes.values() if isinstance(node, Frozen)]


def split_trained(scheme: Distillation, device: torch.device) -> None:
    """Shard everything that a scheme trains, and its averages, over the processes. Frozen networks move to `device`.

    Networks are gathered block by block; the rest (classifiers, projections) is gathered for a whole forward pass.
    """
    for node in frozen_nodes(scheme):
        node.to(device)
    split_over_processes(scheme, blocks(scheme.nodes), device, "predict")


def place_frozen(scheme: Distillation, options: Teacher, device: torch.device) -> None:
    """Apply `teacher.precision` and `teacher.placement` to a scheme's frozen networks, which compute on `device`.

    Losses may read a frozen network's linear classifier directly, so it stays in float32, unsharded, and on the
    scheme's device. All processes must call this.
    """
    for node in frozen_nodes(scheme):
        classifier = node.network.linear_classifier()
        if options.precision == "bf16":
            keep_in_bf16(node, classifier)
        if options.placement == "offload":
            offload(node, classifier)
        elif options.placement == "sharded":
            method = "forward_preactivations" if node.preactivations else "forward_stages"
            whole = [] if classifier is None else list(classifier.to(device).parameters())
            split_over_processes(node.network, blocks(node.network), device, method, whole)
            node.not_moved = frozenset(node.network.modules())


def keep_in_bf16(node: Frozen, classifier: nn.Module | None) -> None:
    """Round a frozen network's weights to bfloat16 and compute in it; outputs stay in float32.

    Batch norms keep their dtype: they have few parameters, which bfloat16 would round by up to 0.4 %.
    """
    for module in node.network.modules():
        if module is not classifier and not isinstance(module, _BatchNorm):
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.bfloat16()
    node.bf16 = True


def offload(node: Frozen, classifier: nn.Module | None) -> None:
    """Keep the weights of a frozen network's layers on the CPU; each is moved to its input's device during its forward.

    Weights that the network reads without calling the layer, and those held directly by a module with submodules
    (class tokens, position embeddings), follow the scheme to its device.
    """
    layers = [layer for layer in _called(node) if layer is not classifier and not [*layer.children()]]
    for layer in layers:
        if torch.cuda.is_available():
            for tensor in [*layer.parameters(recurse=False), *layer.buffers(recurse=False)]:
                tensor.data = tensor.data.pin_memory()
        layer.register_forward_pre_hook(_bring)
        layer.register_forward_hook(_let_go, always_call=True)
    node.not_moved = frozenset(layers)


def _called(node: Frozen) -> list[nn.Module]:
    """Return the modules with weights that a frozen network calls, found by running it on a zero image."""
    called: dict[nn.Module, None] = {}
    with_weights = [m for m in node.network.modules() if [*m.parameters(recurse=False), *m.buffers(recurse=False)]]
    handles = [
        module.register_forward_pre_hook(lambda module, arguments: called.setdefault(module)) for module in with_weights
    ]
    spec, zero = node.network.spec, torch.zeros(1, dtype=torch.long)
    node(Batch(torch.zeros(1, spec.channels, spec.image_size, spec.image_size), zero, zero), {})
    for handle in handles:
        handle.remove()
    return list(called)


def _bring(layer: nn.Module, arguments: tuple[Any, ...]) -> None:
    layer._home = dict(layer._parameters), dict(layer._buffers)  # type: ignore[assignment]
    for tensors in (layer._parameters, layer._buffers):
        for name, tensor in tensors.items():
            if tensor is not None:
                tensors[name] = tensor.to(arguments[0].device, non_blocking=True)  # type: ignore[assignment]


def _let_go(layer: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
    parameters, buffers = layer._home  # type: ignore[misc]
    layer._parameters.update(parameters)
    layer._buffers.update(buffers)
