"""PS-KD: the network's own predictions of the epoch before soften the labels."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from kdschemes.core.averages import PredictionBank
from kdschemes.core.cross_entropy import cross_entropy
from kdschemes.core.types import Output, Progress
from kdschemes.errors import UserError
from kdschemes.losses.response.soft_ce import soft_ce
from kdschemes.schemes.self_distillation.pskd import growing
from tests.losses import oracles
from tests.schemes.cases import DATA_SPEC, START, base, batch_for, build, random_batch
from tests.schemes.formulas import Case, Formula, Inputs, Reference, Seen
from tests.schemes.self_distillation.cases import forward_passes, outputs_of, training_steps

PSKD = base("self", "pskd")


def expected_total(seen: Seen) -> float:
    """CE with (1 - a) onehot + a p, p the predictions of the epoch before: in the first of the 10 epochs the label."""
    epoch = math.floor(seen.progress.epoch)
    past = np.stack([oracles.softmax(z) for z in seen.logits("past")])
    if epoch == 0:
        past = oracles.one_hot(seen.labels, past.shape[1])
    alpha = seen.config.scheme.alpha * (epoch + 1) / 10
    total = 0.0
    for z, p, y in zip(seen.logits("student"), past, seen.labels, strict=True):
        for c, log_q in enumerate(oracles.log_softmax(z)):
            total -= ((1 - alpha) * (c == y) + alpha * p[c]) * log_q
    return total / len(past)


def recorded(x: Inputs, p: Case) -> Tensor:
    """The reference rounds its targets to float32, so that their sum, which is 1 in ours, is not quite 1."""
    alpha, rows = p["alpha_t"], zip(x["s"].split(1), x["prev"].split(1), strict=True)
    soft = torch.stack([past.sum() * soft_ce(z, past.log(), temperature=1.0) for z, past in rows]).mean()
    return (1 - alpha) * cross_entropy(x["s"], x["y"]) + alpha * soft


FORMULA: Formula = expected_total
EXACT = {"pskd-other": [*PSKD, "scheme.alpha=1"]}
VARIANTS = {"self-pskd-ctkd": [*PSKD, "losses.response=ctkd"]}
REFERENCES: dict[str, Reference] = {"PS-KD": recorded}


def test_a_step_takes_one_forward_pass() -> None:
    scheme = build(*PSKD).train()
    scheme(batch_for(scheme), START)
    assert forward_passes(scheme) == 1


def test_the_past_is_what_was_predicted_an_epoch_before() -> None:
    answered: dict[int, Tensor] = {}
    overrides = [*base("self", "pskd"), "scheme.alpha=0.6"]
    for scheme, batch, progress in training_steps(*overrides, epochs=3):
        epoch = progress.step // progress.steps_per_epoch
        memory = scheme.nodes["past"]
        assert isinstance(memory, PredictionBank)
        past = memory.logits[batch.index]
        weights = scheme.eval()(batch, progress).weights
        scheme.train()
        assert weights == pytest.approx(
            {"ce/student": 1 - 0.2 * (epoch + 1), "soft_ce/past->student": 0.2 * (epoch + 1)}
        )
        if epoch == 0:
            one_hot = torch.nn.functional.one_hot(batch.labels, 10).double()
            torch.testing.assert_close(past.softmax(1), one_hot, rtol=0, atol=1e-40)
        else:
            assert torch.equal(past, torch.stack([answered[int(i)] for i in batch.index]))
        state = {name: tensor.clone() for name, tensor in scheme.state_dict().items()}
        answered |= dict(zip(batch.index.tolist(), outputs_of(scheme, batch)["student"].logits.detach(), strict=True))
        memory._new.clear()
        scheme.load_state_dict(state)


def test_the_first_epoch_learns_from_labels_alone() -> None:
    scheme = build(*base("self", "pskd"))
    batch = random_batch()
    value = scheme(batch, START)
    expected = cross_entropy(value.outputs["student"].logits, batch.labels)
    assert value.total.item() == pytest.approx(expected.item(), rel=1e-14)


def test_a_prediction_bank_is_written_after_a_training_step_only() -> None:
    node = PredictionBank("past", "student", DATA_SPEC)
    batch = random_batch(n=3, dtype=torch.float32)
    output = Output(torch.randn(3, 10, generator=torch.Generator().manual_seed(0)))
    assert node.size == 60 * (10 * 4 + 1)
    node.eval()(batch, {"student": output})
    node.after_step()
    assert not node.known.any()
    recalled = node.train()(batch, {"student": output})["past"]
    assert recalled.known is not None
    assert not recalled.known.any()
    node.after_step()
    assert node.known.tolist() == [True] * 3 + [False] * 57
    recalled = node(dataclasses.replace(batch, index=torch.tensor([2, 5, 0])), {"student": output})["past"]
    assert torch.equal(recalled.logits[[0, 2]], output.logits[[2, 0]])
    assert recalled.known is not None
    assert recalled.known.tolist() == [True, False, True]


def test_the_weight_of_the_past_grows_by_epochs() -> None:
    weight = growing(0.8)
    found = [weight(Progress(step, 60, 6)) for step in (0, 5, 6, 29, 30, 59)]
    assert found == pytest.approx([0.08, 0.08, 0.16, 0.4, 0.48, 0.8])


def test_without_a_response_it_is_cross_entropy() -> None:
    weights = build(*base("self", "pskd"), "losses.response=none")(random_batch(), START).weights
    assert weights == {"ce/student": 1.0}


def test_losses_of_features_are_refused() -> None:
    with pytest.raises(UserError, match="no features"):
        build(*PSKD, "losses.feature=at")
