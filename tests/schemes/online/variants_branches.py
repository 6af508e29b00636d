"""What the options of the online methods with branches open, to be tested like their defaults."""

from __future__ import annotations

from tests.schemes.variants import base

VARIANTS: dict[str, list[str]] = {
    "online-clilr-hint": [
        *base("online", "clilr"),
        "scheme.peers=3",
        "scheme.split=layer2",
        "losses.feature=hint",
        "losses.relation=rkd",
    ],
    "online-one-own-views": [
        *base("online", "one"),
        "scheme.peers=2",
        "scheme.split=layer1",
        "scheme.views=independent",
    ],
    "online-okddip-independent": [*base("online", "okddip"), "scheme.topology=independent", "scheme.peers=2"],
    "online-ffl-independent-at": [*base("online", "ffl"), "scheme.topology=independent", "losses.feature=at"],
    "online-pcl-independent-hint": [
        *base("online", "pcl"),
        "scheme.topology=independent",
        "scheme.peers=2",
        "losses.feature=hint",
    ],
}
REFUSED: dict[tuple[str, str], str] = {
    (f"online-{method}", f"timm/{model}"): "cannot be split into trunk and branches"
    for method in ("clilr", "one", "okddip", "ffl", "pcl")
    for model in ("mobilenetv3_small_050", "test_vit")
}
"""Pairs of method and architecture that a builder refuses, with a part of what it says."""
