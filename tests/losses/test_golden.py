"""Losses against the values of public implementations in `reference/`, gradients included."""

from __future__ import annotations

import hashlib
import json
import re

import pytest
import torch

from tests import REPOSITORY
from tests.core import test_cross_entropy
from tests.losses import table
from tests.reference.inputs import make_inputs
from tests.schemes import table as schemes

FOLDER = REPOSITORY / "tests" / "reference"
RECORDED = json.loads((FOLDER / "losses.json").read_text())
REFERENCES = {
    **table.REFERENCES,
    **test_cross_entropy.REFERENCES,
    **schemes.REFERENCES,
}


def test_every_reference_is_compared_and_named_in_the_readme() -> None:
    assert sorted(REFERENCES) == sorted(RECORDED["references"])
    sources = (FOLDER / "README.md").read_text().partition("## Sources")[2]
    named = [name for row in re.findall(r"^\| .*", sources, re.MULTILINE) for name in re.findall(r"`([^`]+)`:", row)]
    assert sorted(named) == sorted(REFERENCES)


def test_inputs_are_those_that_the_references_were_given() -> None:
    digest = hashlib.sha256()
    for _, cases in sorted(RECORDED["references"].items()):
        for case in cases:
            for _, array in sorted(make_inputs(case["inputs"]).items()):
                digest.update(array.tobytes())
    assert digest.hexdigest() == RECORDED["inputs_sha256"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("method", REFERENCES)
def test_values_and_gradients_equal_the_reference(method: str, dtype: torch.dtype) -> None:
    exact = dtype == torch.float64
    rel = 1e-9 if exact else 1e-4
    for case in RECORDED["references"][method]:
        truth, name = case["float64"], case["id"]
        x = {key: torch.from_numpy(array) for key, array in make_inputs(case["inputs"]).items()}
        x = {key: t.to(dtype) if t.is_floating_point() else t for key, t in x.items()}
        for learner in truth["gradients"]:
            x[learner].requires_grad_()
        value = REFERENCES[method](x, case["parameters"])
        value.backward()
        noise = 5e-7 * case["parameters"].get("T", 1.0) ** 2
        tolerance = {"rel": 1e-10, "abs": 1e-14} if exact else {"rel": 1e-5, "abs": noise}
        assert value.item() == pytest.approx(truth["loss"], **tolerance), name
        for learner, expected in truth["gradients"].items():
            gradient = x[learner].grad
            assert gradient is not None
            tolerance = {"rel": rel, "abs": 1e-14 if exact else 1e-6 + rel * expected["norm"]}
            assert gradient.norm().item() == pytest.approx(expected["norm"], **tolerance), name
            assert gradient.flatten()[:5].tolist() == pytest.approx(expected["first"], **tolerance), name
