"""Self: one network's deep exits teach its shallow ones."""

from __future__ import annotations

from kdschemes.config import Config
from kdschemes.config.losses import Ramp
from kdschemes.config.schemes.self_distillation import SelfBYOT
from kdschemes.core.distillation import Distillation
from kdschemes.core.loss import Loss, Side
from kdschemes.core.nodes import Ensemble, NetworkWithExits, Node
from kdschemes.core.schedules import constant
from kdschemes.core.terms import Transfer
from kdschemes.core.types import Task
from kdschemes.errors import UserError
from kdschemes.schemes.distill import Edge, distill, probe
from kdschemes.schemes.networks import network_with_exits
from kdschemes.schemes.self_distillation.pooled import PooledNorm, PooledSum


def byot(config: Config, task: Task) -> Distillation:
    """Return the scheme of `taught_by_the_deepest` on a new network with exits."""
    return taught_by_the_deepest(NetworkWithExits("student", network_with_exits(config, task, "student")), config, task)


def taught_by_the_deepest(student: Node, config: Config, task: Task) -> Distillation:
    """Return CE of the deepest exit and, for each exit i, (1 - alpha) CE_i + alpha response(deepest -> i).

    `student` provides the deepest exit, then the others, shallow to deep. Feature losses draw each exit's map to the
    deepest stage's; a public variant has a term of its own instead, between vectors pooled over positions. Without a
    response loss each exit's CE has weight 1. luanyunteng weighs the deepest exit's CE with 1 - alpha, too.

    Raises:
        UserError: a weight for the feature term of a variant that has none.
    """
    options = config.scheme
    assert isinstance(options, SelfBYOT)
    if options.variant == "ours" and options.beta:
        raise UserError(
            f"scheme.beta={options.beta} has no effect with scheme.variant=ours: its feature term is losses.feature"
        )
    deepest, *exits = student.provides
    softened = any(kind == "response" for kind, _ in config.losses.chosen())
    alpha = options.alpha if softened else 0.0
    return distill(
        {"student": student, "ensemble": Ensemble("ensemble", student.provides)},
        supervised={deepest: 1.0 - alpha if options.variant == "luanyunteng" else 1.0}
        | dict.fromkeys(exits, 1.0 - alpha),
        edges=[Edge(deepest, name, response=alpha) for name in exits],
        losses=config.losses,
        heads=[*student.provides, "ensemble"],
        task=task,
        terms=_own_features(student, options, task),
    )


def _own_features(student: Node, options: SelfBYOT, task: Task) -> list[Transfer]:
    """Return a public variant's feature terms; the authors' code leaves out the deepest of the exits."""
    if options.variant == "ours":
        return []
    deepest, *exits = student.provides
    sides = {name: Side(shapes) for name, shapes in probe([student], task).items()}
    authors = options.variant == "authors"
    kind: type[Loss[Ramp]] = PooledNorm if authors else PooledSum
    terms = []
    for name in exits[:-1] if authors else exits:
        loss = kind(Ramp(), student=sides[name], teacher=sides[deepest], task=task)
        terms.append(Transfer("pooled", deepest, name, loss, constant(options.beta)))
    return terms
