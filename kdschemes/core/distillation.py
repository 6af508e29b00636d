"""A scheme at runtime: nodes produce outputs, terms turn them into losses, and training minimizes the weighted sum."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from torch import Tensor, nn

from kdschemes.core.nodes import Node
from kdschemes.core.terms import Term, Transfer
from kdschemes.core.types import Batch, Output, Outputs, Progress, StepResult
from kdschemes.distributed.collectives import world_size


class Distillation(nn.Module):
    """The weighted sum of the terms over the outputs of the nodes.

    Args:
        nodes: by name, in execution order; later nodes may read the outputs of earlier ones.
        terms: all are computed at every step, even with weight 0 (DDP waits for their parameters).
        heads: the outputs to evaluate, the primary head first.
        teacher: the output that heads are compared with (agreement, KL), if any.
        peers: heads of equal rank, whose mean is reported as well.
        lr_multipliers: learning-rate factors by node, 1 by default.
        phases: groups of nodes that step one after another; each phase recomputes everything with the weights
            updated by the phase before. Without phases, all nodes step together.
    """

    def __init__(
        self,
        nodes: Mapping[str, Node],
        terms: Sequence[Term],
        heads: Sequence[str],
        teacher: str | None = None,
        *,
        peers: Sequence[str] = (),
        lr_multipliers: Mapping[str, float] | None = None,
        phases: Sequence[Sequence[str]] = (),
    ) -> None:
        super().__init__()
        self.nodes = nn.ModuleDict(nodes)
        self.terms = nn.ModuleList(terms)
        self.heads = tuple(heads)
        self.teacher = teacher
        self.peers = tuple(peers)
        self.lr_multipliers = dict(lr_multipliers or {})
        self.phases = tuple(tuple(phase) for phase in phases)
        wanted_in_training = (node.aux_batches for node in nodes.values())
        self.aux_batches = tuple(sorted({name for names in wanted_in_training for name in names}))
        self._producer: dict[str, Node] = {output: node for node in nodes.values() for output in node.provides}
        self._producer_order = tuple(nodes.values())
        self._node_names: dict[Node, str] = {node: name for name, node in nodes.items()}
        wanted = {*heads, *((teacher,) if teacher else ()), *(name for term in terms for name in term.reads)}
        missing = wanted - set(self._producer)
        assert not missing, f"no node provides {sorted(missing)}; there are {sorted(self._producer)}"
        names = [term.name for term in terms]
        assert len(set(names)) == len(names), f"terms share a name: {names}"

    def forward(self, batch: Batch, progress: Progress, phase: int = 0) -> StepResult:
        """Return the loss of one micro-batch on this process; with phases, only of this phase's nodes.

        Each term is scaled so that gradient accumulation (sum over micro-batches) and DDP (mean over processes) yield
        the term over the whole optimizer step, however unevenly the samples are distributed.
        """
        outputs = self.predict(batch, {name for term in self._terms() for name in term.reads})
        total: Tensor | None = None
        losses, weights = {}, {}
        for term in self._terms():
            term.set_progress(progress)
            value = term(outputs, batch) * _share_of_step(term, batch)
            weight = term.weight(progress)
            if self.phases and self._node_names[self._producer[term.target]] not in self.phases[phase]:
                value, weight = 0.0 * value, 0.0
            total = weight * value if total is None else total + weight * value
            losses[term.name], weights[term.name] = value.detach(), weight
        assert total is not None, "a scheme needs at least one term"
        logits = {name: Output(output.logits.detach()) for name, output in outputs.items()}
        return StepResult(total, losses, weights, logits)

    def predict(self, batch: Batch, names: Iterable[str]) -> Outputs:
        """Run the nodes required for the named outputs, in order, and return all their outputs."""
        outputs: Outputs = {}
        for node in self.needed(names):
            outputs.update(node(batch, outputs))
        return outputs

    def needed(self, names: Iterable[str]) -> list[Node]:
        """Return the nodes required for the named outputs, in execution order."""
        found: set[Node] = set()
        todo = list(names)
        while todo:
            producer = self._producer[todo.pop()]
            if producer not in found:
                found.add(producer)
                todo.extend(producer.reads)
        return [node for node in self._producer_order if node in found]

    def after_step(self) -> None:
        for node in self.nodes.values():
            assert isinstance(node, Node)
            node.after_step()

    def before_epoch(self, epoch: int, held_out: Callable[[], Iterable[Batch]]) -> None:
        """Call every node's hook before the first step of `epoch`; `held_out()` yields the validation split."""
        for node in self.nodes.values():
            assert isinstance(node, Node)
            node.before_epoch(epoch, self.predict, held_out)

    def skipped_nodes(self, phase: int = 0) -> set[str]:
        """Return the nodes whose weights are not updated now: `skip_update` is set, or they are in another phase."""
        skipped = {name for name, node in self.nodes.items() if node.skip_update}
        return skipped | (set(self.nodes) - set(self.phases[phase]) if self.phases else set())

    def replicated_buffers(self) -> list[str]:
        """Return the names of the buffers that every process updates identically."""
        names = [f"nodes.{name}.{buffer}" for name, node in self.nodes.items() for buffer in node.replicated_buffers]  # type: ignore[union-attr]
        for number, term in enumerate(self._terms()):
            if isinstance(term, Transfer) and term.loss.has_memory_bank:
                names += [f"terms.{number}.loss.{name}" for name, _ in term.loss.named_buffers()]
        return names

    def with_nodes(self, nodes: Mapping[str, Node], heads: Sequence[str]) -> Distillation:
        """Return this scheme with additional nodes and heads, appended to the existing ones."""
        there: dict[str, Node] = dict(self.nodes.items())  # type: ignore[arg-type]
        return Distillation(
            there | dict(nodes),
            list(self._terms()),
            [*self.heads, *heads],
            self.teacher,
            peers=self.peers,
            lr_multipliers=self.lr_multipliers,
            phases=self.phases,
        )

    def node_of(self, output: str) -> Node:
        return self._producer[output]

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the trainable parameters by node; a term's projections belong to the node that it teaches."""
        groups: dict[str, list[nn.Parameter]] = {}
        for name, node in self.nodes.items():
            groups[name] = [p for p in node.parameters() if p.requires_grad]
        for term in self._terms():
            trained = [p for p in term.parameters() if p.requires_grad]
            groups[self._node_names[self._producer[term.target]]] += trained
        return {name: parameters for name, parameters in groups.items() if parameters}

    def lr_scales(self, decay: float) -> dict[nn.Parameter, float]:
        """Return the factor on the learning rate of the parameters of networks, by layer (`Node.lr_scales`)."""
        scales: dict[nn.Parameter, float] = {}
        for name in self.parameter_groups():
            scales |= self.nodes[name].lr_scales(decay)  # type: ignore[operator]
        return scales

    def _terms(self) -> Iterable[Term]:
        for term in self.terms:
            assert isinstance(term, Term)
            yield term


def _share_of_step(term: Term, batch: Batch) -> float:
    """Return the weight of a term's mean over the local samples within the optimizer step."""
    batches = term.batches(batch)
    step_size = sum(len(b) if b.step_size is None else b.step_size for b in batches)
    if step_size == 0:
        return 0.0
    if term.needs_global_batch:
        return sum(len(b) if b.micro_size is None else b.micro_size for b in batches) / step_size
    return sum(map(len, batches)) * world_size() / step_size
