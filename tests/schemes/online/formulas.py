"""The totals of the online methods, and other values of their options to try."""

from __future__ import annotations

from kdschemes.config.schemes import online as options
from tests.losses import oracles
from tests.schemes.formulas import Formula, Seen, array
from tests.schemes.online import oracles as oracles_online
from tests.schemes.online.variants import CODISTILLATION, KDCL, MEAN, SWITOKD
from tests.schemes.variants import ONLINE


def peers_of(seen: Seen) -> list[oracles.Array]:
    return [seen.logits(f"peer{k}") for k in range(seen.config.scheme.peers)]


def dml(seen: Seen) -> float:
    return oracles.dml(peers_of(seen), seen.labels, temperature=seen.config.losses.response.temperature)


def codistillation(seen: Seen) -> float:
    peers, options = peers_of(seen), seen.config.scheme
    everybody = options.members == "all"
    others = [[z for j, z in enumerate(peers) if everybody or j != k] for k in range(len(peers))]
    teachers = [oracles_online.mean_of(members, options.average) for members in others]
    return oracles_online.taught(peers, teachers, seen.labels, temperature=seen.config.losses.response.temperature)


def kdcl(seen: Seen) -> float:
    peers, kind = peers_of(seen), seen.config.scheme.ensemble
    if kind == "general":
        weights = array(seen.scheme.nodes["teacher"].weights)
        teacher = oracles_online.weighed(peers, list(weights))
    elif kind == "linear":
        teacher = oracles_online.linear(peers, seen.labels)[0]
    else:
        teacher = {"naive": oracles_online.naive, "minlogit": oracles_online.minlogit}[kind](peers, seen.labels)
    temperature = seen.config.losses.response.temperature
    return oracles_online.taught(peers, [teacher] * len(peers), seen.labels, temperature=temperature)


def switokd(seen: Seen) -> float:
    """Of both networks, also where the step of the big one is not followed."""
    both = [seen.logits("student"), seen.logits("big")]
    return oracles_online.taught(both, both[::-1], seen.labels, temperature=seen.config.losses.response.temperature)


FORMULAS: dict[type, Formula] = {
    options.OnlineDML: dml,
    options.OnlineCodistillation: codistillation,
    options.OnlineKDCL: kdcl,
    options.OnlineSwitOKD: switokd,
}
EXACT = {
    "dml-other": [*ONLINE, "scheme.peers=3", "losses.response.temperature=3"],
    "dml-shared-trunk": [*ONLINE, "scheme.topology=shared_trunk", "scheme.peers=3"],
    "dml-own-views": [*ONLINE, "scheme.topology=shared_trunk", "scheme.peers=3", "scheme.views=independent"],
    "codistillation-other": [*MEAN, "scheme.peers=3", "scheme.average=probabilities", "losses.response.temperature=1"],
    "codistillation-others": [*MEAN, "scheme.peers=3", "scheme.members=others"],
    "codistillation-published": CODISTILLATION,
    "kdcl-naive": [*KDCL, "scheme.ensemble=naive", "scheme.peers=3"],
    "kdcl-linear": [*KDCL, "scheme.ensemble=linear", "losses.response.temperature=4"],
    "kdcl-minlogit": [*KDCL, "scheme.peers=3", "scheme.topology=shared_trunk"],
    "kdcl-general": [*KDCL, "scheme.ensemble=general", "scheme.peers=3"],
    "switokd-other": [*SWITOKD, "scheme.large_model=convnet", "losses.response.temperature=2"],
}
