"""What every self-distillation method can do: few samples, low precision, inference by one network."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kdschemes.config.schemes import SCHEMES, ExitOptions
from kdschemes.core.types import Output
from tests.schemes.cases import START, base, batch_for, build, network_of, random_batch
from tests.schemes.self_distillation.test_byot import VARIANTS as BYOT

METHODS = {f"self-{method}": base("self", method) for method in SCHEMES["self"]} | {
    name: BYOT[name] for name in ("self-byot-authors", "self-byot-luanyunteng")
}


@pytest.mark.parametrize(
    "method", [method for method, options in SCHEMES["self"].items() if not issubclass(options, ExitOptions)]
)
def test_evaluation_runs_the_plain_network_alone(method: str) -> None:
    scheme = build(*base("self", method)).eval()
    reported = scheme.heads[0]
    assert reported == ("average" if method == "mean_teacher" else "student")
    produced = scheme.predict(random_batch(), [reported])
    assert set(produced) == {reported}
    assert torch.equal(produced[reported].logits, network_of(scheme, reported).eval()(random_batch().images))


@pytest.mark.parametrize("name", METHODS)
def test_one_sample_is_enough(name: str) -> None:
    scheme = build(*METHODS[name])
    for mode in (False, True):
        scheme.train(mode)
        result = scheme(batch_for(scheme, n=1), START)
        assert result.total.isfinite()
        result.total.backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("name", METHODS)
def test_large_outputs_of_low_precision_give_finite_losses_and_gradients(name: str, dtype: torch.dtype) -> None:
    scheme = build(*METHODS[name], dtype=torch.float32).eval()
    batch = batch_for(scheme, dtype=torch.float32)
    with torch.no_grad():
        outputs = scheme.predict(batch, {out for node in scheme.nodes.values() for out in node.provides})
    for size in (1.0, 1e4):
        leaves: list[Tensor] = []

        def large(x: Tensor, leaves: list[Tensor] = leaves, size: float = size) -> Tensor:
            leaves.append((x / x.abs().max() * size).to(dtype).requires_grad_())
            return leaves[-1]

        given = {
            out: Output(large(o.logits), {stage: large(f) for stage, f in o.features.items()})
            for out, o in outputs.items()
        }
        total = torch.stack([term(given, batch).float() for term in scheme.terms]).sum()
        total.backward()
        assert total.isfinite()
        assert all(x.grad.isfinite().all() for x in leaves if x.grad is not None)
