"""From a topology to a `Distillation`: `Edge`, `distill()`, `probe()`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from kdschemes.config import Config
from kdschemes.config.losses import Losses
from kdschemes.core.distillation import Distillation
from kdschemes.core.loss import Endpoint
from kdschemes.core.nodes import LossHead, Node
from kdschemes.core.schedules import constant, ramp
from kdschemes.core.terms import Supervise, Term, Transfer
from kdschemes.core.types import Batch, DataSpec, Output
from kdschemes.errors import UserError, out_of_memory
from kdschemes.losses.build import build_loss

Shapes = Mapping[str, Mapping[str, tuple[int, ...]]]
"""For each output, the shape of one sample's feature at each stage, shallow to deep."""


@dataclass(frozen=True)
class Edge:
    """`source` teaches `target`. The factors multiply the losses' weights by kind; None: no losses of that kind.

    `losses` apply to this edge only; None: the losses of the whole topology. Without `detach`, gradients flow to the
    source as well.
    """

    source: str
    target: str
    response: float | None = 1.0
    feature: float | None = 1.0
    relation: float | None = 1.0
    losses: Losses | None = None
    detach: bool = True


def distill(
    nodes: Mapping[str, Node],
    *,
    supervised: Mapping[str, float],
    edges: Sequence[Edge],
    losses: Losses,
    heads: Sequence[str],
    data_spec: DataSpec,
    teacher: str | None = None,
    label_smoothing: float = 0.0,
    label_smoothing_over: Literal["all", "others"] = "all",
    terms: Sequence[Term] = (),
    peers: Sequence[str] = (),
    lr_multipliers: Mapping[str, float] | None = None,
    phases: Sequence[Sequence[str]] = (),
) -> Distillation:
    """Build a scheme from its topology.

    Every output in `supervised` gets cross-entropy with the labels, with that weight; every edge gets each loss in
    `losses`, unless the edge's factor for that kind is None. A probe determines the shapes of projections. `terms` are
    added to these; `peers`, `lr_multipliers`, and `phases` are as in `Distillation`.

    Raises:
        UserError: a loss cannot be defined between two outputs, or a stage does not exist.
    """
    made: list[Term] = [
        Supervise(target, constant(weight), label_smoothing=label_smoothing, label_smoothing_over=label_smoothing_over)
        for target, weight in supervised.items()
    ]
    endpoints = _endpoints(nodes.values(), data_spec)
    producer = {output: node for node in nodes.values() for output in node.provides}
    loss_heads: dict[str, Node] = {}
    groups = [(losses, [edge for edge in edges if edge.losses is None])]
    groups += [(edge.losses, [edge]) for edge in edges if edge.losses is not None]
    carried = [(kind, options, edge) for own, bundle in groups for kind, options in own.chosen() for edge in bundle]
    for kind, options, edge in carried:
        factor = getattr(edge, kind)
        if factor is not None:
            loss = build_loss(
                options, student=endpoints[edge.target], teacher=endpoints[edge.source], data_spec=data_spec
            )
            weight = ramp(options.schedule, factor * options.weight, options.ramp_epochs)
            transfer = Transfer(
                options.name,
                edge.source,
                edge.target,
                loss,
                weight,
                detach_source=edge.detach,
                aux_batch=producer[edge.target].output_batches.get(edge.target),
            )
            made.append(transfer)
            if loss.reads_preactivations:
                for output in (edge.source, edge.target):
                    producer[output].keep_preactivations()
            if loss.head is not None:
                head = LossHead(edge.target, loss, producer[edge.target])
                if head.provides[0] in loss_heads:
                    raise UserError(
                        f"{options.name} gives {edge.target} a classifier, but two outputs teach it: choose one teacher"
                    )
                loss_heads[head.provides[0]] = head
    return Distillation(
        {**nodes, **loss_heads},
        [*made, *terms],
        [*loss_heads, *heads],
        teacher,
        peers=peers,
        lr_multipliers=lr_multipliers,
        phases=phases,
    )


def soft_weight(config: Config) -> float:
    """Return `scheme.alpha`, or 0 without a response loss, which leaves cross-entropy its full weight."""
    alpha: float = config.scheme.alpha
    return alpha if any(kind == "response" for kind, _ in config.losses.chosen()) else 0.0


def _endpoints(nodes: Iterable[Node], data_spec: DataSpec) -> dict[str, Endpoint]:
    nodes = list(nodes)
    networks = {output: node.training_network(output) for node in nodes for output in node.provides}
    return {name: Endpoint(shapes, networks[name]) for name, shapes in probe(nodes, data_spec).items()}


@torch.no_grad()
def probe(nodes: Iterable[Node], data_spec: DataSpec) -> Shapes:
    """Run every node once on two zero images in evaluation mode and return the feature shapes of each output.

    Raises:
        UserError: a network cannot process images of this size.
    """
    images = torch.zeros(2, data_spec.channels, data_spec.image_size, data_spec.image_size)
    nodes = list(nodes)
    batch = Batch(images, torch.zeros(2, dtype=torch.long), torch.arange(2))
    batch = replace(batch, aux_batches={name: batch for node in nodes for name in node.aux_batches})
    outputs: dict[str, Output] = {}
    for node in nodes:
        mode = node.training
        try:
            outputs.update(node.eval()(batch, outputs))
        except (RuntimeError, AssertionError) as error:
            if out_of_memory(error):
                raise
            size = "x".join(map(str, images.shape[1:]))
            reason = str(error).strip().partition("\n")[0]
            raise UserError(f"{node.provides[0]} cannot read {size} images: choose another model ({reason})") from None
        node.train(mode)
    return {name: {s: tuple(f.shape[1:]) for s, f in output.features.items()} for name, output in outputs.items()}
