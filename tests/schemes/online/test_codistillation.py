"""Codistillation: the mean of the peers teaches each peer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from kdschemes.core.types import Output
from tests.losses import oracles
from tests.losses.oracles import Array
from tests.schemes.cases import ONLINE, START, base, build, random_batch
from tests.schemes.formulas import Case, Formula, Inputs, Reference, Seen
from tests.schemes.online import references
from tests.schemes.online.cases import PEERS, logits_of
from tests.schemes.online.formulas import peers_of, taught, temperature_of

CODISTILLATION = base("online", "codistillation")
PUBLISHED = [*CODISTILLATION, "scheme.peers=3", "scheme.average=probabilities", "scheme.members=others"]


def mean_of(members: list[Array], average: str) -> Array:
    if average == "logits":
        return np.asarray(sum(members) / len(members))
    p = [np.stack([oracles.softmax(row) for row in z]) for z in members]
    return np.asarray(np.log(sum(p) / len(p)))


def expected_total(seen: Seen) -> float:
    """CE and KD from the mean of all peers, or of the others."""
    peers, options = peers_of(seen), seen.config.scheme
    everybody = options.members == "all"
    others = [[z for j, z in enumerate(peers) if everybody or j != k] for k in range(len(peers))]
    teachers = [mean_of(members, options.average) for members in others]
    return taught(peers, teachers, seen.labels, temperature=temperature_of(seen))


def recorded(x: Inputs, p: Case) -> Tensor:
    """The reference has CE with weight 1 - alpha and KD with alpha, here 1/2 each."""
    assert p["alpha"] == 0.5
    return 0.5 * references.total(x, "method=codistillation", f"losses.response.temperature={p['T']}")


FORMULA: Formula = expected_total
EXACT = {
    "codistillation-other": [
        *CODISTILLATION,
        "scheme.peers=3",
        "scheme.average=probabilities",
        "losses.response.temperature=1",
    ],
    "codistillation-others": [*CODISTILLATION, "scheme.peers=3", "scheme.members=others"],
    "codistillation-published": PUBLISHED,
}
VARIANTS = {
    "online-codistillation-hint-rkd": [*CODISTILLATION, "scheme.peers=3", "losses.feature=hint", "losses.relation=rkd"],
    "online-codistillation-published": [*PUBLISHED, "scheme.topology=shared_trunk"],
}
REFERENCES: dict[str, Reference] = {"KDCL_mean.shaoeric": recorded}


def test_codistillation_of_two_peers_is_mutual_learning() -> None:
    two = ["losses.response.temperature=1", "scheme.peers=2"]
    for average in ("logits", "probabilities"):
        scheme = build(*CODISTILLATION, *two, f"scheme.average={average}", "scheme.members=others")
        expected, batch = build(*ONLINE), random_batch()
        assert scheme(batch, START).total.item() == pytest.approx(expected(batch, START).total.item(), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_mean_of_probabilities_is_finite_and_exact_where_one_peer_is_certain(dtype: torch.dtype) -> None:
    scheme = build(*PUBLISHED)
    logits = [logits_of(7, 10, seed=k, scale=1e4, dtype=dtype) for k in range(3)]
    outputs = {peer: Output(z) for peer, z in zip(PEERS, logits, strict=True)}
    mean = scheme.nodes["others0"](random_batch(n=7), outputs)["others0"].logits
    assert mean.dtype == torch.float32
    assert mean.isfinite().all()
    p = torch.stack([z.double().softmax(1) for z in logits[1:]]).mean(0)
    torch.testing.assert_close(mean.double().softmax(1), p, rtol=1e-5, atol=1e-6)
