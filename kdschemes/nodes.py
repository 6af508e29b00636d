"""Nodes: who produces outputs. Each maps a batch, and the outputs so far, to one or more named outputs."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from kdschemes.distributed import gather
from kdschemes.losses.modules import Loss
from kdschemes.models import Branch, ExitNetwork, StagedNetwork, Trunk
from kdschemes.outputs import Batch, Output, Outputs
from kdschemes.task import Task

if TYPE_CHECKING:
    from kdschemes.teacher_cache import TeacherCache

Predict = Callable[[Batch, Iterable[str]], Outputs]
"""Gives the named outputs of a batch."""


class Node(nn.Module):
    """Produces the outputs named in `provides`, from the batch and the outputs named in `reads`."""

    companions: tuple[str, ...] = ()
    """The companions of a batch that the node looks at (`Batch.companions`)."""
    samples: Mapping[str, str] = {}
    """By output, the companion whose samples it answers, where these are not the batch's own."""
    alike: tuple[str, ...] = ()
    """Buffers that every process updates in the same way, so that they need not be sent from one to the others."""
    resting: bool = False
    """Whether the node's weights skip this optimizer step; set in its forward pass, the same on all processes."""

    def __init__(self, provides: Sequence[str], reads: Sequence[str] = ()) -> None:
        super().__init__()
        self.provides = tuple(provides)
        self.reads = tuple(reads)

    def forward(self, batch: Batch, outputs: Mapping[str, Output]) -> Outputs:
        """Return this node's outputs."""
        raise NotImplementedError

    def after_step(self) -> None:
        """Follow the optimizer's step (a moving average, a snapshot)."""

    def before_epoch(self, predict: Predict, held_out: Callable[[], Iterable[Batch]]) -> None:
        """Look, before an epoch's first step, at what `predict` answers to the validation split.

        `held_out()` gives this process's share of it; a node that looks must come to the same state on every process.
        """

    def plain_network(self, head: str) -> StagedNetwork | None:
        """Return the network that gives `head` at inference, or None where it is not one plain network."""
        return None

    def live_network(self, head: str) -> StagedNetwork | None:
        """Return the very network that gives `head` in training, or None where it is not one network by itself."""
        return None

    def keep_preactivations(self) -> None:
        """Give `Output.preactivations` from now on, where there are any."""


class Network(Node):
    """A trained network; its output is called `name`. `view` names the companion that it sees in training."""

    def __init__(self, name: str, network: StagedNetwork, view: str | None = None) -> None:
        super().__init__([name])
        self.network = network
        self.view = view
        self.companions = () if view is None else (view,)
        self.preactivations = False

    def forward(self, batch: Batch, outputs: Mapping[str, Output]) -> Outputs:
        return {self.provides[0]: _answer(self.network, batch.companion(self.view), self.preactivations)}

    def plain_network(self, head: str) -> StagedNetwork:
        return self.network

    def live_network(self, head: str) -> StagedNetwork:
        return self.network

    def keep_preactivations(self) -> None:
        self.preactivations = True


class NetworkWithExits(Node):
    """A trained network `name` with exits `name/exit1` (shallowest) to `name/exitK`.

    An exit's only feature is called `exit`: the map that it classifies.
    """

    def __init__(self, name: str, network: ExitNetwork) -> None:
        super().__init__([name, *(f"{name}/{exit_name}" for exit_name in network.exit_stages)])
        self.network = network
        self.preactivations = False

    def forward(self, batch: Batch, outputs: Mapping[str, Output]) -> Outputs:
        name = self.provides[0]
        produced = {name: _answer(self.network.network, batch, self.preactivations)}
        exits = self.network.classify_exits(produced[name].features)
        for exit_name, (exit_logits, exit_feature) in exits.items():
            produced[f"{name}/{exit_name}"] = Output(exit_logits, {"exit": exit_feature})
        return produced

    def plain_network(self, head: str) -> StagedNetwork | None:
        return self.network.network if head == self.provides[0] else None

    def live_network(self, head: str) -> StagedNetwork | None:
        return self.plain_network(head)

    def keep_preactivations(self) -> None:
        self.preactivations = True


class LossHead(Node):
    """The further output that a loss gives rise to, from the features of the student that it teaches.

    The loss itself, and so its projections, belong to the term that holds it; `producer` is the student's node.
    """

    def __init__(self, source: str, loss: Loss[Any], producer: Node) -> None:
        assert loss.head is not None
        super().__init__([f"{source}/{loss.head}"], reads=[source])
        self._loss = [loss]
        self._producer = [producer]

    def forward(self, batch: Batch, outputs: Mapping[str, Output]) -> Outputs:
        return {self.provides[0]: Output(self._loss[0].classify(outputs[self.reads[0]].features))}

    def plain_network(self, head: str) -> StagedNetwork | None:
        network = self._producer[0].plain_network(self.reads[0])
        return None if network is None else self._loss[0].recombined(network)


class SharedStem(Node):
    """One trained trunk, a branch a peer. The trunk learns from every peer's terms: its gradient is their sum.

    `views` name the companion that each peer sees in training (None: the batch itself); the trunk then runs once, on
    all views together. `stem_gradient` multiplies the gradient that reaches the trunk.
    """

    def __init__(
        self,
        names: Sequence[str],
        trunk: Trunk,
        branches: Sequence[Branch],
        template: StagedNetwork,
        *,
        views: Sequence[str | None] | None = None,
        stem_gradient: float = 1.0,
    ) -> None:
        super().__init__(names)
        self.trunk = trunk
        self.branches = nn.ModuleList(branches)
        self.views = tuple(views) if views is not None else (None,) * len(branches)
        self.companions = tuple(view for view in self.views if view is not None)
        self.stem_gradient = stem_gradient
        self._template = [copy.deepcopy(template).to("meta")]

    def forward(self, batch: Batch, outputs: Mapping[str, Output]) -> Outputs:
        return self.answers(self.stems(batch))

    def answers(self, stems: Sequence[tuple[Tensor, Mapping[str, Tensor]]]) -> Outputs:
        """Return the peers' outputs from what `stems` gives."""
        produced = {}
        for name, branch, (stem, features) in zip(self.provides, self.branches, stems, strict=False):
            logits, deeper = branch(stem)
            produced[name] = Output(logits, {**features, **deeper})
        return produced

    def stems(self, batch: Batch) -> list[tuple[Tensor, dict[str, Tensor]]]:
        """Return what each branch reads and the features of the trunk's stages, of the peer's view."""
        seen = list(dict.fromkeys(self.views)) if batch.companions else [None]
        stem, features = self.trunk(torch.cat([batch.companion(view).images for view in seen]))
        if self.stem_gradient != 1.0:
            stem = _ScaleGradient.apply(stem, self.stem_gradient)
            features = {name: _ScaleGradient.apply(f, self.stem_gradient) for name, f in features.items()}
        parts = [{name: f.chunk(len(seen))[k] for name, f in features.items()} for k in range(len(seen))]
        by_view = dict(zip(seen, zip(stem.chunk(len(seen)), parts, strict=True), strict=True))
        return [by_view[view if batch.companions else None] for view in self.views]

    def plain_network(self, head: str) -> StagedNetwork | None:
        branch = self.branches[self.provides.index(head)]
        return filled(self._template[0], self.trunk.state_dict() | branch.state_dict()).train(self.training)


class Frozen(Node):
    """A teacher: no gradient, always in evaluation mode, in no state dict and no DDP bucket, but it follows `.to()`.

    `stays` are the modules of its network that do not follow. With `bf16` it computes in bfloat16 and answers in
    float32. With a `cache` it answers training batches by what is stored there. The same batch (the object itself) is
    answered once: asked again, also as another node that shares its answers, it gives what it gave.
    """

    def __init__(self, name: str, network: StagedNetwork) -> None:
        super().__init__([name])
        self._hidden = [network.eval().requires_grad_(False)]
        self._shared = _Answer()
        self.stays: frozenset[nn.Module] = frozenset()
        self.bf16 = False
        self.cache: TeacherCache | None = None

    @property
    def network(self) -> StagedNetwork:
        """The frozen network."""
        return self._hidden[0]

    @property
    def preactivations(self) -> bool:
        """Whether it gives `Output.preactivations`."""
        return self._shared.preactivations

    @property
    def latency_ms(self) -> float | None:
        """The milliseconds that the network takes for one image, once they were measured."""
        return self._shared.latency_ms

    @latency_ms.setter
    def latency_ms(self, milliseconds: float) -> None:
        self._shared.latency_ms = milliseconds

    def _apply(self, fn, recurse: bool = True):  # type: ignore[no-untyped-def]
        for module in self.network.modules():
            if module not in self.stays:
                module._apply(fn, recurse=False)  # type: ignore[no-untyped-call]
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def forward(self, batch: Batch, outputs: Mapping[str, Output]) -> Outputs:
        shared = self._shared
        if shared.batch is not batch or shared.output is None:
            cache = self.cache if batch.epoch is not None else None
            shared.output = self.compute(batch) if cache is None else cache.answer(batch)
            shared.batch = batch
        return {self.provides[0]: shared.output}

    @torch.no_grad()
    def compute(self, batch: Batch) -> Output:
        """Return what the network itself says of a batch."""
        if not self.bf16:
            return _answer(self.network, batch, self.preactivations)
        with torch.autocast(batch.images.device.type, torch.bfloat16):
            return _answer(self.network, batch, self.preactivations).float()

    def share_answers(self, other: Frozen) -> None:
        """Answer as `other` does, which holds an equal network, from now on: this one's own weights are let go."""
        other._shared.preactivations |= self._shared.preactivations
        self._hidden, self._shared, self.stays = other._hidden, other._shared, other.stays
        if self.cache is not None and other.cache is not None:
            other.cache.wanted |= self.cache.wanted
        self.cache = other.cache

    def answers_as(self, other: Frozen) -> bool:
        """Return whether the networks of both are equal, structure and tensors, and have the same cache or none."""
        if self.cache is None or other.cache is None:
            same_cache = self.cache is other.cache
        else:
            same_cache = self.cache.fits(other.cache)
        if not same_cache or self.bf16 != other.bf16 or repr(self.network) != repr(other.network):
            return False
        own, others = self.network.state_dict(), other.network.state_dict()
        return own.keys() == others.keys() and all(torch.equal(own[name], others[name]) for name in own)

    def plain_network(self, head: str) -> StagedNetwork:
        return self.network

    def live_network(self, head: str) -> StagedNetwork:
        return self.network

    def keep_preactivations(self) -> None:
        self._shared.preactivations = True


@dataclass
class _Answer:
    """What frozen nodes of one network share: the last batch and its answer, and what was asked or measured of it."""

    batch: Batch | None = None
    output: Output | None = None
    preactivations: bool = False
    latency_ms: float | None = None


class Ema(Node):
    """A moving average of another node: `w <- decay * w + (1 - decay) * w_source` after each step.

    It provides what its source does, in the views that its source sees, each output under its name in `names`. Batch
    norm's statistics are averaged like the weights that they belong to; counts are copied. It has no gradient, stays
    in evaluation mode and is checkpointed. With `warm_up` the decay after step t = 1, 2, ... is 1 - 1 / (t + 1) until
    that is more than `decay` (Tarvainen & Valpola 2017).
    """

    steps: Tensor | None

    def __init__(self, source: Node, names: Mapping[str, str], decay: float, *, warm_up: bool = False) -> None:
        super().__init__([names[output] for output in source.provides])
        self._source = [source]
        self._original = dict(zip(self.provides, source.provides, strict=True))
        self.companions = source.companions
        self.decay = decay
        self.register_buffer("steps", torch.zeros(()) if warm_up else None)
        if warm_up:
            self.alike = ("steps",)
        self.average: Node = copy.deepcopy(source).requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Ema:
        super().train(mode)
        self.average.eval()
        return self

    @torch.no_grad()
    def forward(self, batch: Batch, outputs: Mapping[str, Output]) -> Outputs:
        produced = self.average(batch, outputs)
        return {name: produced[original] for name, original in self._original.items() if original in produced}

    @torch.no_grad()
    def after_step(self) -> None:
        source = self._source[0]
        rate: float | Tensor = 1.0 - self.decay
        if self.steps is not None:
            self.steps += 1
            rate = (1.0 / (self.steps + 1.0)).clamp(min=rate)
        averages = itertools.chain(self.average.parameters(), self.average.buffers())
        values = itertools.chain(source.parameters(), source.buffers())
        for average, value in zip(averages, values, strict=True):
            if average.is_floating_point():
                average.lerp_(value, rate if isinstance(rate, float) else rate.to(average.dtype))
            else:
                average.copy_(value)

    def plain_network(self, head: str) -> StagedNetwork | None:
        return self.average.plain_network(self._original[head])

    def live_network(self, head: str) -> StagedNetwork | None:
        return self.average.live_network(self._original[head])

    def keep_preactivations(self) -> None:
        self.average.keep_preactivations()


class Memory(Node):
    """What a network answered each training sample when it was last trained on it: predictions of the epoch before.

    `name` holds the remembered logits of the batch's samples, constants, `known` where there are any. In training the
    answers of `source` are remembered after the optimizer's step, those of all processes on each process. It holds 4
    bytes for each class of each position of the training array (`size`), on the device and in checkpoints.

    Args:
        name: the output.
        source: the output that is remembered.
        task: the training samples and their classes.
        prior: logits that are answered, as known, for the samples not seen yet, a row each position; None: unknown.
    """

    alike = ("logits", "known")
    logits: Tensor
    known: Tensor

    def __init__(self, name: str, source: str, task: Task, prior: Float[Tensor, "positions classes"] | None = None):
        super().__init__([name], reads=[source])
        assert task.train_labels is not None, "a memory of predictions needs the training samples"
        positions = len(task.train_labels)
        self.register_buffer("logits", torch.zeros(positions, task.num_classes) if prior is None else prior.clone())
        self.register_buffer("known", torch.full((positions,), prior is not None))
        self._new: list[tuple[Tensor, Tensor]] = []

    @property
    def size(self) -> int:
        """The bytes that the memory takes, on each process."""
        return sum(buffer.numel() * buffer.element_size() for buffer in (self.logits, self.known))

    @torch.no_grad()
    def forward(self, batch: Batch, outputs: Mapping[str, Output]) -> Outputs:
        if self.training:
            self._new.append(answers_of_all(batch, outputs[self.reads[0]], self.logits.dtype))
        return {self.provides[0]: Output(self.logits[batch.index], known=self.known[batch.index])}

    @torch.no_grad()
    def after_step(self) -> None:
        for index, logits in self._new:
            self.logits[index] = logits
            self.known[index] = True
        self._new.clear()


class Ensemble(Node):
    """The weighted mean of the logits of other outputs, in float32 at least; it has no features."""

    def __init__(self, name: str, members: Sequence[str], weights: Sequence[float] | None = None) -> None:
        super().__init__([name], reads=members)
        weights = weights if weights is not None else [1.0] * len(members)
        self.weights = tuple(weight / sum(weights) for weight in weights)

    def forward(self, batch: Batch, outputs: Mapping[str, Output]) -> Outputs:
        members = torch.stack([outputs[member].logits for member in self.reads])
        members = members.to(torch.promote_types(members.dtype, torch.float32))
        return {self.provides[0]: Output((members.new_tensor(self.weights)[:, None, None] * members).sum(0))}


class MeanOfProbabilities(Ensemble):
    """The weighted mean of the probabilities of other outputs, as logarithms, in float32 at least; no features."""

    def forward(self, batch: Batch, outputs: Mapping[str, Output]) -> Outputs:
        members = torch.stack([outputs[member].logits for member in self.reads])
        members = members.to(torch.promote_types(members.dtype, torch.float32))
        log_p = functional.log_softmax(members, dim=2)
        shares = log_p.new_tensor(self.weights).log()
        return {self.provides[0]: Output((shares[:, None, None] + log_p).logsumexp(dim=0))}


def answers_of_all(
    batch: Batch, output: Output, dtype: torch.dtype
) -> tuple[Int[Tensor, " all"], Float[Tensor, "all classes"]]:
    """Return the index and the logits of the micro-batch's samples of all processes, the same on each."""
    return gather(batch.index[:, None], batch).squeeze(1), gather(output.logits.detach().to(dtype), batch)


def filled(template: StagedNetwork, state: Mapping[str, Tensor]) -> StagedNetwork:
    """Return a network like one on the `meta` device, with this plain state, where the state is and of its type."""
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


def _answer(network: StagedNetwork, batch: Batch, preactivations: bool) -> Output:
    if preactivations:
        return Output(*network.forward_preactivations(batch.images))
    return Output(*network.forward_stages(batch.images))
