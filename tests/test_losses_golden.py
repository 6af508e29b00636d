"""Losses against reference values of public implementations, gradients included."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import references_adaptive
import references_channels
import references_maps
import references_relation
import references_response
import references_schemes_branches
import references_schemes_exits
import references_schemes_offline
import references_schemes_peers
import references_schemes_self
import torch

ORACLE = Path(__file__).resolve().parents[1].parent / "shared" / "oracle"
Case = dict[str, Any]


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


def load_cases(method: str) -> list[tuple[Case, dict[str, Any]]]:
    if not ORACLE.is_dir():
        pytest.skip("the reference values (a folder `shared/oracle` beside the repository) are not there")
    spec = importlib.util.spec_from_file_location("make_inputs", ORACLE / "make_inputs.py")
    assert spec is not None
    assert spec.loader is not None
    make_inputs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_inputs)
    cases = json.loads((ORACLE / "golden.json").read_text())["methods"][method]["cases"]
    return [(case, make_inputs.make_case(case["in"])) for case in cases]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("method", REFERENCES)
def test_values_and_gradients_equal_the_reference(method: str, dtype: torch.dtype) -> None:
    exact = dtype == torch.float64
    for case, arrays in load_cases(method):
        truth = case["f64"]
        x = {name: torch.from_numpy(a) for name, a in arrays.items()}
        x = {name: t.to(dtype) if t.is_floating_point() else t for name, t in x.items()}
        learners = [name for name in truth if name != "L"]
        for name in learners:
            x[name].requires_grad_()
        value = REFERENCES[method](x, case["p"])
        value.backward()
        noise = 5e-7 * case["p"].get("T", 1.0) ** 2
        assert value.item() == pytest.approx(truth["L"], rel=1e-10 if exact else 1e-5, abs=1e-14 if exact else noise), (
            case["id"]
        )
        for name in learners:
            gradient = x[name].grad
            assert gradient is not None
            norm = truth[name]["n"]
            rel = 1e-9 if exact else 1e-4
            tolerance = {"rel": rel, "abs": 1e-14 if exact else 1e-6 + rel * norm}
            assert gradient.norm().item() == pytest.approx(norm, **tolerance), case["id"]
            assert gradient.flatten()[:5].tolist() == pytest.approx(truth[name]["g"], **tolerance), case["id"]
