"""Losses against the values of public implementations in `reference/`, gradients included."""

from __future__ import annotations

import hashlib
import json
import re

import pytest
import torch

from tests import REPOSITORY
from tests.losses import (
    references_adaptive,
    references_channels,
    references_maps,
    references_relation,
    references_response,
)
from tests.reference.inputs import make_inputs
from tests.schemes.offline import references as references_schemes_offline
from tests.schemes.online import references_branches as references_schemes_branches
from tests.schemes.online import references_peers as references_schemes_peers
from tests.schemes.self_distillation import references_exits as references_schemes_exits
from tests.schemes.self_distillation import references_single as references_schemes_self

FOLDER = REPOSITORY / "tests" / "reference"
RECORDED = json.loads((FOLDER / "losses.json").read_text())
REFERENCES = {
    **references_response.REFERENCES,
    **references_adaptive.REFERENCES,
    **references_maps.REFERENCES,
    **references_channels.REFERENCES,
    **references_relation.REFERENCES,
    **references_schemes_exits.REFERENCES,
    **references_schemes_offline.REFERENCES,
    **references_schemes_branches.REFERENCES,
    **references_schemes_peers.REFERENCES,
    **references_schemes_self.REFERENCES,
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
