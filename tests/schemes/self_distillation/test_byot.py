"""Be your own teacher: the deepest output teaches the exits."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor, nn

from kdschemes.config.load import load_config
from kdschemes.core.nodes import Node
from kdschemes.core.terms import Transfer
from kdschemes.core.types import Batch, DataSpec, Output, Outputs
from kdschemes.errors import UserError
from kdschemes.schemes.self_distillation.byot import active_gap, batch_norm_of_gap, taught_by_the_deepest
from tests.losses import oracles
from tests.losses.oracles import Array
from tests.schemes.cases import SELF, START, build, configure, random_batch
from tests.schemes.formulas import Case, Formula, Inputs, Reference, Seen, array, last
from tests.schemes.self_distillation.cases import any_begins, reached, term_of
from tests.schemes.self_distillation.formulas import soft_ce

AUTHORS, LUANYUNTENG = [*SELF, "scheme.variant=authors"], [*SELF, "scheme.variant=luanyunteng"]


def total_of_authors(
    deepest: tuple[Array, Array], exits: list[tuple[Array, Array]], labels: list[int], *, alpha: float, beta: float
) -> float:
    """ArchipLab's code at T = 3: no T^2, an un-squared norm, none for the deepest of the exits (shallow to deep)."""
    teacher, last = deepest
    target = oracles.one_hot(labels, teacher.shape[1])
    total = oracles.cross_entropy(teacher, target)
    for number, (student, feature) in enumerate(exits, start=1):
        total += alpha * soft_ce(student, teacher, temperature=3.0)
        total += (1 - alpha) * oracles.cross_entropy(student, target)
        if number < len(exits):
            total += beta * math.sqrt(math.fsum(((feature - last) ** 2).ravel()))
    return total


def total_of_luanyunteng(
    deepest: tuple[Array, Array], exits: list[tuple[Array, Array]], labels: list[int], *, alpha: float, beta: float
) -> float:
    """luanyunteng's code at T = 3: 1 - alpha for all, and a sum over samples and the features active in either."""
    teacher, last = deepest
    target = oracles.one_hot(labels, teacher.shape[1])
    total = (1 - alpha) * oracles.cross_entropy(teacher, target)
    for student, feature in exits:
        total += (1 - alpha) * oracles.cross_entropy(student, target)
        total += alpha * 9 * soft_ce(student, teacher, temperature=3.0)
        pairs = zip(feature.ravel(), last.ravel(), strict=True)
        total += beta * math.fsum((f - g) ** 2 for f, g in pairs if f > 0 or g > 0)
    return total


def expected_total(seen: Seen) -> float:
    scheme, response = seen.config.scheme, seen.config.losses.response
    outputs = [last(seen.out[name]) for name in ("student", "student/exit1", "student/exit2")]
    if scheme.variant != "ours":
        pooled = [(logits, feature.mean(axis=(2, 3))) for logits, feature in outputs]
        formula = total_of_luanyunteng
        if scheme.variant == "authors":
            formula = total_of_authors
            (term,) = (term for term in seen.scheme.terms if term.name.startswith("pooled/"))
            adapter = term.loss.adapter
            assert isinstance(adapter, nn.Linear)
            feature = pooled[1][1] @ array(adapter.weight).T + array(adapter.bias)
            pooled[1] = pooled[1][0], feature
        return formula(pooled[0], pooled[1:], seen.labels, alpha=scheme.alpha, beta=scheme.beta)
    return oracles.byot(
        outputs[0],
        outputs[1:],
        seen.labels,
        alpha=scheme.alpha,
        temperature=response.temperature,
        hint_weight=seen.config.losses.feature.weight,
    )


class Given(Node):
    """The outputs of a network with three exits; the references number them from the deepest, 0, to 3."""

    def __init__(self, x: Mapping[str, Tensor]) -> None:
        super().__init__(["student", "student/exit1", "student/exit2", "student/exit3"])
        self.given = {
            name: Output(x[f"z{k}"], {"exit": x[f"f{k}"]}) for name, k in zip(self.provides, (0, 3, 2, 1), strict=True)
        }

    def forward(self, batch: Batch, outputs: Mapping[str, Output]) -> Outputs:
        return self.given


def total_of_given(x: Inputs, *overrides: str) -> Tensor:
    n, classes = x["z0"].shape
    config = configure("scheme=self", *overrides)
    scheme = taught_by_the_deepest(Given(x), config, DataSpec(classes, 1, 2)).to(x["z0"].dtype)
    for term in scheme.terms:
        if isinstance(term, Transfer) and isinstance(adapter := getattr(term.loss, "adapter", None), nn.Linear):
            adapter.weight.data, adapter.bias.data = x["W"], x["b"]
    batch = Batch(torch.zeros(n, 1, 2, 2, dtype=x["z0"].dtype), x["y"], torch.arange(n))
    return scheme(batch, START).total


def recorded_authors(x: Inputs, p: Case) -> Tensor:
    return total_of_given(x, "scheme.variant=authors", f"losses.response.temperature={p['T']}")


def recorded_luanyunteng(x: Inputs, p: Case) -> Tensor:
    weights = [f"scheme.alpha={p['alpha']}", f"scheme.beta={p['beta']:.10f}"]
    return total_of_given(x, "scheme.variant=luanyunteng", f"losses.response.temperature={p['T']}", *weights)


FORMULA: Formula = expected_total
EXACT = {
    "byot-other": [*SELF, "scheme.alpha=0.2", "losses.response.temperature=1.5", "losses.feature.weight=2"],
    "byot-authors": AUTHORS,
    "byot-luanyunteng": [*LUANYUNTENG, "scheme.beta=0.01"],
}
VARIANTS = {
    "self-byot-linear": [*SELF, "scheme.exit_head=linear", "losses.feature=hint"],
    "self-byot-at-rkd": [*SELF, "losses.feature=at", "losses.relation=rkd"],
    "self-byot-ema": [*SELF, "train.ema=0.9"],
    "self-byot-authors": AUTHORS,
    "self-byot-luanyunteng": [*LUANYUNTENG, "scheme.beta=0.001", "scheme.exit_head=linear"],
}
REFERENCES: dict[str, Reference] = {
    "BYOT.ArchipLab": recorded_authors,
    "BYOT.luanyunteng": recorded_luanyunteng,
}


def test_a_variant_sets_its_published_values_unless_the_user_gives_others() -> None:
    authors = configure("scheme=self", "scheme.variant=authors")
    response = authors.losses.response
    assert (authors.scheme.alpha, authors.scheme.beta) == (0.3, 0.03)
    assert (response.name, response.temperature, response.scale) == ("soft_ce", 3.0, False)
    assert authors.losses.feature.name == "none"
    other = configure("scheme=self", "scheme.variant=luanyunteng", "scheme.alpha=0.4", "losses.feature=hint")
    assert (other.scheme.alpha, other.scheme.beta, other.losses.response.scale) == (0.4, 1e-6, True)
    assert other.losses.feature.weight == 100.0
    ours = configure("scheme=self")
    assert (ours.scheme.variant, ours.scheme.alpha, ours.scheme.beta) == ("ours", 0.5, 0.0)
    assert [name for name, _ in ours.losses.chosen()] == ["response", "feature"]


def test_another_variant_than_that_of_the_recipe_drops_the_recipes_values_for_it(tmp_path: Path) -> None:
    recipe = {"scheme": {"name": "self", "alpha": 0.2, "exit_head": "linear"}, "losses": {"feature": {"weight": 5}}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe))
    same = load_config(["experiment=mine", "scheme.variant=ours"], recipes=tmp_path)
    assert (same.scheme.alpha, same.losses.feature.weight) == (0.2, 5.0)
    other = load_config(["experiment=mine", "scheme.variant=authors"], recipes=tmp_path)
    assert (other.scheme.alpha, other.scheme.beta, other.scheme.exit_head) == (0.3, 0.03, "linear")
    assert [name for name, _ in other.losses.chosen()] == ["response"]
    with pytest.raises(UserError, match=r"scheme.variant=author .*'authors'"):
        load_config(["experiment=mine", "scheme.variant=author"], recipes=tmp_path)


def test_our_variant_has_no_beta() -> None:
    with pytest.raises(UserError, match=r"scheme.beta=0.1 .* scheme.variant=ours"):
        build(*SELF, "scheme.beta=0.1")


@pytest.mark.parametrize("variant", ["authors", "luanyunteng"])
def test_which_exits_learn_from_features(variant: str) -> None:
    scheme = build(*SELF, "model=convnet", f"scheme.variant={variant}", "scheme.exit_head=linear").train()
    pooled = [term.name for term in scheme.terms if str(term.name).startswith("pooled/")]
    count = 2 if variant == "authors" else 3
    assert pooled == [f"pooled/student->student/exit{k}" for k in range(1, count + 1)]
    batch = random_batch()
    taught = reached(scheme, pooled[1], batch)
    assert any_begins(taught, "nodes.student.network.network.stage2")
    assert not any_begins(taught, "nodes.student.network.network.stage3")
    assert not any_begins(taught, "nodes.student.network.network.stage4")
    assert any_begins(taught, "terms.")


def test_the_norm_grows_with_the_batch_and_the_sum_counts_every_sample_of_the_step() -> None:
    f, g = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    once, twice = batch_norm_of_gap(f, g), batch_norm_of_gap(torch.cat([f, f]), torch.cat([g, g]))
    assert twice.item() == pytest.approx(2**0.5 * once.item())
    assert active_gap(torch.cat([f, f]), torch.cat([g, g])).item() == pytest.approx(active_gap(f, g).item())
    assert active_gap(-f.abs(), -g.abs()) == 0
    scheme = build(*SELF, "scheme.variant=luanyunteng").eval()
    term, batch = term_of(scheme, "pooled/student->student/exit1"), random_batch()
    outputs = scheme.predict(batch, term.reads)
    part = dataclasses.replace(batch, micro_size=6, step_size=18)
    assert term(outputs, part).item() == pytest.approx(3 * term(outputs, batch).item())


def test_equal_features_have_no_norm_and_no_gradient() -> None:
    f = torch.randn(4, 3, requires_grad=True)
    batch_norm_of_gap(f, f.detach().clone()).backward()
    assert f.grad is not None
    assert not f.grad.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_norm_of_low_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    value = batch_norm_of_gap(torch.full((2, 3), 1e4, dtype=dtype), torch.zeros(2, 3, dtype=dtype))
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(1e4 * 6**0.5, rel=0.01)
