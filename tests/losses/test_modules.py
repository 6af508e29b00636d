"""Losses between outputs: stage matching, projections, gathering, and every error at build time."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdschemes.config.losses import FEATURE, RELATION, RESPONSE, NoLoss
from kdschemes.config.losses import feature as feature_maps
from kdschemes.config.losses import relation as relation_options
from kdschemes.config.losses import response as response_options
from kdschemes.core.loss import Loss
from kdschemes.core.types import Batch, DataSpec, Output
from kdschemes.errors import UserError
from kdschemes.losses.build import MODULES, build_loss
from kdschemes.losses.feature.at import AT, attention_transfer
from kdschemes.losses.feature.hint import hint
from kdschemes.losses.relation.fsp import fsp
from kdschemes.losses.relation.rkd import rkd_angle, rkd_distance
from kdschemes.losses.response.kd import kd
from kdschemes.losses.response.logit_mse import logit_mse
from kdschemes.losses.stages import map_shape, match_stages, to_map
from tests.losses.stub_networks import side

config = SimpleNamespace(
    **{k: v for m in (response_options, feature_maps, relation_options) for k, v in vars(m).items()}
)
NAMES = sorted({name for table in (RESPONSE, FEATURE, RELATION) for name in table} - {"none"})
OPTIONS = {name: kind for table in (RESPONSE, FEATURE, RELATION) for name, kind in table.items()}
READ_NO_TEACHER = {"ab", "uskd", "tfkd_reg"}
"""Losses that read the teacher's signs alone, or nothing of it."""
SMALL = {"block1": (4, 8, 8), "block2": (6, 4, 4), "block3": (8, 4, 4)}
BIG = {"stem": (4, 16, 16), "layer1": (8, 8, 8), "layer2": (6, 4, 4), "layer3": (12, 2, 4)}
N, CLASSES = 5, 7


def output(shapes: dict[str, tuple[int, ...]], seed: int, n: int = N) -> Output:
    generator = torch.Generator().manual_seed(seed)
    features = {name: torch.randn(n, *shape, generator=generator).requires_grad_() for name, shape in shapes.items()}
    return Output(torch.randn(n, CLASSES, generator=generator).requires_grad_(), features, features)


def batch(n: int = N) -> Batch:
    return Batch(torch.zeros(n, 3, 8, 8), torch.zeros(n, dtype=torch.long), torch.arange(n))


def build(options: Any, student: Any = SMALL, teacher: Any = BIG, classes: int = CLASSES) -> Loss[Any]:
    sides = side(student, classes=classes), side(teacher, classes=classes, frozen=True)
    return build_loss(
        options, student=sides[0], teacher=sides[1], data_spec=DataSpec(classes, 3, 8, torch.arange(20) % 3)
    )


def same(x: Tensor) -> Tensor:
    return x


def test_every_option_of_the_tables_has_a_module() -> None:
    kinds = {kind for table in (RESPONSE, FEATURE, RELATION) for kind in table.values()} - {NoLoss}
    assert kinds == set(MODULES)


@pytest.mark.parametrize("name", NAMES)
def test_every_loss_teaches_the_student_and_each_of_its_projections(name: str) -> None:
    loss = build(OPTIONS[name]())
    student, teacher = output(SMALL, 0), output(BIG, 1)
    state = {name: x.clone() for name, x in loss.state_dict().items()}
    value = loss(student, teacher, batch(), same)
    assert value.shape == ()
    assert value > 0
    value.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in loss.parameters())
    for given in (student,) if name in READ_NO_TEACHER else (student, teacher):
        reached = [x for x in (given.logits, *given.features.values()) if x.grad is not None and x.grad.abs().sum() > 0]
        assert reached, "the loss detached this side"
    loss.load_state_dict(state)
    again = loss(student.detach(), teacher.detach(), batch(), same)
    assert again.item() == value.item()


@pytest.mark.parametrize("name", NAMES)
def test_only_losses_that_span_the_batch_gather(name: str) -> None:
    loss = build(OPTIONS[name]())
    gathered: list[Tensor] = []

    def gather(x: Tensor) -> Tensor:
        gathered.append(x)
        return x

    loss(output(SMALL, 0), output(BIG, 1), batch(), gather)
    assert bool(gathered) == loss.needs_global_batch
    assert all(len(x) == N for x in gathered)


def test_rkd_gathers_embeddings_of_all_processes() -> None:
    loss = build(config.RKD())
    student, teacher = output(SMALL, 2, n=6), output(BIG, 3, n=6)
    whole = loss(student, teacher, batch(6), same)
    halves = [Output(o.logits[:3], {name: f[:3] for name, f in o.features.items()}) for o in (student, teacher)]
    rest = iter([o.features[s][3:].mean((2, 3)) for o, s in ((student, "block3"), (teacher, "layer3"))])
    value = loss(*halves, batch(3), lambda x: torch.cat([x, next(rest)]))
    torch.testing.assert_close(value, whole)


def test_values_are_those_of_the_functions() -> None:
    s, t = output(SMALL, 4), output(BIG, 5)
    pairs = [("block1", "layer1"), ("block2", "layer2"), ("block3", "layer3")]
    softened = build(config.KD(temperature=3.0))(s, t, batch(), same)
    assert softened == kd(s.logits, t.logits, temperature=3.0)
    mse = build(config.LogitMSE())(s, t, batch(), same)
    assert mse == logit_mse(s.logits, t.logits)
    at = build(config.AT())(s, t, batch(), same)
    torch.testing.assert_close(at, sum(attention_transfer(s.features[a], t.features[b]) for a, b in pairs))
    ours, theirs = s.features["block3"].mean((2, 3)), t.features["layer3"].mean((2, 3))
    rkd = build(config.RKD(distance=2.0, angle=3.0))(s, t, batch(), same)
    torch.testing.assert_close(rkd, 2 * rkd_distance(ours, theirs) + 3 * rkd_angle(ours, theirs))
    only_angle = build(config.RKD(distance=0.0, angle=3.0))(s, t, batch(), same)
    torch.testing.assert_close(only_angle, 3 * rkd_angle(ours, theirs))


def test_fsp_adapts_channels_where_they_differ() -> None:
    loss = build(config.FSP())
    convolutions = [m for m in loss.modules() if isinstance(m, nn.Conv2d)]
    assert [(m.in_channels, m.out_channels) for m in convolutions] == [(4, 8), (8, 12)]
    same_channels = build(config.FSP(), teacher=SMALL)
    assert not list(same_channels.parameters())
    s, t = output(SMALL, 6), output(SMALL, 7)
    f, g = s.features, t.features
    expected = fsp((f["block1"], f["block2"]), (g["block1"], g["block2"])) + fsp(
        (f["block2"], f["block3"]), (g["block2"], g["block3"])
    )
    torch.testing.assert_close(same_channels(s, t, batch(), same), expected)


def test_hint_without_a_regressor_where_shapes_are_equal() -> None:
    exit_shape = {"exit": (8, 4, 4)}
    loss = build(config.Hint(), student=exit_shape, teacher=SMALL)
    assert not list(loss.parameters())
    s, t = output(exit_shape, 8), output(SMALL, 9)
    assert loss(s, t, batch(), same) == hint(s.features["exit"], t.features["block3"])


@pytest.mark.parametrize(
    ("student", "teacher", "kind"),
    [
        ((4, 8, 8), (6, 8, 8), nn.Conv2d),
        ((4, 8, 8), (4, 4, 4), nn.Conv2d),
        ((4, 3, 8), (6, 8, 5), nn.Conv2d),
        ((5,), (9,), nn.Linear),
        ((10, 5), (10, 9), nn.Linear),
        ((16, 5), (4, 9), nn.Conv2d),
        ((16, 5), (6, 4, 4), nn.Conv2d),
        ((6, 4, 4), (16, 5), nn.Conv2d),
        ((16, 5), (16, 5), nn.Identity),
    ],
)
def test_hint_regressor_fits_the_shapes(student: tuple[int, ...], teacher: tuple[int, ...], kind: type) -> None:
    loss = build(config.Hint(), student={"s": student}, teacher={"t": teacher})
    (regressor,) = next(iter(loss.children()))
    assert type(regressor) is kind
    s, t = output({"s": student}, 10), output({"t": teacher}, 11)
    value = loss(s, t, batch(), same)
    value.backward()
    assert value > 0
    gradient = s.features["s"].grad
    assert gradient is not None
    assert gradient.abs().sum() > 0


def test_a_linear_regressor_on_a_pooled_map_is_the_pooled_regression() -> None:
    loss = build(config.Hint(), student={"s": (4, 8, 8)}, teacher={"t": (6, 4, 2)})
    s, t = output({"s": (4, 8, 8)}, 12), output({"t": (6, 4, 2)}, 13)
    (regressor,) = next(iter(loss.children()))
    pooled_after = nn.functional.adaptive_avg_pool2d(regressor(s.features["s"]), (4, 2))
    torch.testing.assert_close(loss(s, t, batch(), same), hint(pooled_after, t.features["t"]))


def test_tokens_become_square_maps() -> None:
    tokens = torch.arange(2 * 9 * 4.0).reshape(2, 9, 4)
    square = to_map(tokens)
    assert square.shape == (2, 4, 3, 3)
    assert torch.equal(square[:, :, 1, 2], tokens[:, 5])
    assert map_shape("at", "s", (9, 4)) == (4, 3, 3)
    token_shapes = {"a": (16, 6), "b": (16, 6)}
    for options in (config.AT(), config.FSP(), config.RKD(), config.Hint()):
        value = build(options, student=token_shapes)(output(token_shapes, 14), output(BIG, 15), batch(), same)
        assert value > 0


@pytest.mark.parametrize("name", NAMES)
def test_autocast(name: str) -> None:
    torch.manual_seed(0)
    loss = build(OPTIONS[name]())
    s, t = output(SMALL, 16), output(BIG, 17)
    state = {name: x.clone() for name, x in loss.state_dict().items()}
    plain = loss(s, t, batch(), same)
    loss.load_state_dict(state)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(s, t, batch(), same)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(plain.item(), rel=1e-2)


S, T = ["a", "b"], ["one", "two", "three", "four"]


@pytest.mark.parametrize(
    ("stages", "student", "teacher", "pairs"),
    [
        ("all", S, T, [("a", "three"), ("b", "four")]),
        ("all", T, S, [("three", "a"), ("four", "b")]),
        ("last", S, T, [("b", "four")]),
        ("middle", S, T, [("a", "three")]),
        ("middle", T, T, [("two", "two")]),
        ("middle", T[1:], T, [("three", "three")]),
        ("middle", ["exit"], T, [("exit", "four")]),
        (["b:one", "a:four"], S, T, [("b", "one"), ("a", "four")]),
    ],
)
def test_match_stages(stages: Any, student: list[str], teacher: list[str], pairs: list[tuple[str, str]]) -> None:
    assert match_stages(stages, student, teacher) == pairs


@pytest.mark.parametrize(
    ("options", "student", "teacher", "message"),
    [
        (
            config.AT(stages=["blok1:layer1"]),
            SMALL,
            BIG,
            r"student stage 'blok1'; did you mean 'block1'.*block2, block3",
        ),
        (config.AT(stages=["block1:layer9"]), SMALL, BIG, r"teacher stage 'layer9'; did you mean 'layer\d'.*stem"),
        (config.AT(stages=["block1"]), SMALL, BIG, r"'block1' is not a pair.*student_stage:teacher_stage"),
        (config.AT(stages=[]), SMALL, BIG, r"stages=\[\] is empty"),
        (config.AT(), {}, BIG, r"the student has no features"),
        (config.RKD(), SMALL, {}, r"the teacher has no features"),
        (config.AT(), {"v": (8,)}, BIG, r"at needs a map, but stage 'v' is a vector of 8"),
        (config.AT(), {"v": (10, 8)}, BIG, r"stage 'v' is 10 tokens, not a square"),
        (config.AT(stages="last"), {"v": (8, 1, 1)}, BIG, r"'v:layer3' compares 1x1 maps"),
        (config.AT(), {"v": (8, 1, 1)}, BIG, r"'v:layer3' compares 1x1 maps"),
        (config.AT(), {"u": (8, 1, 1), "v": (8, 1, 1)}, BIG, r"every stage pair compares 1x1 maps"),
        (config.Hint(stages="last"), SMALL, {"v": (8,)}, r"hint needs a map, but stage 'v' is a vector of 8"),
        (config.Hint(stages="last"), {"x": (10, 4)}, {"y": (12, 4)}, r"stage 'x' is 10 tokens"),
        (config.FSP(stages="last"), SMALL, BIG, r"at least two stage pairs, got block3:layer3"),
        (config.FSP(), {"exit": (8, 4, 4)}, BIG, r"at least two stage pairs"),
        (config.RKD(distance=0.0, angle=0.0), SMALL, BIG, r"compares nothing"),
    ],
)
def test_what_cannot_be_defined_is_refused_when_built(options: Any, student: Any, teacher: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        build(options, student=student, teacher=teacher)
    assert "\n" not in str(error.value)


def test_all_pairs_leave_out_maps_of_one_position() -> None:
    shapes = {"deep": (8, 2, 2), "deepest": (8, 1, 1)}
    loss = build(config.AT(), student=shapes, teacher=shapes)
    assert isinstance(loss, AT)
    assert loss.pairs == [("deep", "deep")]


@pytest.mark.parametrize("options", [config.KD(), config.LogitMSE()])
def test_one_class_is_refused(options: Any) -> None:
    with pytest.raises(UserError, match="at least 2 classes"):
        build(options, classes=1)
