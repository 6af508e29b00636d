"""Every method: its total by an independent formula, gradients on every architecture, seeds, and a golden trace.

A golden trace is the total loss of the first steps on digits, in float64 (`golden/NAME.json`); the exhaustive tests
compare all 20 steps, the others the first 6. A change that is not meant to change results must keep it; after one that
is, write it again by `KDSCHEMES_WRITE_GOLDEN=1 python -m pytest tests/schemes/test_schemes.py -m exhaustive -k golden`.
The tolerance is that of the initial weights and images, which are float32: their last bit may depend on the machine.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import os

import numpy as np
import pytest
import torch

from kdschemes.config.data import Digits
from kdschemes.config.schemes import SCHEMES
from kdschemes.config.schemes.custom import Topology
from kdschemes.core.types import Progress
from kdschemes.data import open_data
from kdschemes.errors import UserError
from kdschemes.schemes import BUILDERS, build_scheme
from tests import REPOSITORY
from tests.schemes.cases import (
    ARCHITECTURES,
    DATA_SPEC,
    DEFAULTS,
    METHODS,
    START,
    base,
    batch_for,
    build,
    configure,
    in_double,
    same_state,
    trained,
)
from tests.schemes.formulas import Seen
from tests.schemes.table import EXACT, FORMULAS, REFUSED, VARIANTS
from tests.schemes.test_custom import NAMES

GOLDEN = REPOSITORY / "tests" / "golden"
GOLDEN_STEPS = 20
FIRST_STEPS = 6
LATER = Progress(step=37, total_steps=100, steps_per_epoch=10)


def test_every_method_has_a_builder_and_a_test_file_with_its_formula() -> None:
    methods = {options for table in SCHEMES.values() for options in table.values()}
    assert methods | {Topology} == set(BUILDERS)
    topologies = {f"topology-{name}" for name in NAMES}
    assert set(METHODS) | topologies == set(FORMULAS), "give FORMULA in tests/schemes/SCHEME/test_METHOD.py"


@pytest.mark.parametrize("name", EXACT)
def test_total_is_the_formula_of_the_method(name: str) -> None:
    """In training mode, twice: at the start, and later, when ramps have risen and memories are filled."""
    config, scheme = configure(*EXACT[name]), build(*EXACT[name]).train()
    for progress, seed in ((START, 0), (LATER, 1)):
        batch = batch_for(scheme, n=7, seed=seed)
        before = copy.deepcopy(scheme)
        with torch.no_grad():
            outputs = before.predict(batch, {name for node in before.nodes.values() for name in node.provides})
        expected = FORMULAS[f"{config.scheme.name}-{config.scheme.method}"](
            Seen(config, scheme, outputs, batch, progress)
        )
        assert scheme(batch, progress).total.item() == pytest.approx(expected, rel=1e-10)
        scheme.after_step()


@pytest.mark.parametrize("name", VARIANTS)
def test_total_is_the_weighted_sum_of_the_reported_losses(name: str) -> None:
    scheme = build(*VARIANTS[name])
    result = scheme(batch_for(scheme), START)
    assert result.losses.keys() == result.weights.keys()
    assert not any(value.requires_grad for value in result.losses.values())
    assert not any(output.logits.requires_grad for output in result.outputs.values())
    total = sum(weight * result.losses[term].item() for term, weight in result.weights.items())
    assert result.total.item() == pytest.approx(total, rel=1e-12)


PROJECTING = ["offline-kd-hint-rkd", "offline-kd-fsp-adapters", "online-dml-mixed-peers", "self-byot-linear"]
TRACED = [
    *DEFAULTS,
    *(f"topology-{name}" for name in NAMES),
    *PROJECTING,
    "offline-kd-two-teachers-hint",
    "online-dml-shared-trunk",
    "self-byot-at-rkd",
]


@pytest.mark.parametrize(
    "architecture",
    [pytest.param(name, marks=[pytest.mark.exhaustive] * ("mobilenet" in name)) for name in ARCHITECTURES],
)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_every_parameter_of_any_architecture(method: str, architecture: str) -> None:
    data_spec = ARCHITECTURES[architecture]
    if (method, architecture) in REFUSED:
        with pytest.raises(UserError, match=REFUSED[method, architecture]):
            build(*base(*METHODS[method], architecture), data_spec=data_spec)
        return
    scheme = build(*base(*METHODS[method], architecture), data_spec=data_spec)
    result = scheme.train()(batch_for(scheme, data_spec), LATER)
    result.total.backward()
    assert result.total.isfinite()
    missing = [n for n, p in scheme.named_parameters() if p.requires_grad and p.grad is None]
    silent = [n for n, p in scheme.named_parameters() if p.grad is not None and p.dim() > 1 and not p.grad.any()]
    assert trained(scheme)
    assert not missing
    assert not silent
    assert all(output.logits.shape == (6, data_spec.num_classes) for output in result.outputs.values())


@pytest.mark.parametrize("name", VARIANTS)
def test_every_trained_parameter_is_in_one_group(name: str) -> None:
    scheme = build(*VARIANTS[name])
    grouped = [p for group in scheme.parameter_groups().values() for p in group]
    assert len({id(p) for p in grouped}) == len(grouped)
    assert {id(p) for p in grouped} == {id(p) for p in trained(scheme)}


@pytest.mark.parametrize("name", [*DEFAULTS, *PROJECTING, "online-dml-shared-trunk"])
def test_initial_weights_are_a_function_of_the_seed_alone(name: str) -> None:
    torch.manual_seed(1)
    first = build_scheme(configure(*VARIANTS[name], "seed=3"), DATA_SPEC)
    torch.manual_seed(2)
    before = torch.random.get_rng_state()
    second = build_scheme(configure(*VARIANTS[name], "seed=3"), DATA_SPEC)
    assert same_state(first, second)
    assert torch.equal(torch.random.get_rng_state(), before)
    other = build(*VARIANTS[name])
    drawn = [node for node in first.nodes if trained(first.nodes[node]) and node != "teacher"]
    assert all(not same_state(first.nodes[node], other.nodes[node]) for node in drawn)
    assert all(not torch.equal(p, q) for p, q in zip(trained(first.terms), trained(other.terms), strict=True))


def trace(overrides: list[str], count: int) -> list[float]:
    """Return the total of each of the first steps on digits, by SGD with momentum."""
    data = open_data(Digits(), seed=0, device=torch.device("cpu"))
    data_spec = dataclasses.replace(DATA_SPEC, train_labels=data.train_labels)
    scheme = build_scheme(configure(*overrides), data_spec).double().train()
    optimizer = torch.optim.SGD(trained(scheme), lr=0.02, momentum=0.9)
    steps = data.train_steps(
        0, batch_size=16, grad_accum_steps=1, rank=0, world=1, drop_last=False, aux_batches=scheme.aux_batches
    )
    totals = []
    for (batch,), _ in zip(steps, range(count), strict=False):
        result = scheme(in_double(batch), START)
        optimizer.zero_grad()
        result.total.backward()
        optimizer.step()
        scheme.after_step()
        totals.append(result.total.item())
    return totals


@pytest.mark.parametrize("count", [FIRST_STEPS, pytest.param(GOLDEN_STEPS, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("name", TRACED)
def test_golden_trace(name: str, count: int) -> None:
    totals, path = trace(VARIANTS[name], count), GOLDEN / f"{name}.json"
    if count == GOLDEN_STEPS and os.environ.get("KDSCHEMES_WRITE_GOLDEN"):
        content = {"overrides": VARIANTS[name], "torch": torch.__version__, "totals": totals}
        path.write_text(json.dumps(content, indent=2) + "\n")
    assert path.is_file(), "no golden trace yet: see the head of this file"
    golden = json.loads(path.read_text())
    assert golden["overrides"] == VARIANTS[name]
    np.testing.assert_allclose(totals, golden["totals"][:count], rtol=1e-6)
