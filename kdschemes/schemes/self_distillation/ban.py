"""A network is taught by earlier runs of its own kind."""

from __future__ import annotations

from kdschemes.config import Config
from kdschemes.core.distillation import Distillation
from kdschemes.core.frozen import Frozen
from kdschemes.core.nodes import Ensemble, MeanOfProbabilities, Network, Node
from kdschemes.core.types import Task
from kdschemes.models import StagedNetwork, load_weights
from kdschemes.schemes.distill import Edge, distill
from kdschemes.schemes.networks import student_network
from kdschemes.schemes.offline.teachers import soft_and_hard


def ban(config: Config, task: Task) -> Distillation:
    """Return (1 - alpha) CE + alpha response(generation k - 1 -> generation k), k = `scheme.generations`.

    Generation 0 is the supervised run; each generation starts from weights of its own. The ensemble of generations 1
    to k is a second head; it and the generations before the teacher run in evaluation only.
    """
    last = config.scheme.generations
    earlier = range(1, last) if last > 1 else range(1)
    names = [*(f"generation{number}" for number in earlier[:-1]), "teacher"]
    nodes: dict[str, Node] = {
        name: Frozen(name, _earlier_network(config, task, place, number))
        for place, (number, name) in enumerate(zip(earlier, names, strict=True))
    }
    heads = ["student"]
    if last > 1:
        heads.append("ensemble")
        nodes["ensemble"] = MeanOfProbabilities("ensemble", [*names, "student"])
    return _taught(config, task, nodes, heads, last)


def tfkd_self(config: Config, task: Task) -> Distillation:
    """Return (1 - alpha) CE + alpha response(teacher -> student): from the supervised run to a fresh network."""
    return _taught(config, task, {"teacher": Frozen("teacher", _earlier_network(config, task, 0, 0))}, ["student"], 1)


def _taught(config: Config, task: Task, nodes: dict[str, Node], heads: list[str], generation: int) -> Distillation:
    alpha, hard = soft_and_hard(config)
    student = Network("student", student_network(config, task, _role(generation)))
    ensemble = {name: node for name, node in nodes.items() if isinstance(node, Ensemble)}
    before = {name: node for name, node in nodes.items() if name not in ensemble}
    return distill(
        {**before, "student": student, **ensemble},
        supervised={"student": hard},
        edges=[Edge("teacher", "student", response=alpha)],
        losses=config.losses,
        heads=heads,
        task=task,
        teacher="teacher",
    )


def _earlier_network(config: Config, task: Task, place: int, generation: int) -> StagedNetwork:
    """Return a generation's network: as it starts, or with the weights of its run where that is known by now."""
    network = student_network(config, task, _role(generation))
    folders = config.teacher.checkpoint
    if isinstance(folders, list):
        load_weights(network, folders[place], num_classes=task.num_classes)
    return network


def _role(generation: int) -> str:
    """Return what a generation's initial weights are drawn for; generation 0 is the student of the supervised run."""
    return f"generation{generation}" if generation else "student"
