"""Offline and online: a frozen teacher joins two peers, which also teach each other.

Each peer: CE, half of KD from the teacher and half of KD from the other peer, T = 4.

    python run.py experiment=topologies/offline_online
"""

from kdschemes.config import Config
from kdschemes.core.distillation import Distillation
from kdschemes.core.frozen import Frozen
from kdschemes.core.nodes import Ensemble, Network
from kdschemes.core.types import DataSpec
from kdschemes.schemes.distill import Edge, distill
from kdschemes.schemes.networks import student_network, teacher_network

RECIPE = {"scheme.teacher": True, "losses.response": "kd", "losses.response.temperature": 4.0}


def topology(config: Config, data_spec: DataSpec) -> Distillation:
    """Return two peers under one teacher."""
    peers = {name: Network(name, student_network(config, data_spec, name)) for name in ("peer0", "peer1")}
    return distill(
        {
            "teacher": Frozen("teacher", teacher_network(config, data_spec, 0)),
            **peers,
            "ensemble": Ensemble("ensemble", [*peers]),
        },
        supervised=dict.fromkeys(peers, 1.0),
        edges=[Edge("teacher", peer, response=0.5) for peer in peers]
        + [Edge("peer0", "peer1", response=0.5), Edge("peer1", "peer0", response=0.5)],
        losses=config.losses,
        heads=[*peers, "ensemble"],
        data_spec=data_spec,
        teacher="teacher",
        peers=[*peers],
    )
