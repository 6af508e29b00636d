"""What the options of the online methods open, to be tested like their defaults."""

from __future__ import annotations

from tests.schemes.variants import ONLINE, base

MEAN, KDCL, SWITOKD = (base("online", method) for method in ("codistillation", "kdcl", "switokd"))
CODISTILLATION = [*MEAN, "scheme.peers=3", "scheme.average=probabilities", "scheme.members=others"]

VARIANTS: dict[str, list[str]] = {
    "online-dml-three-peers": [*ONLINE, "scheme.peers=3"],
    "online-dml-mixed-peers": [*ONLINE, "scheme.peers=[resnet20,convnet]", "losses.feature=hint"],
    "online-dml-shared-trunk": [*ONLINE, "scheme.topology=shared_trunk", "scheme.peers=3"],
    "online-dml-hint-rkd": [*ONLINE, "losses.feature=hint", "losses.relation=rkd"],
    "online-dml-sequential": [*ONLINE, "scheme.peers=3", "scheme.update=sequential"],
    "online-dml-at-fsp": [*ONLINE, "losses.feature=at", "losses.relation=fsp"],
    "online-codistillation-hint-rkd": [*MEAN, "scheme.peers=3", "losses.feature=hint", "losses.relation=rkd"],
    "online-codistillation-published": [*CODISTILLATION, "scheme.topology=shared_trunk"],
    "online-kdcl-naive": [*KDCL, "scheme.ensemble=naive"],
    "online-kdcl-linear": [*KDCL, "scheme.ensemble=linear", "scheme.peers=3", "scheme.views=shared"],
    "online-kdcl-general": [*KDCL, "scheme.ensemble=general", "losses.feature=hint"],
    "online-switokd-big": [
        *SWITOKD,
        "scheme.large_model=resnet8x4",
        "scheme.lr_multipliers=[0.1,1]",
        "losses.feature=hint",
    ],
}
REFUSED: dict[tuple[str, str], str] = {}
"""Pairs of method and architecture that a builder refuses, with a part of what it says."""
