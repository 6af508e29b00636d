"""Modules of the losses between maps: options, projections, what they read, and what they refuse."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdschemes.config.losses import feature as config
from kdschemes.core.loss import Endpoint, Loss
from kdschemes.core.types import Batch, DataSpec, Output
from kdschemes.errors import UserError
from kdschemes.losses.build import build_loss
from kdschemes.losses.feature.ab import ab
from kdschemes.losses.feature.at import attention_transfer
from kdschemes.losses.feature.ft import FT, ft
from kdschemes.losses.feature.hint import hint
from kdschemes.losses.feature.nst import nst
from kdschemes.losses.feature.ofd import OFD, ofd, ofd_margin
from kdschemes.losses.feature.reviewkd import Fusion, ReviewKD, hcl
from kdschemes.losses.feature.vid import VID, vid
from kdschemes.losses.stages import match_size
from kdschemes.models import create_model, stages

SMALL = {"block1": (4, 8, 6), "block2": (6, 4, 3), "block3": (8, 4, 3)}
BIG = {"layer1": (8, 8, 8), "layer2": (6, 4, 4), "layer3": (12, 2, 4)}
TOKENS = {"one": (16, 6), "two": (16, 6), "three": (16, 6)}
PAIRS = list(zip(SMALL, BIG, strict=True))
N = 5
ALL = [config.Hint(), config.AT(), config.NST(), config.FT(), config.FT(variant="paper"), config.AB(), config.VID()]
REVIEWS = [config.ReviewKD(), config.ReviewKD(pooled=False, width=3, preactivations="both")]


def output(shapes: Mapping[str, tuple[int, ...]], seed: int, *, activated: bool = True) -> Output:
    """Features after a ReLU and the maps before it."""
    generator = torch.Generator().manual_seed(seed)
    before = {k: torch.randn(N, *shape, generator=generator).requires_grad_() for k, shape in shapes.items()}
    if not activated:
        return Output(torch.zeros(N, 7), before)
    return Output(torch.zeros(N, 7), {k: x.detach().relu().requires_grad_() for k, x in before.items()}, before)


def batch() -> Batch:
    return Batch(torch.zeros(N, 3, 8, 8), torch.zeros(N, dtype=torch.long), torch.arange(N))


def build(options: Any, student: Any = SMALL, teacher: Any = BIG, network: Any = None) -> Loss[Any]:
    torch.manual_seed(0)
    return build_loss(
        options, student=Endpoint(student), teacher=Endpoint(teacher, network), data_spec=DataSpec(7, 3, 8)
    )


def run(loss: Loss[Any], student: Output, teacher: Output) -> Tensor:
    value = loss(student, teacher, batch(), lambda x: x)
    assert value.shape == ()
    return value


@pytest.mark.parametrize("options", [*ALL, *REVIEWS], ids=str)
@pytest.mark.parametrize(("student", "teacher"), [(SMALL, BIG), (BIG, SMALL), (TOKENS, BIG), (SMALL, TOKENS)])
def test_the_student_and_every_projection_learn(options: Any, student: Any, teacher: Any) -> None:
    loss = build(options, student, teacher)
    s, t = output(student, 0), output(teacher, 1).detach()
    run(loss, s, t).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in loss.parameters())
    reached = [x for x in (*s.features.values(), *s.preactivations.values()) if x.grad is not None and x.grad.any()]
    assert reached


def test_at_passes_its_options_on() -> None:
    s, t = output(SMALL, 2), output(BIG, 3)
    value = run(build(config.AT(variant="paper", power=3.0, eps=0.1)), s, t)
    expected = sum(
        attention_transfer(s.features[a], t.features[b], variant="paper", power=3.0, eps=0.1) for a, b in PAIRS
    )
    torch.testing.assert_close(value, expected)


def test_nst_is_the_sum_over_the_pairs() -> None:
    s, t = output(SMALL, 2), output(BIG, 3)
    expected = sum(nst(s.features[a], t.features[b]) for a, b in PAIRS)
    torch.testing.assert_close(run(build(config.NST()), s, t), expected)


@pytest.mark.parametrize("options", [config.AT(), config.NST(), config.FT()])
def test_one_position_is_left_out_or_refused(options: Any) -> None:
    shapes = {"deep": (8, 2, 2), "deepest": (8, 1, 1)}
    assert build(options, shapes, shapes).pairs == [("deep", "deep")]
    narrow = type(options)(stages=["deepest:deep"])
    with pytest.raises(UserError, match=f"{options.name} needs more than one position, but 'deepest:deep'"):
        build(narrow, shapes, shapes)
    with pytest.raises(UserError, match=f"{options.name} needs a map"):
        build(options, {"v": (8,)}, {"v": (8,)})


def test_the_paraphraser_learns_from_its_reconstruction_alone() -> None:
    s, t = output(SMALL, 4), output(BIG, 5).detach()
    found = []
    for scale in (1.0, 10.0):
        loss = build(config.FT(rate=0.3, reconstruction=0.5))
        assert isinstance(loss, FT)
        scaled = Output(s.logits, {k: scale * f + 1.0 for k, f in s.features.items()})
        run(loss, scaled, t).backward()
        found.append([p.grad.clone() for part in (loss.encoders, loss.decoders) for p in part.parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
    ((encode,), (decode,), (translate,)) = loss.encoders, loss.decoders, loss.translators
    code = encode(t.features["layer3"])
    assert code.shape == (N, 3, 2, 4)
    expected = ft(translate(scaled.features["block3"]), code)
    expected = expected + 0.5 * hint(decode(code), t.features["layer3"])
    torch.testing.assert_close(run(loss, scaled, t), expected)


def test_ab_halves_the_weight_of_each_shallower_pair() -> None:
    s, t = output(SMALL, 6), output(BIG, 7)
    loss = build(config.AB(margin=0.5, scale=2.0))
    expected = torch.zeros(())
    for (a, b), connector, weight in zip(loss.pairs, loss.connectors, (0.25, 0.5, 1.0), strict=True):
        ours, theirs = match_size(s.preactivations[a], t.preactivations[b])
        expected = expected + 2.0 * weight * ab(connector(ours), theirs, margin=0.5)
    torch.testing.assert_close(run(loss, s, t), expected)
    assert loss.reads_preactivations
    plain = Output(s.logits, s.preactivations)
    torch.testing.assert_close(run(loss, plain, t), expected)


def teacher_network() -> Any:
    network = create_model("resnet20", num_classes=7, channels=3, image_size=8)
    for number, norm in enumerate(network.activated.values()):
        nn.init.uniform_(norm.weight, -1.0, 1.0, generator=torch.Generator().manual_seed(number))
        nn.init.uniform_(norm.bias, -1.0, 1.0, generator=torch.Generator().manual_seed(9 - number))
    return network


def test_ofd_takes_the_margins_of_the_teachers_batch_norms() -> None:
    network = teacher_network()
    shapes = {stage.name: stage.shape for stage in stages(network, 3, 8)}
    loss = build(config.OFD(scale=3.0), SMALL, shapes, network)
    assert isinstance(loss, OFD)
    assert [name for name, _ in loss.named_buffers() if "margin" in name] == ["margin0", "margin1", "margin2"]
    assert {id(p) for p in loss.parameters()}.isdisjoint({id(p) for p in network.parameters()})
    s, t = output(SMALL, 8), output(shapes, 9)
    expected = torch.zeros(())
    for (a, b), connector, weight in zip(loss.pairs, loss.connectors, (0.25, 0.5, 1.0), strict=True):
        norm = network.activated[b]
        margin = ofd_margin(norm.weight, norm.bias)
        ours, theirs = match_size(s.preactivations[a], t.preactivations[b])
        expected = expected + 3.0 * weight * ofd(connector(ours), theirs, margin=margin)
    value = run(loss, s, t)
    torch.testing.assert_close(value, expected)
    value.backward()
    assert all(p.grad is not None and p.grad.any() for p in loss.parameters())
    assert all(x.grad is not None and x.grad.any() for x in s.preactivations.values())


def test_ofd_refuses_a_teacher_without_such_stages() -> None:
    with pytest.raises(UserError, match="not a whole network"):
        build(config.OFD())
    network = teacher_network()
    shapes = {"stem": (4, 8, 8), **{stage.name: stage.shape for stage in stages(network, 3, 8)}}
    with pytest.raises(UserError, match="'stem' does not: pair one of layer1, layer2, layer3"):
        build(config.OFD(stages=["block1:stem"]), SMALL, shapes, network)


def test_vid_starts_from_its_variance_and_trains_it() -> None:
    loss = build(config.VID(variance=2.0, eps=0.5))
    assert isinstance(loss, VID)
    assert [len(raw) for raw in loss.raw_variances] == [8, 6, 12]
    s, t = output(SMALL, 10), output(BIG, 11)
    expected = torch.zeros(())
    for (a, b), regressor, raw in zip(loss.pairs, loss.regressors, loss.raw_variances, strict=True):
        torch.testing.assert_close(nn.functional.softplus(raw) + 0.5, torch.full_like(raw, 2.0))
        ours, theirs = match_size(s.features[a], t.features[b])
        expected = expected + vid(regressor(ours), theirs, raw_variance=raw, eps=0.5)
    torch.testing.assert_close(run(loss, s, t), expected)
    with pytest.raises(UserError, match="above eps"):
        build(config.VID(variance=0.5, eps=0.5))
    vectors = {"v": (8,)}
    assert run(build(config.VID(), vectors, vectors), output(vectors, 0), output(vectors, 1)).isfinite()


def test_reviewkd_fuses_from_the_deepest_level_to_the_shallowest() -> None:
    loss = build(config.ReviewKD())
    assert isinstance(loss, ReviewKD)
    assert loss.reads_preactivations
    s, t = output(SMALL, 12), output(BIG, 13)
    ours = [*s.features.values(), s.features["block3"].mean((2, 3), keepdim=True)]
    theirs = [*t.preactivations.values(), t.features["layer3"].mean((2, 3), keepdim=True)]
    expected, fused = torch.zeros(()), None
    for number in (3, 2, 1, 0):
        fusion = loss.fusions[number]
        assert isinstance(fusion, Fusion)
        assert (fusion.attention is None) == (number == 3)
        compared, fused = fusion(ours[number], fused, tuple(theirs[number].shape[2:]))
        assert fused.shape == (N, 8, *theirs[number].shape[2:])
        expected = expected + hcl(compared, theirs[number])
    torch.testing.assert_close(run(loss, s, t), expected)


def test_reviewkd_options() -> None:
    s, t = output(SMALL, 14), output(BIG, 15)
    values = {}
    for choice in ("teacher", "both", "neither"):
        loss = build(config.ReviewKD(preactivations=choice, width=5, pooled=False))
        assert isinstance(loss, ReviewKD)
        assert len(loss.fusions) == 3
        assert {f.leave[0].in_channels for f in loss.fusions} == {5}
        values[choice] = run(loss, s, t).item()
    assert len(set(values.values())) == 3
    assert config.ReviewKD().schedule == "linear"
    with pytest.raises(UserError, match="reviewkd needs at least two stage pairs, got block3:layer3"):
        build(config.ReviewKD(stages="last"))


def test_a_fusion_weighs_both_maps_by_position() -> None:
    fusion = Fusion(3, 4, 5).double().eval()
    assert fusion.attention is not None
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64)
    deeper = torch.randn(2, 4, 2, 3, dtype=torch.float64)
    large = deeper.repeat_interleave(2, 2).repeat_interleave(2, 3)
    entered = fusion.enter(x)
    z = torch.einsum("oc,nchw->nohw", fusion.attention.weight[:, :, 0, 0], torch.cat([entered, large], 1))
    z = 1 / (1 + torch.exp(-z - fusion.attention.bias[:, None, None]))
    compared, fused = fusion(x, deeper, (4, 6))
    torch.testing.assert_close(fused, entered * z[:, :1] + large * z[:, 1:])
    torch.testing.assert_close(compared, fusion.leave(fused))
    assert [tuple(y.shape) for y in fusion(x, deeper, (3, 9))] == [(2, 5, 3, 9), (2, 4, 3, 9)]


@pytest.mark.parametrize("options", [*ALL, *REVIEWS], ids=str)
def test_channels_last_and_autocast(options: Any) -> None:
    loss = build(options)
    s, t = output(SMALL, 16).detach(), output(BIG, 17).detach()
    value = run(loss, s, t)

    def last(o: Output) -> Output:
        form = torch.channels_last
        both = ({k: f.contiguous(memory_format=form) for k, f in x.items()} for x in (o.features, o.preactivations))
        return Output(o.logits, *both)

    torch.testing.assert_close(run(loss, last(s), last(t)), value)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = run(loss, s, t)
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(value.item(), rel=1e-2)
