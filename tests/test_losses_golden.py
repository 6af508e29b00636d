"""Losses against reference values of public implementations, gradients included."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from kdschemes.losses.feature import attention_transfer, hint
from kdschemes.losses.relation import fsp, rkd_angle, rkd_distance
from kdschemes.losses.response import cross_entropy, kd

ORACLE = Path(__file__).resolve().parents[1].parent / "shared" / "oracle"
Case = dict[str, Any]


def soft(x: dict[str, Tensor], p: Case) -> Tensor:
    return kd(x["s"], x["t"], temperature=float(p["T"]))


def soft_and_hard(x: dict[str, Tensor], p: Case) -> Tensor:
    return p["alpha"] * soft(x, p) + (1 - p["alpha"]) * cross_entropy(x["s"], x["y"])


def soft_over_classes_and_hard(x: dict[str, Tensor], p: Case) -> Tensor:
    return p["alpha"] * soft(x, p) / x["s"].shape[1] + (1 - p["alpha"]) * cross_entropy(x["s"], x["y"])


def attention(x: dict[str, Tensor], p: Case) -> Tensor:
    return attention_transfer(x["s"], x["t"])


def relations(x: dict[str, Tensor], p: Case) -> Tensor:
    return p["wd"] * rkd_distance(x["s"], x["t"]) + p["wa"] * rkd_angle(x["s"], x["t"])


def unit_relations(x: dict[str, Tensor], p: Case) -> Tensor:
    return relations({name: functional.normalize(e, dim=1) for name, e in x.items()}, p)


REFERENCES: dict[str, Callable[[dict[str, Tensor], Case], Tensor]] = {
    "KD.RepDistiller": soft,
    "KD.mdistiller": soft,
    "KD.mmrazor": soft,
    "KD.sota": soft,
    "KD.attention-transfer": soft_and_hard,
    "KD.torchdistill": lambda x, p: soft_and_hard(x, {**p, "alpha": 1 - p["alpha"]}),
    "KD.torchdistill_alpha0": lambda x, p: soft(x, p) / p["T"] ** 2,
    "KD.haitongli": soft_over_classes_and_hard,
    "KD.Teacher-free": soft_over_classes_and_hard,
    "FitNet.RepDistiller": lambda x, p: hint(x["s"], x["t"]),
    "AT.RepDistiller": attention,
    "AT.mdistiller": attention,
    "AT.attention-transfer": attention,
    "AT.torchdistill_code": attention,
    "RKD.RepDistiller": relations,
    "RKD.lenscloth": relations,
    "RKD.mdistiller": relations,
    "RKD.torchdistill": relations,
    "RKD.mmrazor": unit_relations,
    "FSP.RepDistiller": lambda x, p: fsp((x["s"], x["s2"]), (x["t"], x["t2"])),
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
