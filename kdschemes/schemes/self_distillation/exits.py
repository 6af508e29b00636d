"""Self: one network's deep exits teach its shallow ones."""

from __future__ import annotations

from kdschemes.config import Config
from kdschemes.distillation import Distillation, Edge, Task, distill
from kdschemes.nodes import Ensemble, NetworkWithExits
from kdschemes.schemes.networks import network_with_exits


def byot(config: Config, task: Task) -> Distillation:
    """Return CE of the deepest exit and, for each exit i, (1 - alpha) CE_i + alpha response(deepest -> i).

    Feature terms draw each exit's map to the deepest stage's. Without a response loss each exit's CE has weight 1.
    """
    student = NetworkWithExits("student", network_with_exits(config, task, "student"))
    deepest, *exits = student.provides
    softened = any(kind == "response" for kind, _ in config.losses.chosen())
    alpha = config.scheme.alpha if softened else 0.0
    return distill(
        {"student": student, "ensemble": Ensemble("ensemble", student.provides)},
        supervised={deepest: 1.0} | dict.fromkeys(exits, 1.0 - alpha),
        edges=[Edge(deepest, name, response=alpha) for name in exits],
        losses=config.losses,
        heads=[*student.provides, "ensemble"],
        task=task,
    )
