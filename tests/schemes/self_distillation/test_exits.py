"""What is special to the self-distillation methods between exits or stages: forms, temperature, pyramid, inference."""

from __future__ import annotations

import copy
import dataclasses
import sys
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

from kdschemes.config.data import Digits
from kdschemes.config.load import load_config
from kdschemes.core.distillation import Distillation
from kdschemes.core.terms import Term
from kdschemes.core.types import Batch, Output, Progress
from kdschemes.data import open_data
from kdschemes.errors import UserError
from kdschemes.evaluation.cost import head_costs
from kdschemes.evaluation.evaluate import evaluation_mode
from kdschemes.models import count_macs, count_parameters
from kdschemes.schemes.self_distillation.byot import active_gap, batch_norm_of_gap
from kdschemes.schemes.self_distillation.frskd import BiFPN, Fuse, shrunk
from kdschemes.schemes.self_distillation.multi_exit import WarmingExits, WarmingTransfer
from kdschemes.schemes.self_distillation.sad import self_attention
from kdschemes.schemes.self_distillation.stage_maps import stage_maps
from tests.schemes.cases import (
    SELF,
    START,
    VARIANTS,
    base,
    batch_for,
    build,
    configure,
    network_of,
    random_batch,
    trained,
)
from tests.schemes.formulas import array
from tests.schemes.self_distillation import oracles_exits as oracles

MULTI_EXIT, SAD, FRSKD = (base("self", method) for method in ("multi_exit", "sad", "frskd"))


def term_of(scheme: Distillation, name: str) -> Term:
    (term,) = (term for term in scheme.terms if term.name == name)
    assert isinstance(term, Term)
    return term


def reached(scheme: Distillation, name: str, batch: Batch) -> set[str]:
    """The parameters that a term alone trains."""
    term = term_of(scheme, name)
    scheme.zero_grad()
    term(scheme.predict(batch, term.reads), batch).backward()
    return {name for name, p in scheme.named_parameters() if p.grad is not None and p.grad.any()}


def any_begins(names: Iterable[str], start: str) -> bool:
    return any(name.startswith(start) for name in names)


def other_batch(scheme: Distillation, seed: int) -> Batch:
    return batch_for(scheme, seed=seed)


# Be your own teacher


def test_a_variant_brings_its_published_numbers_and_gives_way_to_the_users() -> None:
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


def test_another_variant_than_the_recipes_forgets_what_the_recipe_says_of_it(tmp_path: Path) -> None:
    recipe = {"scheme": {"name": "self", "alpha": 0.2, "exit_head": "linear"}, "losses": {"feature": {"weight": 5}}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe))
    same = load_config(["experiment=mine", "scheme.variant=ours"], recipes=tmp_path)
    assert (same.scheme.alpha, same.losses.feature.weight) == (0.2, 5.0)
    other = load_config(["experiment=mine", "scheme.variant=authors"], recipes=tmp_path)
    assert (other.scheme.alpha, other.scheme.beta, other.scheme.exit_head) == (0.3, 0.03, "linear")
    assert [name for name, _ in other.losses.chosen()] == ["response"]
    with pytest.raises(UserError, match=r"scheme.variant=author is not allowed; did you mean 'authors'\?"):
        load_config(["experiment=mine", "scheme.variant=author"], recipes=tmp_path)


def test_our_variant_has_no_feature_term_to_weigh() -> None:
    with pytest.raises(UserError, match=r"scheme.beta=0.1 has no effect with scheme.variant=ours"):
        build(*SELF, "scheme.beta=0.1")


@pytest.mark.parametrize("variant", ["authors", "luanyunteng"])
def test_which_exits_a_variants_features_teach_and_who_learns(variant: str) -> None:
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
@pytest.mark.parametrize(
    "name", ["self-byot-authors", "self-byot-luanyunteng", "self-multi_exit", "self-frskd", "self-sad"]
)
def test_large_outputs_of_low_precision_give_finite_losses_and_gradients(name: str, dtype: torch.dtype) -> None:
    scheme = build(*VARIANTS[name], dtype=torch.float32).eval()
    batch = random_batch(dtype=torch.float32)
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
    value = batch_norm_of_gap(torch.full((2, 3), 1e4, dtype=dtype), torch.zeros(2, 3, dtype=dtype))
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(1e4 * 6**0.5, rel=0.01)


# Multi-exit networks


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


def test_the_temperature_grows_after_each_sure_step_and_only_then() -> None:
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
        sure = oracles.sureness(array(logits), temperature=temperature) > 0.17
        temperature *= 1.1 if sure else 1.0
        grown += sure
    assert warmed(scheme).growths == grown
    assert 2 < grown < 12, "both cases were met"
    total = scheme(random_batch(n=8, seed=99), START).total.item()
    with torch.no_grad():
        outputs = copy.deepcopy(scheme).predict(random_batch(n=8, seed=99), scheme.heads)
    deepest, *exits = (array(outputs[head].logits) for head in scheme.heads)
    labels = random_batch(n=8).labels.tolist()
    expected = oracles.multi_exit(deepest, exits, labels, alpha=0.5, last=0.5, temperature=temperature)
    assert total == pytest.approx(expected, rel=1e-10)


def test_the_temperature_goes_on_from_a_checkpoint() -> None:
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


# Self attention distillation


@pytest.mark.parametrize("sizes", [((6, 5), (3, 3)), ((4, 4), (4, 4)), ((7, 7), (2, 3))])
@pytest.mark.parametrize("enlarged", ["features", "attention"])
@pytest.mark.parametrize("channels", ["mean", "sum"])
@pytest.mark.parametrize("n", [1, 3])
def test_self_attention_is_its_formula(
    sizes: tuple[tuple[int, int], ...], enlarged: str, channels: str, n: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    shallow, deep = (
        torch.randn(n, c, *size, generator=generator, dtype=torch.float64)
        for c, size in zip((3, 5), sizes, strict=True)
    )
    for positions in ("mean", "sum"):
        options = {"channel_reduction": channels, "upsample": enlarged, "spatial_reduction": positions}
        value = self_attention(shallow, deep, **options)  # type: ignore[arg-type]
        assert value.item() == pytest.approx(oracles.self_attention(array(shallow), array(deep), **options), rel=1e-12)
    assert self_attention(shallow, shallow) == 0


def test_a_deeper_stage_learns_from_its_pupil_only_if_asked() -> None:
    batch = random_batch()
    reach = reached(build(*SAD).train(), "sad/student/layer3->layer2", batch)
    assert any_begins(reach, "nodes.student.network.layer2")
    assert not any_begins(reach, "nodes.student.network.layer3")
    both = reached(build(*SAD, "scheme.detach=false").train(), "sad/student/layer3->layer2", batch)
    assert any_begins(both, "nodes.student.network.layer3")
    assert not any_begins(both, "nodes.student.network.fc")


def test_the_original_begins_after_two_thirds_of_the_training() -> None:
    config = configure(*SAD, "scheme.variant=original")
    assert (config.scheme.weight, config.scheme.channel_reduction, config.scheme.upsample) == (0.1, "sum", "attention")
    scheme = build(*SAD, "scheme.variant=original")
    for step, weight in ((0, 0.0), (59, 0.0), (60, 0.1), (89, 0.1)):
        weights = scheme(random_batch(), Progress(step, 90, 10)).weights
        assert weights == {"ce/student": 1.0} | dict.fromkeys(list(weights)[1:], weight)
    assert set(build(*SAD)(random_batch(), START).weights.values()) == {1.0, 1000.0}


def test_stages_of_one_position_have_no_attention() -> None:
    names = [term.name for term in build(*SAD, "model=convnet").terms]
    assert names == ["ce/student", "sad/student/stage2->stage1", "sad/student/stage3->stage2"]
    chosen = [term.name for term in build(*SAD, "scheme.stages=[layer3,layer1]").terms]
    assert chosen == ["ce/student", "sad/student/layer3->layer1"]
    for stages, model, message in (
        ("[layer4,layer5]", "vgg8", "'layer5' teaches 'layer4' by a 1x1 map"),
        ("[stage1,stage4]", "convnet", "'stage4' teaches 'stage1' by a 1x1 map"),
        ("[layer1,layer1]", "resnet20", "two or more stages, not 1 of resnet20"),
        ("[layer1,layer9]", "resnet20", "unknown stage of resnet20 'layer9'"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            build(*SAD, f"model={model}", f"scheme.stages={stages}")
        assert "\n" not in str(caught.value)


def test_square_tokens_are_maps_and_others_are_refused() -> None:
    assert stage_maps("sad", {"a": (3, 4, 5), "b": (9, 6)}) == {"a": (3, 4, 5), "b": (6, 3, 3)}
    for shape, what in (((10, 6), "10 tokens, not a square number"), ((6,), "vectors of 6")):
        with pytest.raises(UserError, match=f"frskd needs maps, but stage 'b' gives {what}"):
            stage_maps("frskd", {"a": (3, 4, 5), "b": shape})


# Feature refinement by a self-teacher


@pytest.mark.parametrize("sides", [(8, 4, 2, 1), (7, 4), (6, 6, 3)])
@pytest.mark.parametrize("depth", [1, 2])
def test_the_pyramid_is_the_papers(sides: tuple[int, ...], depth: int) -> None:
    torch.manual_seed(0)
    channels = [2, 3, 4, 2][: len(sides)]
    pyramid = BiFPN(channels, width=2, depth=depth).double()
    with torch.no_grad():
        for name, p in pyramid.named_parameters():
            p.copy_(torch.rand_like(p) - 0.2 if name.endswith("weights") else torch.randn_like(p))
    maps = [torch.randn(3, c, side, side, dtype=torch.float64) for c, side in zip(channels, sides, strict=True)]
    refined = pyramid(maps)
    assert [tuple(m.shape[1:]) for m in refined] == [(2 * c, s, s) for c, s in zip(channels, sides, strict=True)]
    state = {name: array(p) for name, p in pyramid.named_parameters()}
    for ours, expected in zip(refined, oracles.bifpn([array(m) for m in maps], state, depth=depth), strict=True):
        np.testing.assert_allclose(array(ours), expected, rtol=1e-9, atol=1e-10)


def test_fusion_weighs_by_shares_that_sum_to_one() -> None:
    fuse = Fuse(3).double()
    ones = torch.ones(1, 2, 3, 3, dtype=torch.float64)
    assert fuse(ones, ones, ones).flatten()[0].item() == pytest.approx(1.0, abs=1e-6)
    fuse.weights.data = torch.tensor([3.0, -1.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(fuse(ones, 100 * ones, 5 * ones), 2 * ones, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize(
    ("side", "goal", "by_maxima"), [(8, 2, 2), (7, 4, 4), (7, 3, 4), (4, 4, 4), (2, 1, 1), (1, 1, 1), (3, 5, 3)]
)
def test_any_side_meets_its_neighbors(side: int, goal: int, by_maxima: int) -> None:
    x = torch.rand(2, 3, side, side, dtype=torch.float64)
    expected = array(x)
    while expected.shape[2] > by_maxima:
        expected = oracles.maximum(expected)
    expected = oracles.nearest(expected, goal, goal)
    np.testing.assert_array_equal(array(shrunk(x, (goal, goal))), expected)


def test_who_learns_from_which_term_of_the_self_teacher() -> None:
    batch = random_batch()
    for overrides, shared in (([], True), (["scheme.detach=true"], False)):
        scheme = build(*FRSKD, *overrides).train()
        own = reached(scheme, "ce/self_teacher", batch)
        assert any_begins(own, "nodes.self_teacher")
        assert any_begins(own, "nodes.student.network.layer1") == shared
        assert not any_begins(own, "nodes.student.network.fc")
        for name in ("kd/self_teacher->student", "at/self_teacher->student"):
            taught = reached(scheme, name, batch)
            assert any_begins(taught, "nodes.student.network.layer1")
            assert not any_begins(taught, "nodes.self_teacher")


def test_the_network_alone_is_reported_and_costs_what_it_costs() -> None:
    data = open_data(Digits(), seed=0, device=torch.device("cpu"))
    scheme = build(*FRSKD, dtype=torch.float32)
    assert scheme.heads == ("student", "self_teacher")
    network, costs = network_of(scheme, "student"), head_costs(scheme, data)
    assert costs["student"] == {"parameters": count_parameters(network), "macs": count_macs(network, 1, 8)}
    both = sum(p.numel() for p in trained(scheme))
    assert costs["self_teacher"]["parameters"] == both
    assert costs["self_teacher"]["macs"] > costs["student"]["macs"]
    plain = build(*base("supervised", "ce"), dtype=torch.float32)
    images = random_batch(dtype=torch.float32)
    alone = network_of(plain, "student").eval()(images.images)
    assert torch.equal(scheme.eval().predict(images, ["student"])["student"].logits, alone)


@pytest.mark.parametrize("method", [FRSKD, SAD, [*SELF, "scheme.variant=authors"], MULTI_EXIT])
def test_a_batch_of_one_is_evaluated_and_trained(method: list[str]) -> None:
    scheme = build(*method)
    batch = random_batch(n=1)
    for mode in (False, True):
        scheme.train(mode)
        assert scheme(batch, START).total.isfinite()


def test_a_network_of_one_stage_has_nothing_to_refine(monkeypatch: pytest.MonkeyPatch) -> None:
    builder = sys.modules["kdschemes.schemes.self_distillation.frskd"]
    monkeypatch.setattr(builder, "probe", lambda nodes, data_spec: {"student": {"only": (4, 2, 2)}})
    with pytest.raises(UserError, match="frskd needs two or more stages, resnet20 has 1"):
        build(*FRSKD, "scheme.width=3")


def test_batch_norm_of_the_self_teacher_is_of_the_plain_kind() -> None:
    scheme = build(*FRSKD)
    kinds = {type(m) for m in scheme.nodes["self_teacher"].modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    assert kinds == {nn.BatchNorm2d}
    sizes = [m.num_features for m in scheme.nodes["self_teacher"].modules() if isinstance(m, nn.BatchNorm2d)]
    assert set(sizes) == {32, 64, 128}
    assert all(b == 2 * a for a, b in pairwise(sorted(set(sizes))))
