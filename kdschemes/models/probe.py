"""The stages of a network, found by running it once."""

from __future__ import annotations

from collections.abc import Iterable

from kdschemes.models.base import Stage, StagedNetwork
from kdschemes.models.cost import macs_of, probing


def stages(network: StagedNetwork, channels: int, image_size: int) -> list[Stage]:
    """Return the stages, shallow to deep, with the shapes of their features for images of this size.

    Runs two zero images in evaluation mode, without affecting modes or random generators. A stage's depth is the
    fraction of the network's MACs needed for its features. Raises `UserError` if the network does not accept such
    images.
    """
    with probing(network, channels, image_size, batch=2) as images:
        _, features = network.forward_stages(images)
        total = macs_of(network, images)
        return [
            Stage(
                name, macs_of(lambda x, name=name: network.forward_until(x, name), images) / total, tuple(f.shape[1:])
            )
            for name, f in features.items()
        ]


def describe_stages(stages: Iterable[Stage]) -> str:
    """Return a text table of stages: name, depth in percent of the MACs, feature shape per sample."""
    rows = [("stage", "depth", "features")]
    rows += [(s.name, f"{100 * s.depth:.1f} %", "x".join(map(str, s.shape))) for s in stages]
    name, depth, _ = (max(len(row[column]) for row in rows) for column in range(3))
    return "\n".join(f"{row[0]:<{name}}  {row[1]:>{depth}}  {row[2]}" for row in rows)
