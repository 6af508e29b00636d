"""DML: peers teach each other directly."""

from __future__ import annotations

from kdschemes.config import Config
from kdschemes.core.distillation import Distillation
from kdschemes.core.nodes import Ensemble
from kdschemes.core.types import DataSpec
from kdschemes.errors import UserError
from kdschemes.schemes.distill import Edge
from kdschemes.schemes.online.peers import build_peers, distill_peers


def dml(config: Config, data_spec: DataSpec) -> Distillation:
    """Return, for each peer k of K, CE_k + 1/(K-1) sum over j != k of response(peer j -> peer k).

    Targets are detached. Peers step simultaneously, on targets computed before the step, or one after another
    (`scheme.update=sequential`, as published), each on the others' updated outputs.

    Raises:
        UserError: sequential updates of peers on one trunk.
    """
    peers = build_peers(config, data_spec)
    sequential = config.scheme.update == "sequential"
    if sequential and config.scheme.topology == "shared_trunk":
        raise UserError("scheme.update=sequential needs scheme.topology=independent: peers on one trunk step together")
    share = 1.0 / (len(peers.names) - 1)
    edges = [Edge(j, k, share, share, share) for k in peers.names for j in peers.names if j != k]
    phases = [[name] for name in peers.names] if sequential else []
    return distill_peers(
        peers, {"ensemble": Ensemble("ensemble", peers.names)}, edges, config, data_spec, phases=phases
    )
