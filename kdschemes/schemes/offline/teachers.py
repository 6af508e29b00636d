"""The frozen teachers of an offline scheme."""

from __future__ import annotations

from dataclasses import dataclass

from kdschemes.config import Config
from kdschemes.core.frozen import Frozen
from kdschemes.core.nodes import Ensemble, Node
from kdschemes.core.types import DataSpec
from kdschemes.schemes.distill import Edge, soft_weight
from kdschemes.schemes.networks import teacher_network


@dataclass(frozen=True)
class Teachers:
    """The teachers' nodes by name, the frozen networks in order, and each one's share in their mean.

    The output `teacher` is the only teacher, or the weighted mean of the logits of `teacher0`, `teacher1`, ...
    """

    nodes: dict[str, Node]
    frozen: list[Frozen]
    shares: list[float]

    @property
    def names(self) -> list[str]:
        return [node.provides[0] for node in self.frozen]

    def edges(self, response: str, alpha: float) -> list[Edge]:
        """Return the edges to the student: logits from the output `response`, features from each teacher."""
        if self.names == [response]:
            return [Edge(response, "student", response=alpha)]
        mean = Edge(response, "student", response=alpha, feature=None, relation=None)
        pairs = zip(self.names, self.shares, strict=True)
        return [mean, *(Edge(name, "student", response=None, feature=share, relation=share) for name, share in pairs)]


def build_teachers(config: Config, data_spec: DataSpec) -> Teachers:
    count = len(config.teacher.name) if isinstance(config.teacher.name, list) else 1
    weights = config.teacher.weights or [1.0] * count
    names = ["teacher"] if count == 1 else [f"teacher{k}" for k in range(count)]
    view = None if config.teacher.view == "student" else config.teacher.view
    frozen = [Frozen(name, teacher_network(config, data_spec, number), view) for number, name in enumerate(names)]
    nodes: dict[str, Node] = {node.provides[0]: node for node in frozen}
    if count > 1:
        nodes["teacher"] = Ensemble("teacher", names, weights)
    return Teachers(nodes, frozen, [weight / sum(weights) for weight in weights])


def soft_and_hard(config: Config) -> tuple[float, float]:
    """Return the weights of the soft and the hard term from `scheme.alpha` and `scheme.ce_weight`.

    Without a response loss, they are 0 and (by default) 1.
    """
    alpha = soft_weight(config)
    return alpha, 1.0 - alpha if config.scheme.ce_weight is None else config.scheme.ce_weight
