"""A scheme at work: nodes produce outputs, terms consume them, and their weighted sum is what training lowers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from torch import Tensor, nn

from kdschemes.core.nodes import Node
from kdschemes.core.terms import Term, Transfer
from kdschemes.core.types import Batch, Output, Outputs, Progress, StepResult
from kdschemes.distributed.collectives import world_size


class Distillation(nn.Module):
    """Nodes, then terms, then the weighted sum.

    Args:
        nodes: by name, in the order in which they run; later ones may read earlier ones' outputs.
        terms: every one is computed at every step, also while its weight is 0 (DDP waits for its parameters).
        heads: the outputs that are evaluated, the reported one first.
        teacher: the output that heads are compared with (agreement, KL), if any.
        peers: the heads that are equals, whose mean is reported beside them.
        lr_multipliers: by node, what the learning rate is multiplied by; 1 elsewhere.
        phases: the nodes that step together, in their order: each phase computes everything anew, with the
            weights that the phase before has left. Without phases all nodes step at once.
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
        """Return the loss of one micro-batch on this process; with phases, of the nodes of this phase.

        Each term is scaled so that the sum over micro-batches and the mean over processes (what accumulation and DDP
        compute) is the term of the whole optimizer step, however unevenly the samples are spread.
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
        """Run the nodes that the named outputs need, in order, and return all their outputs."""
        outputs: Outputs = {}
        for node in self.needed(names):
            outputs.update(node(batch, outputs))
        return outputs

    def needed(self, names: Iterable[str]) -> list[Node]:
        """Return the nodes that the named outputs need, in the order in which they run."""
        found: set[Node] = set()
        todo = list(names)
        while todo:
            producer = self._producer[todo.pop()]
            if producer not in found:
                found.add(producer)
                todo.extend(producer.reads)
        return [node for node in self._producer_order if node in found]

    def after_step(self) -> None:
        """Let every node follow the optimizer's step."""
        for node in self.nodes.values():
            assert isinstance(node, Node)
            node.after_step()

    def before_epoch(self, held_out: Callable[[], Iterable[Batch]]) -> None:
        """Let every node look at the validation split before an epoch's first step."""
        for node in self.nodes.values():
            assert isinstance(node, Node)
            node.before_epoch(self.predict, held_out)

    def skipped_nodes(self, phase: int = 0) -> set[str]:
        """Return the nodes whose weights skip this step: those that skip it, and those of other phases."""
        skipped = {name for name, node in self.nodes.items() if node.skip_update}
        return skipped | (set(self.nodes) - set(self.phases[phase]) if self.phases else set())

    def replicated_buffers(self) -> list[str]:
        """Return the names of the buffers that every process updates in the same way."""
        names = [f"nodes.{name}.{buffer}" for name, node in self.nodes.items() for buffer in node.replicated_buffers]  # type: ignore[union-attr]
        for number, term in enumerate(self._terms()):
            if isinstance(term, Transfer) and term.loss.has_memory_bank:
                names += [f"terms.{number}.loss.{name}" for name, _ in term.loss.named_buffers()]
        return names

    def with_nodes(self, nodes: Mapping[str, Node], heads: Sequence[str]) -> Distillation:
        """Return this scheme with more nodes and heads, evaluated last."""
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
        """Return the node that provides an output."""
        return self._producer[output]

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the trained parameters by node; a term's projections are with the node that it teaches."""
        groups: dict[str, list[nn.Parameter]] = {}
        for name, node in self.nodes.items():
            groups[name] = [p for p in node.parameters() if p.requires_grad]
        for term in self._terms():
            trained = [p for p in term.parameters() if p.requires_grad]
            groups[self._node_names[self._producer[term.target]]] += trained
        return {name: parameters for name, parameters in groups.items() if parameters}

    def _terms(self) -> Iterable[Term]:
        for term in self.terms:
            assert isinstance(term, Term)
            yield term


def _share_of_step(term: Term, batch: Batch) -> float:
    """Return what a term's mean over its samples here counts within the optimizer step."""
    batches = term.batches(batch)
    step_size = sum(len(b) if b.step_size is None else b.step_size for b in batches)
    if step_size == 0:
        return 0.0
    if term.needs_global_batch:
        return sum(len(b) if b.micro_size is None else b.micro_size for b in batches) / step_size
    return sum(map(len, batches)) * world_size() / step_size
