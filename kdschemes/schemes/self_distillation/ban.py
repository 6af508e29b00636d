"""Born-again networks: each generation is taught by the one before."""

from __future__ import annotations

from kdschemes.config import Config
from kdschemes.core.distillation import Distillation
from kdschemes.core.frozen import Frozen
from kdschemes.core.nodes import Node, ProbabilityEnsemble
from kdschemes.core.types import DataSpec
from kdschemes.schemes.self_distillation.generations import generation_network, taught_by_generations


def ban(config: Config, data_spec: DataSpec) -> Distillation:
    """Return (1 - alpha) CE + alpha response(generation k - 1 -> generation k), k = `scheme.generations`.

    Generation 0 is the supervised run; each generation has its own initial weights. The ensemble of generations 1 to k
    is a second head; it and the generations before the teacher only run in evaluation.
    """
    last = config.scheme.generations
    earlier = range(1, last) if last > 1 else range(1)
    names = [*(f"generation{number}" for number in earlier[:-1]), "teacher"]
    nodes: dict[str, Node] = {
        name: Frozen(name, generation_network(config, data_spec, place, number))
        for place, (number, name) in enumerate(zip(earlier, names, strict=True))
    }
    heads = ["student"]
    if last > 1:
        heads.append("ensemble")
        nodes["ensemble"] = ProbabilityEnsemble("ensemble", [*names, "student"])
    return taught_by_generations(config, data_spec, nodes, heads, last)
