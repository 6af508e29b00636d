"""SwitOKD: a big network that pauses while it is too far ahead of the small one."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from kdschemes.core.distillation import Distillation
from kdschemes.core.nodes import Network
from kdschemes.core.types import Batch
from kdschemes.schemes.online.switokd import Switch, SwitchedNetwork, distances
from tests.losses import oracles
from tests.losses.oracles import Array
from tests.schemes.cases import START, base, batch_for, build, check_refused, network_of, same_state, state_of, trained
from tests.schemes.formulas import Formula, Seen, array
from tests.schemes.online.cases import LABELS, logits_of, sgd, step
from tests.schemes.online.formulas import taught, temperature_of

SWITOKD = base("online", "switokd")
SMALL_AND_BIG = [*base("online", "switokd", "convnet"), "scheme.large_model=convnet"]
LARGER = [*SWITOKD, "scheme.large_model=resnet8x4", "scheme.lr_multipliers=[0.1,1]", "losses.feature=hint"]


def expected_switch(small: Array, big: Array, labels: list[int]) -> tuple[float, float, bool]:
    """The gap of the two networks, the largest gap at which both learn, and whether the big one is paused."""
    gap = of_small = of_big = 0.0
    for z, v, label in zip(small, big, labels, strict=True):
        p, q = oracles.softmax(z), oracles.softmax(v)
        for c in range(len(p)):
            gap += abs(p[c] - q[c]) / len(labels)
            of_small += abs(p[c] - (c == label)) / len(labels)
            of_big += abs(q[c] - (c == label)) / len(labels)
    threshold = of_small - math.exp(-of_big / (of_small + of_big)) * of_big
    return gap, threshold, gap > threshold and of_big < of_small


def expected_total(seen: Seen) -> float:
    """Of both networks, also where the step of the big one is skipped."""
    both = [seen.logits("student"), seen.logits("big")]
    return taught(both, both[::-1], seen.labels, temperature=temperature_of(seen))


FORMULA: Formula = expected_total
EXACT = {"switokd-other": [*SWITOKD, "scheme.large_model=convnet", "losses.response.temperature=2"]}
VARIANTS = {"online-switokd-big": LARGER}


def fit(scheme: Distillation, name: str, batch: Batch, labels: Tensor) -> None:
    node = scheme.nodes[name]
    assert isinstance(node, Network)
    optimizer = torch.optim.SGD(node.parameters(), lr=0.05, momentum=0.9)
    for _ in range(20):
        optimizer.zero_grad()
        functional.cross_entropy(node.network(batch.images), labels).backward()
        optimizer.step()


@cache
def _ahead(n: int) -> tuple[Distillation, Batch]:
    scheme = build(*SMALL_AND_BIG).train()
    batch = batch_for(scheme, n=n)
    fit(scheme, "student", batch, (batch.labels + 5) % 10)
    fit(scheme, "big", batch, batch.labels)
    return scheme, batch


def ahead(n: int = 6) -> tuple[Distillation, SwitchedNetwork, Batch]:
    """Return a scheme whose student is wrong on a batch that the big network has learned."""
    scheme, batch = _ahead(n)
    scheme = copy.deepcopy(scheme)
    big = scheme.nodes["big"]
    assert isinstance(big, SwitchedNetwork)
    return scheme, big, batch


def test_the_switch_equals_its_formula() -> None:
    seen = set()
    for seed, sharpness in itertools.product(range(4), (0.0, 2.0, 4.0, 8.0)):
        small, big = logits_of(7, 10, seed=seed), logits_of(7, 10, seed=seed + 50, scale=1.0)
        big[torch.arange(7), LABELS] += sharpness
        gap, of_small, of_big, samples = distances(small, big, LABELS).tolist()
        assert samples == 7
        switch = Switch(gap / 7, of_small / 7, of_big / 7)
        expected = expected_switch(array(small), array(big), LABELS.tolist())
        assert (switch.gap, switch.threshold, switch.expert) == pytest.approx(expected, rel=1e-12)
        seen.add(switch.expert)
    assert seen == {True, False}


def test_a_worse_or_equal_or_perfect_big_network_is_never_paused() -> None:
    assert not Switch(gap=2.0, small=0.2, big=1.9).expert
    assert not Switch(gap=0.0, small=0.0, big=0.0).expert
    assert not Switch(gap=1.9, small=1.0, big=1.0).expert
    assert Switch(gap=1.8, small=1.9, big=0.2).expert
    certain = 1e4 * functional.one_hot(LABELS, 10).bfloat16()
    assert distances(certain, certain, LABELS).tolist() == [0.0, 0.0, 0.0, 7.0]


def test_an_expert_is_not_changed_while_the_student_learns() -> None:
    scheme, big, batch = ahead()
    optimizer = sgd(trained(scheme))
    parameters = list(big.parameters())
    for parameter in parameters:
        optimizer.state[parameter] = {"momentum_buffer": torch.ones_like(parameter)}
    weights = [p.detach().clone() for p in parameters]
    student = state_of(scheme.nodes["student"])
    result = scheme(batch, START)
    assert (result.losses["learning/big"], result.weights["learning/big"]) == (0.0, 0.0)
    scheme.zero_grad()
    step(scheme, optimizer, [batch])
    assert scheme.skipped_nodes() == {"big"}
    assert all(torch.equal(p, q) for p, q in zip(weights, parameters, strict=True))
    assert all((optimizer.state[p]["momentum_buffer"] == 1).all() for p in parameters)
    assert not same_state(scheme.nodes["student"], student)


def test_batch_norm_statistics_of_a_paused_network_are_updated() -> None:
    scheme = build(*SWITOKD).train()
    big = scheme.nodes["big"]
    before = state_of(big)
    scheme(batch_for(scheme), START)
    moved = {name for name, tensor in big.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {name for name in before if "running" in name or "num_batches" in name}


def test_a_paused_network_learns_again_when_the_gap_is_small() -> None:
    scheme, big, batch = ahead()
    scheme(batch, START)
    assert scheme.skipped_nodes() == {"big"}
    scheme.after_step()
    student = scheme.nodes["student"]
    assert isinstance(student, Network)
    student.network.load_state_dict(big.network.state_dict())
    assert scheme(batch, START).losses["learning/big"] == 1
    assert scheme.skipped_nodes() == set()


def test_the_decision_is_made_over_all_samples_of_the_step() -> None:
    """Also where single micro-batches would decide otherwise."""
    scheme, _, batch = ahead(8)
    worse = dataclasses.replace(batch, labels=(batch.labels + 5) % 10)
    out = scheme.predict(batch, ["student", "big"])
    scheme.after_step()
    small, big = array(out["student"].logits), array(out["big"].logits)
    answers = []
    for parts in ([batch], [worse], [batch, worse], [worse, batch], [worse, batch, batch, batch]):
        for part in parts:
            scheme(part, START)
        rests = scheme.skipped_nodes() == {"big"}
        scheme.after_step()
        labels = [int(label) for part in parts for label in part.labels]
        times = (len(parts), 1)
        assert rests == expected_switch(np.tile(small, times), np.tile(big, times), labels)[2]
        answers.append(rests)
    assert answers[:2] == [True, False]
    assert answers[2] is answers[3]
    assert answers[4]


def test_evaluation_decides_nothing_and_the_student_is_the_first_head() -> None:
    scheme, _, batch = ahead()
    scheme(batch, START)
    scheme.eval()
    scheme(dataclasses.replace(batch, labels=(batch.labels + 5) % 10), START)
    assert scheme.skipped_nodes() == {"big"}
    larger = build(*LARGER)
    assert larger.heads == ("student", "big")
    assert (larger.peers, larger.teacher) == ((), None)
    assert larger.lr_multipliers == {"student": 0.1, "big": 1.0}
    counts = [sum(p.numel() for p in network_of(larger, head).parameters()) for head in larger.heads]
    assert counts[0] < counts[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["model.checkpoint=[a,b]"], "model.checkpoint .*2 "),
        (["scheme.lr_multipliers=[1]"], r"scheme.lr_multipliers .*1 .* 2 networks.*\[student, big\]"),
        (["scheme.lr_multipliers=[1,2,3]"], "scheme.lr_multipliers .*3 .* 2 networks"),
        (["scheme.large_model=nothing"], "model 'nothing'"),
        (["data.cutmix=0.2"], "cutmix"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(options: list[str], message: str) -> None:
    check_refused([*SWITOKD, *options], message)
