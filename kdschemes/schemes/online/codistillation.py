"""Codistillation: the mean of the peers teaches each of them."""

from __future__ import annotations

from kdschemes.config import Config
from kdschemes.core.distillation import Distillation
from kdschemes.core.nodes import Ensemble, Node, ProbabilityEnsemble
from kdschemes.core.types import DataSpec
from kdschemes.schemes.online.peers import build_peers, distill_peers, edges_from


def codistillation(config: Config, data_spec: DataSpec) -> Distillation:
    """Return, for each peer k, CE_k + response(mean -> peer k).

    The mean is over the logits or the probabilities (`scheme.average`) of all peers or of the others
    (`scheme.members`), detached. Feature and relation terms, if any, come from each other peer.

    Raises:
        UserError: the peers cannot be built as configured.
    """
    peers = build_peers(config, data_spec)
    kind = Ensemble if config.scheme.average == "logits" else ProbabilityEnsemble
    nodes: dict[str, Node] = {"ensemble": kind("ensemble", peers.names)}
    if config.scheme.members == "all":
        sources = dict.fromkeys(peers.names, "ensemble")
    else:
        sources = {peer: f"others{number}" for number, peer in enumerate(peers.names)}
        nodes |= {source: kind(source, [p for p in peers.names if p != peer]) for peer, source in sources.items()}
    return distill_peers(peers, nodes, edges_from(sources), config, data_spec)
