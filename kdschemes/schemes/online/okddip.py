"""OKDDip: peers with individual targets by attention, and a leader that learns from all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from kdschemes.config import Config
from kdschemes.core.distillation import Distillation
from kdschemes.core.loss import embedding
from kdschemes.core.nodes import Ensemble, Node
from kdschemes.core.precision import full_precision
from kdschemes.core.types import Batch, DataSpec, Output, Outputs
from kdschemes.errors import UserError
from kdschemes.schemes.distill import Edge, probe
from kdschemes.schemes.online.peers import build_peers, distill_peers, last_width

LEADER = "leader"


@full_precision
def attention(queries: Float[Tensor, "n m d"], keys: Float[Tensor, "n m d"]) -> Float[Tensor, "n m m"]:
    r"""Return each peer a's attention weights over all peers b, including itself: $softmax_b(q_a \cdot k_b)$.

    Chen et al. 2020, "Online Knowledge Distillation with Diverse Peers"; dot products are not scaled. Gradients flow
    to both.
    """
    return functional.softmax(queries @ keys.transpose(1, 2), dim=2)


@full_precision
def attended(weights: Float[Tensor, "n m m"], logits: Float[Tensor, "n m c"]) -> Float[Tensor, "n m c"]:
    r"""Return each peer's target, the logits $\sum_b \alpha_{ab} z_b$. Gradients flow to both."""
    return weights @ logits


class PeerAttention(Node):
    """Provides peer a's target as `attended{a}`: all peers' logits, weighted by attention between their features.

    Features are the last stage's, averaged over positions. The query and key projections are linear, without bias, and
    shared by all peers. With `detach`, logits and features are detached, so that only the projections learn through the
    targets; without it, the attended peers learn as well.
    """

    def __init__(self, peers: Sequence[str], width: int, narrow: int, *, detach: bool) -> None:
        super().__init__([f"attended{number}" for number in range(len(peers))], reads=peers)
        self.query = nn.Linear(width, narrow, bias=False)
        self.key = nn.Linear(width, narrow, bias=False)
        self.detach = detach

    def forward(self, batch: Batch, outputs: Mapping[str, Output]) -> Outputs:
        peers = [outputs[name].detach() if self.detach else outputs[name] for name in self.reads]
        features = torch.stack([embedding(list(peer.features.values())[-1]) for peer in peers], dim=1)
        weights = attention(self.query(features), self.key(features))
        targets = attended(weights, torch.stack([peer.logits for peer in peers], dim=1))
        return {name: Output(targets[:, number]) for number, name in enumerate(self.provides)}


def okddip(config: Config, data_spec: DataSpec) -> Distillation:
    """Return CE of peers and leader + sum_a response(attended a -> peer a) + response(mean of peers -> leader).

    Chen et al. 2020. The attention learns through its targets; without `scheme.detach`, the peers also learn through
    these and the leader's target.

    Raises:
        UserError: the peers' last features differ in width, a network has no features or cannot be split, or there is a
            feature or relation loss (targets only have logits).
    """
    options = config.scheme
    peers = build_peers(config, data_spec, leader=LEADER)
    shapes = probe(peers.nodes.values(), data_spec)
    widths = [last_width("okddip", name, shapes) for name in peers.names]
    if len(set(widths)) > 1:
        raise UserError(f"okddip: the peers' last features must have the same width, not {widths}: choose other models")
    if widths[0] < options.reduction:
        raise UserError(f"scheme.reduction={options.reduction} exceeds the {widths[0]} channels of the features")
    heed = PeerAttention(peers.names, widths[0], widths[0] // options.reduction, detach=options.detach)
    edges = [Edge(target, name, detach=False) for target, name in zip(heed.provides, peers.names, strict=True)]
    nodes: dict[str, Node] = {"attention": heed, "ensemble": Ensemble("ensemble", peers.names)}
    edges.append(Edge("ensemble", LEADER, detach=options.detach))
    taught = [LEADER, *peers.names]
    return distill_peers(peers, nodes, edges, config, data_spec, supervised=taught, heads=[*taught, "ensemble"])
