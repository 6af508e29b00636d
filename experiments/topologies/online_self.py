"""Online and self: peers with exits teach each other, and each its own shallower exits.

The deepest exits: CE and KD from the other peer, T = 1. Each other exit: half CE, half KD from its own deepest, T = 3.

    python run.py experiment=topologies/online_self
"""

from kdschemes.config import Config
from kdschemes.config.losses import Losses
from kdschemes.config.losses.response import KD
from kdschemes.config.schemes import ExitOptions
from kdschemes.core.distillation import Distillation
from kdschemes.core.nodes import Ensemble, NetworkWithExits
from kdschemes.core.types import DataSpec
from kdschemes.schemes.distill import Edge, distill
from kdschemes.schemes.networks import network_with_exits

RECIPE = {"losses.response": "kd", "losses.response.temperature": 1.0}
EXITS = ExitOptions(name="topology", method="online_self")
WITHIN = Losses(response=KD(temperature=3.0))


def topology(config: Config, data_spec: DataSpec) -> Distillation:
    """Return two peers with exits."""
    peers = {n: NetworkWithExits(n, network_with_exits(config, data_spec, n, EXITS)) for n in ("peer0", "peer1")}
    exits = {name: peer.provides[1:] for name, peer in peers.items()}
    return distill(
        {**peers, "ensemble": Ensemble("ensemble", [*peers])},
        supervised=dict.fromkeys(peers, 1.0) | {name: 0.5 for names in exits.values() for name in names},
        edges=[Edge("peer0", "peer1"), Edge("peer1", "peer0")]
        + [Edge(peer, name, response=0.5, losses=WITHIN) for peer, names in exits.items() for name in names],
        losses=config.losses,
        heads=[*peers, *(name for names in exits.values() for name in names), "ensemble"],
        data_spec=data_spec,
        peers=[*peers],
    )
