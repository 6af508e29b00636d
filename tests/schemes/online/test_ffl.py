"""FFL: a classifier on the fused last maps of the peers teaches them, and their mean teaches it."""

from __future__ import annotations

import numpy as np
import torch

from tests.losses import oracles
from tests.losses.oracles import Array
from tests.schemes.cases import base, build, check_refused, random_batch
from tests.schemes.formulas import Formula, Seen, array, last
from tests.schemes.online.cases import NOT_CUT, RISEN, check_heads, check_learners, check_ramp
from tests.schemes.online.formulas import batch_norm, hard, peers_of, soft_weight, temperature_of

FFL = base("online", "ffl")
INDEPENDENT = "scheme.topology=independent"


def expected_map(
    maps: list[Array], depthwise: Array, first: list[Array], pointwise: Array, second: list[Array]
) -> Array:
    """The fused map: depthwise 3x3, batch norm, ReLU, 1x1, batch norm, ReLU of the maps concatenated by channels."""
    x = np.concatenate(maps, axis=1)
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    out = np.zeros_like(x)
    for i in range(3):
        for j in range(3):
            window = padded[:, :, i : i + x.shape[2], j : j + x.shape[3]]
            out += depthwise[:, 0, i, j][None, :, None, None] * window
    out = np.maximum(batch_norm(out, *first), 0.0)
    mixed = np.einsum("nchw,dc->ndhw", out, pointwise[:, :, 0, 0])
    return np.maximum(batch_norm(mixed, *second), 0.0)


def expected_total(seen: Seen) -> float:
    module, logits = seen.scheme.nodes["fused"].module, peers_of(seen)
    depthwise, first, _, pointwise, second, _ = module.body
    norms = [[array(norm.weight), array(norm.bias)] for norm in (first, second)]
    maps = [last(seen.out[name])[1] for name in seen.scheme.peers]
    joint = expected_map(maps, array(depthwise.weight), norms[0], array(pointwise.weight), norms[1])
    fused = joint.mean((2, 3)) @ array(module.fc.weight).T + array(module.fc.bias)
    mean = np.asarray(sum(logits) / len(logits))
    soft = oracles.kd(fused, mean, temperature=temperature_of(seen))
    soft += sum(oracles.kd(z, fused, temperature=temperature_of(seen)) for z in logits)
    return hard(fused, seen.labels) + sum(hard(z, seen.labels) for z in logits) + soft_weight(seen) * soft


FORMULA: Formula = expected_total
EXACT = {
    "ffl-three-independent": [
        *FFL,
        RISEN,
        "losses.response.temperature=2",
        INDEPENDENT,
        "scheme.peers=[resnet20,resnet20,resnet8x4]",
    ],
}
VARIANTS = {"online-ffl-independent-at": [*FFL, INDEPENDENT, "losses.feature=at"]}
REFUSED = NOT_CUT


def test_who_learns_from_a_term() -> None:
    check_learners(
        FFL,
        {
            "kd/fused->peer1": {"trunk", "peer1"},
            "kd/ensemble->fused": {"trunk", "peer0", "peer1", "fused"},
            "ce/fused": {"trunk", "peer0", "peer1", "fused"},
        },
    )


def test_the_soft_terms_rise_over_80_epochs() -> None:
    check_ramp(FFL)


def test_heads_and_their_costs() -> None:
    check_heads(FFL, ["peer0", "peer1", "fused", "ensemble"])


def test_the_fused_classifier_learns_through_its_features_and_not_through_the_mean_that_teaches_it() -> None:
    scheme, batch = build(*FFL, RISEN), random_batch()
    outputs = scheme.predict(batch, ["ensemble", "fused"])
    (term,) = [term for term in scheme.terms if term.name == "kd/ensemble->fused"]
    peers = [outputs[name] for name in scheme.peers]
    wanted = [*(peer.logits for peer in peers), *(peer.features["layer3"] for peer in peers)]
    found = torch.autograd.grad(term(outputs, batch), wanted, allow_unused=True)
    assert [gradient is None for gradient in found] == [True, True, False, False]


def test_peers_whose_maps_differ_in_size_are_refused() -> None:
    check_refused([*FFL, INDEPENDENT, "scheme.peers=[resnet20,convnet]"], "peer0 2x2, peer1 1x1")
