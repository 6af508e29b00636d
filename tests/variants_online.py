"""What the options of the online methods open, to be tested like their defaults."""

from __future__ import annotations

from variants import ONLINE

VARIANTS: dict[str, list[str]] = {
    "online-dml-three-peers": [*ONLINE, "scheme.peers=3"],
    "online-dml-mixed-peers": [*ONLINE, "scheme.peers=[resnet20,convnet]", "losses.feature=hint"],
    "online-dml-shared-stem": [*ONLINE, "scheme.topology=shared_stem", "scheme.peers=3"],
    "online-dml-hint-rkd": [*ONLINE, "losses.feature=hint", "losses.relation=rkd"],
    "online-dml-at-fsp": [*ONLINE, "losses.feature=at", "losses.relation=fsp"],
}
REFUSED: dict[tuple[str, str], str] = {}
"""Pairs of method and architecture that a builder refuses, with a part of what it says."""
