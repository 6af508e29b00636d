"""Offline: frozen teachers teach a student."""

from __future__ import annotations

from kdschemes.config import Config
from kdschemes.distillation import Distillation, Edge, Task, distill
from kdschemes.nodes import Ensemble, Frozen, Network, Node
from kdschemes.schemes.networks import student_network, teacher_network


def kd(config: Config, task: Task) -> Distillation:
    """Return (1 - alpha) CE + alpha response(teacher -> student), and feature and relation terms from each teacher.

    `scheme.hard` is CE's weight where it is not 1 - alpha. Several teachers answer by the weighted mean of their
    logits; each one's features teach with its own weight. Without a response loss there is nothing to weigh CE
    against, and its weight is 1.
    """
    count = len(config.teacher.name) if isinstance(config.teacher.name, list) else 1
    weights = config.teacher.weights or [1.0] * count
    names = ["teacher"] if count == 1 else [f"teacher{k}" for k in range(count)]
    nodes: dict[str, Node] = {
        name: Frozen(name, teacher_network(config, task, number)) for number, name in enumerate(names)
    }
    if count > 1:
        nodes["teacher"] = Ensemble("teacher", names, weights)
    nodes["student"] = Network("student", student_network(config, task, "student"))
    softened = any(kind == "response" for kind, _ in config.losses.chosen())
    alpha = config.scheme.alpha if softened else 0.0
    hard = 1.0 - alpha if config.scheme.hard is None else config.scheme.hard
    shares = [weight / sum(weights) for weight in weights]
    if count == 1:
        edges = [Edge("teacher", "student", response=alpha)]
    else:
        edges = [Edge("teacher", "student", response=alpha, feature=None, relation=None)]
        edges += [
            Edge(name, "student", response=None, feature=share, relation=share)
            for name, share in zip(names, shares, strict=True)
        ]
    return distill(
        nodes,
        supervised={"student": hard},
        edges=edges,
        losses=config.losses,
        heads=["student"],
        task=task,
        teacher="teacher",
    )
