"""The inference cost of each head: parameters, MACs, and latency."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

from kdschemes.core.distillation import Distillation
from kdschemes.core.frozen import Frozen
from kdschemes.core.nodes import LossHead, NetworkWithExits
from kdschemes.core.types import Batch, Outputs
from kdschemes.data import DataModule
from kdschemes.distributed.collectives import rank
from kdschemes.evaluation.evaluate import evaluation_mode
from kdschemes.evaluation.latency import latencies, single_images
from kdschemes.models import (
    EarlyExit,
    ExitNetwork,
    count_exit_macs,
    count_macs,
    count_parameters,
)
from kdschemes.models.cost import macs_of, probing
from kdschemes.models.exits import stop_at


def training_macs(scheme: Distillation, channels: int, image_size: int) -> int:
    """Return the MACs of training on one image: 3 times the forward pass of trained nodes, 1 time that of the others.

    A backward pass counts as two forward passes, and each phase counts fully. Projections of losses are not included.
    """
    total = 0
    with probing(scheme, channels, image_size, batch=1) as image:
        index = torch.zeros(1, dtype=torch.long, device=image.device)
        batch = Batch(image, index, index)
        batch = replace(batch, aux_batches=dict.fromkeys(scheme.aux_batches, batch))
        outputs: Outputs = {}
        for node in scheme.needed({name for term in scheme.terms for name in term.reads}):  # type: ignore[union-attr]
            macs = macs_of(lambda _, node=node: outputs.update(node(batch, outputs)), image)
            total += macs * (3 if any(p.requires_grad for p in node.parameters()) else 1)
    return total * max(1, len(scheme.phases))


def head_latencies(scheme: Distillation, data: DataModule, check: Callable[[], None]) -> dict[str, float]:
    """Return each head's median inference latency for one test image in milliseconds, measured in turns.

    Latencies depend on this machine and its current load: they compare heads of one run, not runs. A frozen network
    shared by several schemes is measured once. All processes must call this: the main process measures, the others
    return nothing; `check` is called on all before each image.
    """
    if not data.sizes["test"]:
        return {}
    predictors: dict[str, Callable[[Tensor], object]] = {}
    frozen: dict[str, Frozen] = {}
    for head in (*scheme.heads, *((scheme.teacher,) if scheme.teacher else ())):
        node = scheme.node_of(head)
        if isinstance(node, Frozen):
            frozen[head] = node
        predictors[head] = _inference(scheme, head)
    known = {head: node.latency_ms for head, node in frozen.items() if node.latency_ms is not None}
    with evaluation_mode(scheme):
        for predictor in predictors.values():
            if isinstance(predictor, nn.Module):
                predictor.eval()
        unknown = {head: predictor for head, predictor in predictors.items() if head not in known and rank() == 0}
        measured = {head: median(times) for head, times in latencies(unknown, single_images(data), check).items()}
    for head in frozen.keys() & measured.keys():
        frozen[head].latency_ms = measured[head]
    return {head: (measured | known)[head] for head in predictors} if rank() == 0 else {}


def _inference(scheme: Distillation, head: str) -> Callable[[Tensor], object]:
    """Return the cheapest predictor of a head's output; for an exit, the network up to it, with the earlier exits."""
    node = scheme.node_of(head)
    if isinstance(node, NetworkWithExits) and head != node.provides[0]:
        return EarlyExit(node.network, stop_at(node.provides.index(head) - 1, len(node.provides)))
    plain = None if isinstance(node, Frozen) else node.inference_network(head)
    return plain if plain is not None else partial(_predict, scheme, head)


def _predict(scheme: Distillation, head: str, image: Tensor) -> object:
    index = torch.zeros(1, dtype=torch.long, device=image.device)
    return scheme.predict(Batch(image, index, index), [head])


def head_costs(scheme: Distillation, data: DataModule) -> dict[str, dict[str, int]]:
    """Return the parameters and the MACs per image that each head uses at inference.

    An exit counts itself and the stages before it; a head that is not a plain network (an ensemble), all that it needs.
    """
    heads = (*scheme.heads, *((scheme.teacher,) if scheme.teacher else ()))
    return {head: _cost(scheme, head, data) for head in heads}


def _cost(scheme: Distillation, head: str, data: DataModule) -> dict[str, int]:
    node = scheme.node_of(head)
    if isinstance(node, NetworkWithExits) and head != node.provides[0]:
        return _exit_cost(node.network, head.rpartition("/")[2], data)
    plain = node.inference_network(head)
    if plain is None:
        with probing(scheme, data.channels, data.image_size, batch=1) as image:
            index = torch.zeros(1, dtype=torch.long, device=image.device)
            macs = macs_of(lambda x: scheme.predict(Batch(x, index, index), [head]), image)
        return {"parameters": sum(count_parameters(n) for n in _members(scheme, head)), "macs": macs}
    if isinstance(node, LossHead):
        return {"parameters": _used(plain, plain, data), "macs": count_macs(plain, data.channels, data.image_size)}
    return {"parameters": count_parameters(plain), "macs": count_macs(plain, data.channels, data.image_size)}


def _members(scheme: Distillation, head: str) -> list[nn.Module]:
    """Return the modules that a head runs at inference."""
    return [node.network if isinstance(node, Frozen) else node for node in scheme.needed([head])]


def _exit_cost(network: ExitNetwork, name: str, data: DataModule) -> dict[str, int]:
    macs = count_exit_macs(network, data.channels, data.image_size)[name]
    return {"parameters": _used(network, lambda image: network.forward_until_exit(image, name), data), "macs": macs}


def _used(network: nn.Module, predictor: Callable[[Tensor], Tensor], data: DataModule) -> int:
    """Return the number of a network's parameters that an output depends on; all frozen ones count."""
    trained = [p for p in network.parameters() if p.requires_grad]
    with probing(network, data.channels, data.image_size, batch=1) as image, torch.enable_grad():
        gradients = torch.autograd.grad(predictor(image).sum(), trained, allow_unused=True)
    unused = sum(p.numel() for p, gradient in zip(trained, gradients, strict=True) if gradient is None)
    return count_parameters(network) - unused


def peak_memory(device: torch.device) -> int:
    """Return the peak memory of this process in bytes: tensors on a GPU, resident memory on CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")  # Linux: getrusage would include the launcher's memory before exec
    if status.exists():
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit
