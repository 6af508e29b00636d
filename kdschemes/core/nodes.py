"""Nodes: each maps a batch, and the outputs so far, to one or more named outputs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdschemes.core.loss import Loss
from kdschemes.core.types import Batch, Output, Outputs
from kdschemes.models import Branch, ExitNetwork, StagedNetwork, Trunk, scales_by_stage

Predict = Callable[[Batch, Iterable[str]], Outputs]
"""Returns the named outputs for a batch."""


class Node(nn.Module):
    """Produces the outputs named in `provides`, from the batch and the outputs named in `reads`."""

    aux_batches: tuple[str, ...] = ()
    """The auxiliary batches that the node reads (`Batch.aux_batches`)."""
    output_batches: Mapping[str, str] = {}
    """The auxiliary batch that an output is computed on, by output; those not listed are computed on the batch."""
    replicated_buffers: tuple[str, ...] = ()
    """Buffers that every process updates identically, so that they need not be broadcast."""
    skips_updates: bool = False
    """Whether the node's weights skip some optimizer steps."""
    skip_update: bool = False
    """Whether the node's weights skip this optimizer step; set in its forward pass, the same on all processes."""

    def __init__(self, provides: Sequence[str], reads: Sequence[str] = ()) -> None:
        super().__init__()
        self.provides = tuple(provides)
        self.reads = tuple(reads)

    def forward(self, batch: Batch, outputs: Mapping[str, Output]) -> Outputs:
        """Return this node's outputs."""
        raise NotImplementedError

    def stages_read(self, output: str) -> list[str] | None:
        """Return the stages of an output whose features the node reads; None if unknown."""
        return None if output in self.reads else []

    def after_step(self) -> None:
        """Update state after the optimizer step (a moving average, a prediction bank)."""

    def before_epoch(self, epoch: int, predict: Predict, held_out: Callable[[], Iterable[Batch]]) -> None:
        """Update state before the first step of `epoch` (from 0), by the outputs of `predict` on the validation split.

        `held_out()` yields this process's share of the split; the new state must be the same on every process. A run
        that is stopped before the epoch's first step calls this again when it resumes: the state must be the same then.
        """

    def inference_network(self, head: str) -> StagedNetwork | None:
        """Return the network that computes `head` at inference, or None if it is not a single plain network."""
        return None

    def training_network(self, head: str) -> StagedNetwork | None:
        """Return the network object that computes `head` in training, or None if it is not a single network."""
        return None

    def lr_scales(self, decay: float) -> dict[nn.Parameter, float]:
        """Return `decay`^k for the parameters of networks, k layers before the classifier; exits have none: 1.

        Raises:
            UserError: a network has no stages.
        """
        networks = [module for module in self.modules() if isinstance(module, StagedNetwork)]
        return {parameter: scale for network in networks for parameter, scale in network.lr_scales(decay).items()}

    def keep_preactivations(self) -> None:
        """Include `Output.preactivations` in outputs from now on."""


class Network(Node):
    """A trained network with the output `name`. `view` is the auxiliary batch that it sees in training."""

    def __init__(self, name: str, network: StagedNetwork, view: str | None = None) -> None:
        super().__init__([name])
        self.network = network
        self.view = view
        self.aux_batches = () if view is None else (view,)
        self.preactivations = False

    def forward(self, batch: Batch, outputs: Mapping[str, Output]) -> Outputs:
        return {self.provides[0]: forward_network(self.network, batch.aux_batch(self.view), self.preactivations)}

    def inference_network(self, head: str) -> StagedNetwork:
        return self.network

    def training_network(self, head: str) -> StagedNetwork:
        return self.network

    def keep_preactivations(self) -> None:
        self.preactivations = True


class NetworkWithExits(Node):
    """A trained network `name` with exits `name/exit1` (shallowest) to `name/exitK`.

    An exit's only feature, `exit`, is the map that it classifies.
    """

    def __init__(self, name: str, network: ExitNetwork) -> None:
        super().__init__([name, *(f"{name}/{exit_name}" for exit_name in network.exit_stages)])
        self.network = network
        self.preactivations = False

    def forward(self, batch: Batch, outputs: Mapping[str, Output]) -> Outputs:
        name = self.provides[0]
        produced = {name: forward_network(self.network.network, batch, self.preactivations)}
        exits = self.network.classify_exits(produced[name].features)
        for exit_name, (exit_logits, exit_feature) in exits.items():
            produced[f"{name}/{exit_name}"] = Output(exit_logits, {"exit": exit_feature})
        return produced

    def inference_network(self, head: str) -> StagedNetwork | None:
        return self.network.network if head == self.provides[0] else None

    def training_network(self, head: str) -> StagedNetwork | None:
        return self.inference_network(head)

    def keep_preactivations(self) -> None:
        self.preactivations = True


class LossHead(Node):
    """The additional output that a loss computes from the student's features.

    The loss and its projections belong to the term that holds it; `producer` is the student's node.
    """

    def __init__(self, source: str, loss: Loss[Any], producer: Node) -> None:
        assert loss.head is not None
        super().__init__([f"{source}/{loss.head}"], reads=[source])
        self._loss = [loss]
        self._producer = [producer]

    def forward(self, batch: Batch, outputs: Mapping[str, Output]) -> Outputs:
        return {self.provides[0]: Output(self._loss[0].classify(outputs[self.reads[0]].features))}

    def inference_network(self, head: str) -> StagedNetwork | None:
        network = self._producer[0].inference_network(self.reads[0])
        return None if network is None else self._loss[0].recombined(network)


class SharedTrunk(Node):
    """One trained trunk with one branch per peer. The trunk's gradient is the sum over all peers' terms.

    `views` are the auxiliary batches that the peers see in training (None: the batch itself); the trunk runs once on
    all views together. `trunk_gradient` is a factor on the gradient that reaches the trunk.
    """

    def __init__(
        self,
        names: Sequence[str],
        trunk: Trunk,
        branches: Sequence[Branch],
        template: StagedNetwork,
        *,
        views: Sequence[str | None] | None = None,
        trunk_gradient: float = 1.0,
    ) -> None:
        super().__init__(names)
        self.trunk = trunk
        self.branches = nn.ModuleList(branches)
        self.views = tuple(views) if views is not None else (None,) * len(branches)
        self.aux_batches = tuple(view for view in self.views if view is not None)
        self.trunk_gradient = trunk_gradient
        self._template = [copy.deepcopy(template).to("meta")]

    def forward(self, batch: Batch, outputs: Mapping[str, Output]) -> Outputs:
        return self.branch_outputs(self.trunk_outputs(batch))

    def branch_outputs(self, stems: Sequence[tuple[Tensor, Mapping[str, Tensor]]]) -> Outputs:
        """Return the peers' outputs, given the result of `trunk_outputs`."""
        produced = {}
        for name, branch, (stem, features) in zip(self.provides, self.branches, stems, strict=False):
            logits, deeper = branch(stem)
            produced[name] = Output(logits, {**features, **deeper})
        return produced

    def trunk_outputs(self, batch: Batch) -> list[tuple[Tensor, dict[str, Tensor]]]:
        """Return each branch's input and the features of the trunk's stages, for the peer's view."""
        seen = list(dict.fromkeys(self.views)) if batch.aux_batches else [None]
        stem, features = self.trunk(torch.cat([batch.aux_batch(view).images for view in seen]))
        if self.trunk_gradient != 1.0:
            stem = _ScaleGradient.apply(stem, self.trunk_gradient)
            features = {name: _ScaleGradient.apply(f, self.trunk_gradient) for name, f in features.items()}
        parts = [{name: f.chunk(len(seen))[k] for name, f in features.items()} for k in range(len(seen))]
        by_view = dict(zip(seen, zip(stem.chunk(len(seen)), parts, strict=True), strict=True))
        return [by_view[view if batch.aux_batches else None] for view in self.views]

    def lr_scales(self, decay: float) -> dict[nn.Parameter, float]:
        deepest = max(len(branch.stage_names) for branch in self.branches)  # type: ignore[arg-type]
        scales = scales_by_stage(self.trunk, self.trunk.stage_names, (), decay, below=deepest)
        for branch in self.branches:
            scales |= scales_by_stage(branch, branch.stage_names, ("fc",), decay)  # type: ignore[arg-type]
        return scales

    def inference_network(self, head: str) -> StagedNetwork | None:
        branch = self.branches[self.provides.index(head)]
        return materialize(self._template[0], self.trunk.state_dict() | branch.state_dict()).train(self.training)


class Ensemble(Node):
    """The weighted mean of the logits of other outputs, in float32 or higher; it has no features."""

    def __init__(self, name: str, members: Sequence[str], weights: Sequence[float] | None = None) -> None:
        super().__init__([name], reads=members)
        weights = weights if weights is not None else [1.0] * len(members)
        self.weights = tuple(weight / sum(weights) for weight in weights)

    def stages_read(self, output: str) -> list[str]:
        return []

    def forward(self, batch: Batch, outputs: Mapping[str, Output]) -> Outputs:
        members = torch.stack([outputs[member].logits for member in self.reads])
        members = members.to(torch.promote_types(members.dtype, torch.float32))
        return {self.provides[0]: Output((members.new_tensor(self.weights)[:, None, None] * members).sum(0))}


class ProbabilityEnsemble(Ensemble):
    """The log of the weighted mean of the probabilities of other outputs, in float32 or higher; no features."""

    def forward(self, batch: Batch, outputs: Mapping[str, Output]) -> Outputs:
        members = torch.stack([outputs[member].logits for member in self.reads])
        members = members.to(torch.promote_types(members.dtype, torch.float32))
        log_p = functional.log_softmax(members, dim=2)
        shares = log_p.new_tensor(self.weights).log()
        return {self.provides[0]: Output((shares[:, None, None] + log_p).logsumexp(dim=0))}


def materialize(template: StagedNetwork, state: Mapping[str, Tensor]) -> StagedNetwork:
    """Return a copy of a network on the `meta` device with this plain state, on the state's device and in its dtype."""
    some = next(value for value in state.values() if value.is_floating_point())
    network = copy.deepcopy(template).to_empty(device=some.device).to(some.dtype)
    network.load_plain_state(state)
    return network


class _ScaleGradient(torch.autograd.Function):
    """The identity, whose gradient is multiplied by a factor."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, value: Tensor, factor: float) -> Tensor:
        ctx.factor = factor  # type: ignore[attr-defined]
        return value.view_as(value)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.factor, None  # type: ignore[attr-defined]


def forward_network(network: StagedNetwork, batch: Batch, preactivations: bool) -> Output:
    """Return a network's output for a batch, optionally with the maps before each stage's last ReLU."""
    if preactivations:
        return Output(*network.forward_preactivations(batch.images))
    return Output(*network.forward_stages(batch.images))
