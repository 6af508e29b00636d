"""PCL: an ensemble of the peers and their averages over training teach each peer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from kdschemes.core.averages import Ema
from kdschemes.core.cross_entropy import cross_entropy
from kdschemes.core.schedules import sigmoid_ramp
from kdschemes.core.types import Progress
from kdschemes.losses.response.kd import kd
from tests.losses import oracles
from tests.schemes.cases import START, base, batch_for, build, check_refused, network_of, random_batch, trained
from tests.schemes.formulas import Case, Formula, Inputs, Reference, Seen, array, last
from tests.schemes.online import references
from tests.schemes.online.cases import NOT_CUT, RISEN, check_heads, check_learners, check_ramp
from tests.schemes.online.formulas import hard, peers_of, soft_weight, temperature_of

PCL = base("online", "pcl")
INDEPENDENT = "scheme.topology=independent"


def expected_total(seen: Seen) -> float:
    """CE of all, and KD from the ensemble and from the mean over the averages of the other peers to each peer."""
    head, logits, temperature = seen.scheme.nodes["ensemble"].fc, peers_of(seen), temperature_of(seen)
    features = np.concatenate([last(seen.out[name])[1].mean((2, 3)) for name in seen.scheme.peers], axis=1)
    ensemble = features @ array(head.weight).T + array(head.bias)
    averages = [seen.logits(f"{name}/ema") for name in seen.scheme.peers]
    total = hard(ensemble, seen.labels)
    for j, z in enumerate(logits):
        others = [oracles.kd(z, m, temperature=temperature) for k, m in enumerate(averages) if k != j]
        soft = oracles.kd(z, ensemble, temperature=temperature) + sum(others) / len(others)
        total += hard(z, seen.labels) + soft_weight(seen) * soft
    return total


def recorded(x: Inputs, p: Case) -> Tensor:
    """The reference's ramp takes 1 epoch, not the paper's 80, falls again after it, and is 1 beyond epoch 80."""
    epoch = p["epoch"]
    weight = 1.0 if epoch > 80 else sigmoid_ramp(1.0, 1.0)(Progress(min(epoch, 2 - epoch) * 10, 100, 10))
    total = references.hard(x, "012") + cross_entropy(x["e"], x["y"])
    for j in range(3):
        z = x[f"z{j}"]
        others = [kd(z, x[f"m{k}"], temperature=float(p["T"])) for k in range(3) if k != j]
        soft = kd(z, x["e"].detach(), temperature=float(p["T"])) + torch.stack(others).mean()
        total = total + weight * soft
    return total


FORMULA: Formula = expected_total
EXACT = {
    "pcl-independent": [*PCL, RISEN, "losses.response.temperature=2", INDEPENDENT, "scheme.peers=2"],
    "pcl-one-view": [*PCL, RISEN, "losses.response.temperature=2", "scheme.views=shared", "scheme.decay=0"],
}
VARIANTS = {"online-pcl-independent-hint": [*PCL, INDEPENDENT, "scheme.peers=2", "losses.feature=hint"]}
REFUSED = NOT_CUT
REFERENCES: dict[str, Reference] = {"PCL.shaoeric": recorded}


def test_who_learns_from_a_term() -> None:
    check_learners(
        PCL,
        {
            "kd/ensemble->peer1": {"trunk", "peer1"},
            "kd/peer0/ema->peer1": {"trunk", "peer1"},
            "ce/ensemble": {"trunk", "peer0", "peer1", "peer2", "ensemble"},
        },
    )


def test_the_soft_terms_rise_over_80_epochs() -> None:
    check_ramp(PCL, average_weight=0.5)


def test_heads_and_their_costs() -> None:
    heads = ["peer0", "peer1", "peer2", "ensemble", "peer0/ema", "peer1/ema", "peer2/ema"]
    check_heads(PCL, heads, lambda _: 192 * 10 + 10)


@pytest.mark.parametrize("topology", ["shared_trunk", "independent"])
def test_averages_follow_with_a_decay_that_warms_up(topology: str) -> None:
    scheme = build(*PCL, f"scheme.topology={topology}", "scheme.decay=0.7", "scheme.peers=2").train()
    sources = {name: node for name, node in scheme.nodes.items() if not isinstance(node, Ema) and name != "ensemble"}
    expected = {name: [p.detach().clone() for p in node.parameters()] for name, node in sources.items()}
    optimizer = torch.optim.SGD(trained(scheme), lr=0.1)
    for step in range(5):
        optimizer.zero_grad()
        scheme(batch_for(scheme, seed=step), START).total.backward()
        optimizer.step()
        scheme.after_step()
        decay = min(1 - 1 / (step + 2), 0.7)
        for name, node in sources.items():
            pairs = zip(expected[name], node.parameters(), strict=True)
            expected[name] = [decay * old + (1 - decay) * new.detach() for old, new in pairs]
    for name, values in expected.items():
        average = scheme.nodes[f"{name}/ema"]
        for found, value in zip(average.parameters(), values, strict=True):
            torch.testing.assert_close(found, value, rtol=1e-6, atol=1e-9)
        assert not any(p.requires_grad for p in average.parameters())
        assert not any(module.training for module in average.average.modules())
        assert f"nodes.{name}/ema.steps" in scheme.state_dict()


def test_peers_and_their_averages_see_their_own_view_and_the_batch_itself_in_evaluation() -> None:
    scheme = build(*PCL).eval()
    assert scheme.aux_batches == ("view1", "view2")
    batch = batch_for(scheme)
    names = [*scheme.peers, *(f"{name}/ema" for name in scheme.peers)]
    views = [batch, batch.aux_batches["view1"], batch.aux_batches["view2"]] * 2
    outputs, plain = scheme.predict(batch, names), scheme.predict(random_batch(), names)
    for name, view in zip(names, views, strict=True):
        torch.testing.assert_close(outputs[name].logits, network_of(scheme, name)(view.images), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(plain[name].logits, network_of(scheme, name)(batch.images), rtol=1e-9, atol=1e-9)


def test_peers_may_have_their_own_architecture_rate_and_seed() -> None:
    peers = ["scheme.peers=[resnet20,convnet]", "scheme.lr_multipliers=[1,0.5]", "scheme.seeds=[3,4]"]
    scheme = build(*PCL, INDEPENDENT, *peers)
    assert scheme.lr_multipliers == {"peer0": 1.0, "peer1": 0.5}
    assert scheme.nodes["ensemble"].fc.in_features == 64 + 256


def test_an_average_of_the_scheme_is_refused() -> None:
    check_refused([*PCL, "train.ema=0.9"], "train.ema")
