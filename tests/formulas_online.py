"""The totals of the online methods, and other values of their options to try."""

from __future__ import annotations

import oracles
from formulas import Formula, Seen
from variants import ONLINE

from kdschemes.config.schemes import online as options


def dml(seen: Seen) -> float:
    peers = [seen.logits(f"peer{k}") for k in range(seen.config.scheme.peers)]
    return oracles.dml(peers, seen.labels, temperature=seen.config.losses.response.temperature)


FORMULAS: dict[type, Formula] = {options.OnlineDML: dml}
EXACT = {
    "dml-other": [*ONLINE, "scheme.peers=3", "losses.response.temperature=3"],
    "dml-shared-stem": [*ONLINE, "scheme.topology=shared_stem", "scheme.peers=3"],
    "dml-own-views": [*ONLINE, "scheme.topology=shared_stem", "scheme.peers=3", "scheme.views=own"],
}
