"""Export of the primary head as a plain network, and of its exits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdschemes.core.distillation import Distillation
from kdschemes.core.nodes import NetworkWithExits
from kdschemes.models import (
    save_exits,
    save_weights,
)


def export_network(scheme: Distillation, folder: Path, metadata: dict[str, Any]) -> None:
    """Write the primary head's network as `model.safetensors` and `config.json`, without training-only modules.

    Raises:
        UserError: the folder cannot be written.
    """
    head = scheme.heads[0]
    network = scheme.node_of(head).inference_network(head)
    assert network is not None, f"the primary head {head} is not a plain network"
    save_weights(network, folder, metadata=metadata | {"head": head})


def export_exits(scheme: Distillation, folder: Path) -> None:
    """Write the exits of the primary head's network, if any, next to the exported network.

    Raises:
        UserError: the folder cannot be written.
    """
    node = scheme.node_of(scheme.heads[0])
    if isinstance(node, NetworkWithExits):
        save_exits(node.network, folder)
