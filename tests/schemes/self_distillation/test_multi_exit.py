"""Multi-exit networks: the deepest output teaches the exits at a temperature that grows with its confidence."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import numpy as np
import pytest
import torch

from kdschemes.core.distillation import Distillation
from kdschemes.core.types import Batch
from kdschemes.evaluation.evaluate import evaluation_mode
from kdschemes.schemes.self_distillation.multi_exit import WarmingExits, WarmingTransfer
from tests.losses import oracles
from tests.losses.oracles import Array
from tests.schemes.cases import START, base, build, random_batch, trained
from tests.schemes.formulas import Formula, Seen, array
from tests.schemes.self_distillation.cases import term_of
from tests.schemes.self_distillation.formulas import soft_ce

MULTI_EXIT = base("self", "multi_exit")


def multi_exit_total(
    deepest: Array, exits: list[Array], labels: list[int], *, alpha: float, last: float, temperature: float
) -> float:
    target = oracles.one_hot(labels, deepest.shape[1])
    total = last * oracles.cross_entropy(deepest, target)
    for student in exits:
        soft = temperature**2 * soft_ce(student, deepest, temperature=temperature)
        total += (1 - alpha) * oracles.cross_entropy(student, target) + alpha * soft
    return total


def expected_confidence(logits: Array, *, temperature: float) -> float:
    """Mean over samples of the highest softened probability."""
    return float(np.mean([oracles.softmax(z / temperature).max() for z in logits]))


def expected_total(seen: Seen) -> float:
    scheme = seen.config.scheme
    return scheme.scale * multi_exit_total(
        seen.logits("student"),
        [seen.logits(name) for name in ("student/exit1", "student/exit2")],
        seen.labels,
        alpha=scheme.alpha,
        last=1 - scheme.alpha if scheme.final_exit_weight is None else scheme.final_exit_weight,
        temperature=seen.config.losses.response.temperature,
    )


FORMULA: Formula = expected_total
EXACT = {
    "multi-exit-other": [*MULTI_EXIT, "scheme.alpha=0.3", "scheme.final_exit_weight=1", "scheme.scale=0.8"],
    "multi-exit-constant": [*MULTI_EXIT, "scheme.growth=1", "losses.response.temperature=4"],
}
VARIANTS = {"self-multi_exit-warming": [*MULTI_EXIT, "scheme.confidence=0.1", "losses.relation=rkd"]}


def warmed(scheme: Distillation) -> WarmingExits:
    node = scheme.nodes["student"]
    assert isinstance(node, WarmingExits)
    return node


def steps(scheme: Distillation, seeds: Iterable[int], split: int = 1) -> list[float]:
    """Take steps and return the deepest exit's temperature that each one's loss was computed at."""
    optimizer = torch.optim.SGD(trained(scheme), lr=0.05)
    temperatures = []
    for seed in seeds:
        batch = random_batch(n=8, seed=seed)
        optimizer.zero_grad()
        for images, labels, index in zip(
            *(x.chunk(split) for x in (batch.images, batch.labels, batch.index)), strict=True
        ):
            scheme(Batch(images, labels, index, micro_size=len(index), step_size=8), START).total.backward()
        optimizer.step()
        temperatures.append(warmed(scheme).temperature * warmed(scheme).factor.item())
        scheme.after_step()
    return temperatures


def test_the_temperature_grows_after_each_confident_step_and_only_then() -> None:
    scheme = build(
        *MULTI_EXIT, "scheme.confidence=0.17", "scheme.growth=1.1", "losses.response.temperature=0.8"
    ).train()
    temperature, grown = 0.8, 0
    for seed in range(12):
        before = copy.deepcopy(scheme)
        (used,) = steps(scheme, [seed])
        assert used == pytest.approx(temperature, rel=1e-12), "the step's own loss has the temperature before it"
        with torch.no_grad():
            logits = before.predict(random_batch(n=8, seed=seed), ["student"])["student"].logits
        sure = expected_confidence(array(logits), temperature=temperature) > 0.17
        temperature *= 1.1 if sure else 1.0
        grown += sure
    assert warmed(scheme).growths == grown
    assert 2 < grown < 12, "both cases were met"
    total = scheme(random_batch(n=8, seed=99), START).total.item()
    with torch.no_grad():
        outputs = copy.deepcopy(scheme).predict(random_batch(n=8, seed=99), scheme.heads)
    deepest, *exits = (array(outputs[head].logits) for head in scheme.heads)
    labels = random_batch(n=8).labels.tolist()
    expected = multi_exit_total(deepest, exits, labels, alpha=0.5, last=0.5, temperature=temperature)
    assert total == pytest.approx(expected, rel=1e-10)


def test_the_temperature_resumes_from_a_checkpoint() -> None:
    overrides = [*MULTI_EXIT, "scheme.confidence=0.15"]
    whole, first, second = build(*overrides).train(), build(*overrides).train(), build(*overrides).train()
    temperatures = steps(whole, range(6))
    steps(first, range(3))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert warmed(second).growths == warmed(first).growths > 0
    assert steps(second, range(3, 6)) == temperatures[3:]


def test_micro_batches_of_a_step_count_together_and_evaluation_not_at_all() -> None:
    scheme = build(*MULTI_EXIT, "scheme.confidence=0.05").train()
    steps(scheme, [0], split=4)
    assert warmed(scheme).growths == 1
    with evaluation_mode(scheme), torch.no_grad():
        scheme.predict(random_batch(), scheme.heads)
    scheme.after_step()
    assert warmed(scheme).growths == 1
    constant = build(*MULTI_EXIT, "scheme.confidence=0", "scheme.growth=1").train()
    assert steps(constant, range(3)) == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("loss", ["soft_ce", "kd"])
def test_a_warmer_edge_is_the_loss_at_that_temperature(loss: str) -> None:
    warm = build(*MULTI_EXIT, "scheme.growth=1.5", f"losses.response={loss}", "losses.response.temperature=2").eval()
    hot = build(*MULTI_EXIT, f"losses.response={loss}", "losses.response.temperature=4.5").eval()
    warmed(warm).growths.fill_(2)
    name, batch = f"{loss}/student->student/exit1", random_batch()
    outputs = warm.predict(batch, warm.heads)
    assert isinstance(term_of(warm, name), WarmingTransfer)
    a, b = term_of(warm, name)(outputs, batch), term_of(hot, name)(outputs, batch)
    assert a.item() == pytest.approx(b.item(), rel=1e-12)


def test_without_a_soft_term_it_is_deep_supervision() -> None:
    alone = build(*MULTI_EXIT, "losses.response=none")(random_batch(), START)
    plain = build(*base("supervised", "deep_supervision"))(random_batch(), START)
    assert alone.weights == plain.weights
    assert alone.total.item() == pytest.approx(plain.total.item(), rel=1e-12)
    shares = build(*MULTI_EXIT, "scheme.alpha=0.2", "scheme.scale=0.5")(random_batch(), START).weights
    soft = {f"soft_ce/student->student/exit{k}": 0.1 for k in (1, 2)}
    assert shares == pytest.approx({"ce/student": 0.4, "ce/student/exit1": 0.4, "ce/student/exit2": 0.4} | soft)
