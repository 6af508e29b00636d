"""Online: networks trained together teach each other."""

from __future__ import annotations

from kdschemes.config import Config
from kdschemes.distillation import Distillation, Edge, Task, distill
from kdschemes.errors import UserError
from kdschemes.models import split
from kdschemes.nodes import Ensemble, Network, Node, SharedStem
from kdschemes.schemes.networks import student_network


def dml(config: Config, task: Task) -> Distillation:
    """Return, for each peer k of K, CE_k + 1/(K-1) sum over j != k of response(peer j -> peer k).

    All peers step together on targets computed before the step, each a constant; no peer teaches itself.
    """
    options = config.scheme
    models = options.peers if isinstance(options.peers, list) else [config.model.name] * options.peers
    peers = [f"peer{k}" for k in range(len(models))]
    nodes: dict[str, Node] = {}
    if options.topology == "shared_stem":
        nodes["peers"] = _shared_stem(config, task, models, peers)
    else:
        if options.split is not None:
            raise UserError("scheme.split belongs to scheme.topology=shared_stem; independent peers share nothing")
        for peer, model in zip(peers, models, strict=True):
            nodes[peer] = Network(peer, student_network(config, task, peer, model))
    nodes["ensemble"] = Ensemble("ensemble", peers)
    share = 1.0 / (len(peers) - 1)
    return distill(
        nodes,
        supervised=dict.fromkeys(peers, 1.0),
        edges=[Edge(j, k, share, share, share) for k in peers for j in peers if j != k],
        losses=config.losses,
        heads=[*peers, "ensemble"],
        task=task,
    )


def _shared_stem(config: Config, task: Task, models: list[str], peers: list[str]) -> SharedStem:
    if len(set(models)) > 1:
        raise UserError(
            f"scheme.topology=shared_stem: peers on one trunk have one architecture, not {', '.join(models)}"
        )
    networks = [student_network(config, task, peer, model) for peer, model in zip(peers, models, strict=True)]
    stage = config.scheme.split or networks[0].stage_names[-1]
    parts = [split(network, stage) for network in networks]
    return SharedStem(peers, parts[0][0], [branch for _, branch in parts], networks[0])
