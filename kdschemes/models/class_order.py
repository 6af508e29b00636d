"""The order of a network's outputs against that of the data's classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from huggingface_hub import try_to_load_from_cache

from kdschemes.config.parse import read_json
from kdschemes.config.paths import expand
from kdschemes.errors import UserError, first_line
from kdschemes.models.base import StagedNetwork
from kdschemes.models.described import config_beside
from kdschemes.storage.naming import CONFIG, HUB


@torch.no_grad()
def order_outputs(network: StagedNetwork, weights: str | Path, classes: Sequence[str]) -> bool:
    """Put the outputs of a network in the order of `classes`, the data's; return whether their order changes.

    The classes of its `weights`, which are loaded, are read from the `config.json` beside them: timm's `label_names`,
    or the classes of a run. Nothing changes if there is none.

    Raises:
        UserError: the weights are for other classes, or their description is damaged.
    """
    file = _description(str(weights))
    known = _class_names(file) if file is not None else None
    if known is None or known == list(classes):
        return False
    if sorted(known) != sorted(classes):
        raise UserError(
            f"{weights} is for other classes than the data: {_only(known, classes)} only in {file}, "
            f"{_only(classes, known)} only in the data; give weights for the data's classes (if only the names differ, "
            f"copy the weights to where no {CONFIG} is)"
        )
    state = network.plain_state()
    rows = torch.tensor([known.index(name) for name in classes])
    for classifier in network.classifiers:
        for name, tensor in state.items():
            if name.startswith(f"{classifier}."):
                tensor.copy_(tensor[rows.to(tensor.device)])
    return True


def _description(weights: str) -> Path | None:
    """Return the file that describes weights, given as for `load_weights`."""
    if weights.startswith(HUB):
        found = try_to_load_from_cache(weights.removeprefix(HUB), CONFIG)
        return Path(found) if isinstance(found, str) else None
    return config_beside(Path(expand(weights)))


def _class_names(file: Path) -> list[str] | None:
    """Return the names in a `config.json` in the order of the outputs; None if it has none."""
    try:
        config = read_json(file)
        names = config.get("label_names") or config.get("metadata", {}).get("classes")
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is damaged ({first_line(error)}): restore or remove it") from None
    return [str(name) for name in names] if isinstance(names, list) and names else None


def _only(these: Sequence[str], those: Sequence[str]) -> str:
    names = sorted(set(these) - set(those))
    return (", ".join(map(repr, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")) or "none"
