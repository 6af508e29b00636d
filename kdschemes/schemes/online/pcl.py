"""PCL: a classifier on all peers' features and the peers' moving averages teach each peer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from kdschemes.config import Config
from kdschemes.core.averages import Ema
from kdschemes.core.distillation import Distillation
from kdschemes.core.loss import embedding
from kdschemes.core.nodes import Node
from kdschemes.core.types import Batch, DataSpec, Output, Outputs
from kdschemes.schemes.distill import Edge, probe
from kdschemes.schemes.online.peers import build_peers, distill_peers, last_width


class PeerEnsemble(Node):
    """The output `ensemble`: a linear classifier on all peers' last features, averaged over positions.

    Its gradients flow to the peers.
    """

    def __init__(self, peers: Sequence[str], width: int, num_classes: int) -> None:
        super().__init__(["ensemble"], reads=peers)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, batch: Batch, outputs: Mapping[str, Output]) -> Outputs:
        features = [embedding(list(outputs[name].features.values())[-1]) for name in self.reads]
        return {"ensemble": Output(self.fc(torch.cat(features, dim=1)))}


def pcl(config: Config, data_spec: DataSpec) -> Distillation:
    """Return CE of ensemble and peers + sum_j response(ensemble -> j) + sum_j mean over k != j of response(EMA_k -> j).

    Wu & Gong 2021, "Peer Collaborative Learning for Online Knowledge Distillation". Targets are detached. Each peer and
    its moving average see the peer's own view. Feature and relation terms, if any, go from the other peers' averages to
    each peer with weight 1 / (m - 1).

    Raises:
        UserError: a network has no features, or cannot be split.
    """
    peers = build_peers(config, data_spec)
    shapes = probe(peers.nodes.values(), data_spec)
    width = sum(last_width("pcl", name, shapes) for name in peers.names)
    averages = {name: f"{name}/ema" for name in peers.names}
    nodes: dict[str, Node] = {"ensemble": PeerEnsemble(peers.names, width, data_spec.num_classes)}
    nodes |= {
        f"{name}/ema": Ema(node, averages, config.scheme.decay, warm_up=True) for name, node in peers.nodes.items()
    }
    share = 1.0 / (len(peers.names) - 1)
    edges = [Edge("ensemble", name, feature=None, relation=None) for name in peers.names]
    edges += [Edge(averages[k], j, share, share, share) for j in peers.names for k in peers.names if k != j]
    heads = [*peers.names, "ensemble", *averages.values()]
    return distill_peers(peers, nodes, edges, config, data_spec, supervised=["ensemble", *peers.names], heads=heads)
