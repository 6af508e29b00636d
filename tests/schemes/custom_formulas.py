"""The totals of the shipped topologies."""

from __future__ import annotations

from kdschemes.config.schemes.custom import Topology
from tests.losses import oracles
from tests.schemes.custom_variants import VARIANTS
from tests.schemes.formulas import Formula, Seen, last


def within(seen: Seen, network: str, *, hint: float) -> float:
    """Half CE and half KD at T = 3 of every exit from the deepest, and a hint to its map."""
    teacher, feature = last(seen.out[network])
    total = 0.0
    for name in ("exit1", "exit2"):
        student, own = last(seen.out[f"{network}/{name}"])
        labels = oracles.one_hot(seen.labels, student.shape[1])
        total += 0.5 * oracles.cross_entropy(student, labels) + 0.5 * oracles.kd(student, teacher, temperature=3.0)
        total += hint * oracles.hint(own, feature)
    return total


def offline_online(seen: Seen) -> float:
    teacher, *peers = (seen.logits(name) for name in ("teacher", "peer0", "peer1"))
    total = sum(oracles.cross_entropy(peer, oracles.one_hot(seen.labels, peer.shape[1])) for peer in peers)
    total += sum(0.5 * oracles.kd(peer, teacher, temperature=4.0) for peer in peers)
    return total + sum(0.5 * oracles.kd(a, b, temperature=4.0) for a, b in (peers, peers[::-1]))


def offline_self(seen: Seen) -> float:
    total = oracles.offline_kd(
        seen.logits("student"), [seen.logits("teacher")], [1.0], seen.labels, alpha=0.9, temperature=4.0
    )
    return total + within(seen, "student", hint=0.03)


def online_self(seen: Seen) -> float:
    peers = [seen.logits(name) for name in ("peer0", "peer1")]
    total = oracles.dml(peers, seen.labels, temperature=1.0)
    return total + sum(within(seen, name, hint=0.0) for name in ("peer0", "peer1"))


TOTALS = {"offline_online": offline_online, "offline_self": offline_self, "online_self": online_self}


def shipped(seen: Seen) -> float:
    return TOTALS[seen.config.scheme.method](seen)


FORMULAS: dict[type, Formula] = {Topology: shipped}
EXACT: dict[str, list[str]] = dict(VARIANTS)
