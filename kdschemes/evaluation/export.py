"""Export of a head as a plain network, and of its exits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdschemes.core.distillation import Distillation
from kdschemes.core.nodes import NetworkWithExits
from kdschemes.errors import UserError
from kdschemes.models import save_exits, save_weights


def export_network(scheme: Distillation, folder: Path, metadata: dict[str, Any], *, head: str | None = None) -> None:
    """Write the network of a head as `model.safetensors` and `config.json`, without training-only modules.

    The default is the primary head.

    Raises:
        UserError: the head is not computed by one plain network, or the folder cannot be written.
    """
    head = head or scheme.heads[0]
    network = scheme.node_of(head).inference_network(head)
    if network is None:
        raise UserError(f"{head} is not a single network: it cannot be exported")
    save_weights(network, folder, metadata=metadata | {"head": head})


def export_exits(scheme: Distillation, folder: Path, *, head: str | None = None) -> None:
    """Write the exits of the head's network (default: the primary head), if any, next to the exported network.

    Raises:
        UserError: the folder cannot be written.
    """
    node = scheme.node_of(head or scheme.heads[0])
    if isinstance(node, NetworkWithExits):
        save_exits(node.network, folder)
