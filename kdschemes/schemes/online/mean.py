"""The mean of the peers teaches each of them."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from kdschemes.config import Config
from kdschemes.distillation import Distillation, Task, distill
from kdschemes.losses.precision import full_precision
from kdschemes.nodes import Ensemble, Node
from kdschemes.outputs import Batch, Output, Outputs
from kdschemes.schemes.online.peers import build_peers, edges_from


class MeanProbabilities(Ensemble):
    r"""The mean of other outputs' probabilities, as logits: $\log \frac1K \sum_k softmax(z_k)$, in float32 at least."""

    def forward(self, batch: Batch, outputs: Mapping[str, Output]) -> Outputs:
        members = torch.stack([outputs[member].logits for member in self.reads])
        return {self.provides[0]: Output(_log_mean(members))}


@full_precision
def _log_mean(logits: torch.Tensor) -> torch.Tensor:
    return logits.log_softmax(2).logsumexp(0) - math.log(len(logits))


def mean(config: Config, task: Task) -> Distillation:
    """Return, for each peer k, CE_k + response(mean -> peer k).

    The mean is of the logits or of the probabilities (`scheme.average`), of all peers or of the others
    (`scheme.members`), a constant where it teaches. Features and relations, if any, come from each other peer.

    Raises:
        UserError: peers that cannot be built as the options say.
    """
    peers = build_peers(config, task)
    kind = Ensemble if config.scheme.average == "logits" else MeanProbabilities
    nodes: dict[str, Node] = {**peers.nodes, "ensemble": kind("ensemble", peers.names)}
    if config.scheme.members == "all":
        sources = dict.fromkeys(peers.names, "ensemble")
    else:
        sources = {peer: f"others{number}" for number, peer in enumerate(peers.names)}
        nodes |= {source: kind(source, [p for p in peers.names if p != peer]) for peer, source in sources.items()}
    return distill(
        nodes,
        supervised=dict.fromkeys(peers.names, 1.0),
        edges=edges_from(sources),
        losses=config.losses,
        heads=[*peers.names, "ensemble"],
        task=task,
        peers=peers.names,
        rates=peers.rates,
    )
