"""A big network that waits while it is too far ahead of the small one."""

from __future__ import annotations

import copy
import dataclasses
import itertools
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
from tests.schemes.cases import START, VARIANTS, base, batch_for, build, network_of, same_state, state_of, trained
from tests.schemes.formulas import array
from tests.schemes.online import oracles as oracles_online
from tests.schemes.online.cases import LABELS, logits_of, sgd, step
from tests.schemes.online.variants import SWITOKD

SMALL_AND_BIG = [*base("online", "switokd", "convnet"), "scheme.large_model=convnet"]


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
    """Return a scheme whose student is mistaken on a batch that its big network knows."""
    scheme, batch = _ahead(n)
    scheme = copy.deepcopy(scheme)
    big = scheme.nodes["big"]
    assert isinstance(big, SwitchedNetwork)
    return scheme, big, batch


def test_the_switch_is_the_formula_of_explicit_loops() -> None:
    seen = set()
    for seed, sharpness in itertools.product(range(4), (0.0, 2.0, 4.0, 8.0)):
        small, big = logits_of(7, 10, seed=seed), logits_of(7, 10, seed=seed + 50, scale=1.0)
        big[torch.arange(7), LABELS] += sharpness
        gap, of_small, of_big, samples = distances(small, big, LABELS).tolist()
        assert samples == 7
        switch = Switch(gap / 7, of_small / 7, of_big / 7)
        expected = oracles_online.switch(array(small), array(big), LABELS.tolist())
        assert (switch.gap, switch.threshold, switch.expert) == pytest.approx(expected, rel=1e-12)
        seen.add(switch.expert)
    assert seen == {True, False}


def test_a_worse_or_equal_or_perfect_big_network_never_rests() -> None:
    assert not Switch(gap=2.0, small=0.2, big=1.9).expert
    assert not Switch(gap=0.0, small=0.0, big=0.0).expert
    assert not Switch(gap=1.9, small=1.0, big=1.0).expert
    assert Switch(gap=1.8, small=1.9, big=0.2).expert
    certain = 1e4 * functional.one_hot(LABELS, 10).bfloat16()
    assert distances(certain, certain, LABELS).tolist() == [0.0, 0.0, 0.0, 7.0]


def test_an_expert_rests_to_the_last_bit_and_the_student_goes_on() -> None:
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


def test_the_statistics_of_the_big_network_go_on_while_it_rests() -> None:
    scheme = build(*SWITOKD).train()
    big = scheme.nodes["big"]
    before = state_of(big)
    scheme(batch_for(scheme), START)
    moved = {name for name, tensor in big.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {name for name in before if "running" in name or "num_batches" in name}


def test_a_network_that_rested_learns_again_when_the_gap_is_small() -> None:
    scheme, big, batch = ahead()
    scheme(batch, START)
    assert scheme.skipped_nodes() == {"big"}
    scheme.after_step()
    student = scheme.nodes["student"]
    assert isinstance(student, Network)
    student.network.load_state_dict(big.network.state_dict())
    assert scheme(batch, START).losses["learning/big"] == 1
    assert scheme.skipped_nodes() == set()


def test_the_decision_is_one_of_all_samples_of_the_step() -> None:
    """With micro-batches that would decide otherwise by themselves."""
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
        assert rests == oracles_online.switch(np.tile(small, times), np.tile(big, times), labels)[2]
        answers.append(rests)
    assert answers[:2] == [True, False]
    assert answers[2] is answers[3]
    assert answers[4]


def test_evaluation_decides_nothing_and_the_student_is_reported() -> None:
    scheme, _, batch = ahead()
    scheme(batch, START)
    scheme.eval()
    scheme(dataclasses.replace(batch, labels=(batch.labels + 5) % 10), START)
    assert scheme.skipped_nodes() == {"big"}
    larger = build(*VARIANTS["online-switokd-big"])
    assert larger.heads == ("student", "big")
    assert (larger.peers, larger.teacher) == ((), None)
    assert larger.lr_multipliers == {"student": 0.1, "big": 1.0}
    counts = [sum(p.numel() for p in network_of(larger, head).parameters()) for head in larger.heads]
    assert counts[0] < counts[1]
