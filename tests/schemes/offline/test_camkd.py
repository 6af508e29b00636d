"""Confidence-aware multi-teacher KD: teachers weighted per sample by their own cross-entropy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from kdschemes.core.types import Progress
from kdschemes.schemes.offline.camkd import ReadByTeachers, teacher_weights, weighted_hint, weighted_kd
from tests.losses import oracles
from tests.losses.inputs import gradients_at
from tests.losses.oracles import Array
from tests.schemes.cases import ARCHITECTURES, base, build, check_refused, network_of, random_batch
from tests.schemes.formulas import Formula, Seen, array
from tests.schemes.offline.cases import LABELS, LATER, logits

CAMKD = base("offline", "camkd")


def expected_teacher_weights(teachers: Sequence[Array], labels: Sequence[int]) -> Array:
    """(1 - softmax over teachers of their cross-entropy on the sample) / (K - 1), as [K, N]."""
    columns = []
    for sample, label in enumerate(labels):
        surprise = np.array([-oracles.log_softmax(teacher[sample])[label] for teacher in teachers])
        columns.append((1.0 - oracles.softmax(surprise)) / (len(teachers) - 1))
    return np.stack(columns, axis=1)


def expected_total(seen: Seen) -> float:
    """CE, and per sample KD from each teacher and a hint to its map, weighted by the confidence of its predictions."""
    names, labels, scheme = ["teacher0", "teacher1"], seen.labels, seen.config.scheme
    student, teachers = seen.logits("student"), [seen.logits(name) for name in names]
    read = [seen.out[f"student/{name}"] for name in names]
    embedded = [array(output.features["embedded"]) for output in read]
    features = [array(list(seen.out[name].features.values())[-1]) for name in names]
    by_logits = expected_teacher_weights(teachers, labels)
    by_reading = expected_teacher_weights([array(output.logits) for output in read], labels)
    soft = maps = 0.0
    for k in range(len(names)):
        for n in range(len(labels)):
            row = slice(n, n + 1)
            soft += by_logits[k, n] * oracles.kd(student[row], teachers[k][row], temperature=scheme.temperature)
            maps += by_reading[k, n] * oracles.hint(embedded[k][n], features[k][n])
    beta = scheme.beta if seen.progress.epoch >= scheme.feature_start_epoch else 0.0
    hard = oracles.cross_entropy(student, oracles.one_hot(labels, student.shape[1]))
    return float(scheme.ce_weight * hard + (scheme.alpha * soft + beta * maps) / (len(names) * len(labels)))


FORMULA: Formula = expected_total
EXACT = {
    "camkd-other": [
        *[*CAMKD, "scheme.feature_start_epoch=0", "scheme.temperature=2", "scheme.grad_through_weights=false"],
        *["scheme.ce_weight=0.5", "scheme.alpha=0.3", "scheme.beta=7"],
    ],
}
VARIANTS = {"offline-camkd-from-the-start": [*CAMKD, "scheme.feature_start_epoch=0"]}


def test_weights_of_teachers_sum_to_1_and_favor_those_that_know_the_label() -> None:
    teachers = logits(0)
    weights = teacher_weights(teachers, LABELS)
    expected = expected_teacher_weights(list(teachers.numpy()), LABELS.tolist())
    np.testing.assert_allclose(weights.numpy(), expected, rtol=1e-12)
    torch.testing.assert_close(weights.sum(0), torch.ones(5, dtype=torch.float64), rtol=1e-14, atol=0)
    surprise = -teachers.log_softmax(2).gather(2, LABELS.expand(3, -1)[..., None]).squeeze(2)
    assert torch.equal(weights.argsort(0, descending=True), surprise.argsort(0))
    even = teacher_weights(teachers[:1].repeat(4, 1, 1), LABELS)
    torch.testing.assert_close(even, torch.full_like(even, 0.25))


@pytest.mark.parametrize("scale", [1e4, 1.0])
def test_weights_of_half_precision_and_huge_logits_are_finite(scale: float) -> None:
    teachers = (scale * logits(1)).bfloat16()
    student = (scale * logits(2)[0]).bfloat16().requires_grad_()
    weights = teacher_weights(teachers, LABELS)
    value = weighted_kd(student, teachers, weights, temperature=4.0)
    value.backward()
    assert weights.dtype == value.dtype == torch.float32
    assert value.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_a_common_offset_costs_no_digits() -> None:
    student, teachers = (logits(5)[0] + 1e4).float(), (logits(6) - 1e4).float()

    def slope(z: Tensor, v: Tensor) -> Tensor:
        return gradients_at(lambda z: weighted_kd(z, v, teacher_weights(v, LABELS), temperature=4.0), z)[0]

    truth = slope(student.double(), teachers.double())
    assert (slope(student, teachers) - truth).abs().max() < 3e-6 * truth.abs().max()


def test_the_published_form_has_one_more_division_by_the_number_of_teachers() -> None:
    """K teachers with the same predictions teach like one of them with 1 / K of its weight."""
    one, student = logits(3)[:1], logits(4)[0]
    several = one.repeat(3, 1, 1)
    value = weighted_kd(student, several, teacher_weights(several, LABELS), temperature=2.0)
    alone = weighted_kd(student, one, torch.ones(1, 5, dtype=torch.float64), temperature=2.0)
    assert value.item() == pytest.approx(alone.item() / 3, rel=1e-12)
    maps = [torch.randn(5, 2, 3, 3, dtype=torch.float64) for _ in range(2)]
    hint = weighted_hint([maps[0]] * 3, [maps[1]] * 3, teacher_weights(several, LABELS))
    assert hint.item() == pytest.approx((maps[0] - maps[1]).square().mean().item() / 3, rel=1e-12)


def test_embedded_maps_are_what_the_teachers_classifiers_read_and_only_the_embedding_learns() -> None:
    scheme = build(*CAMKD, "model=convnet").train()
    reader = scheme.nodes["embedded"]
    assert isinstance(reader, ReadByTeachers)
    out = scheme.predict(random_batch(), [*reader.provides, "teacher0", "teacher1"])
    for name in ("teacher0", "teacher1"):
        read, teacher = out[f"student/{name}"], network_of(scheme, name)
        assert read.features["embedded"].shape == list(out[name].features.values())[-1].shape
        fc = teacher.linear_classifier()
        assert fc is not None
        torch.testing.assert_close(read.logits, fc(read.features["embedded"].mean((2, 3))))
        assert (read.features["embedded"] >= 0).all()
    scheme(random_batch(), LATER).total.backward()
    assert all(p.grad is not None and p.grad.any() for p in reader.parameters() if p.dim() > 1)
    teachers = [p for name in ("teacher0", "teacher1") for p in network_of(scheme, name).parameters()]
    assert not any(p.grad is not None for p in teachers)


@pytest.mark.parametrize("through", [True, False])
def test_weights_of_the_feature_term_pass_a_gradient_if_the_option_says_so(through: bool) -> None:
    scheme = build(*CAMKD, f"scheme.grad_through_weights={str(through).lower()}")
    (term,) = [term for term in scheme.terms if term.name == "camkd_hint/teachers->student"]
    batch = random_batch()
    outputs = scheme.predict(batch, term.reads)
    readings = [outputs[f"student/teacher{k}"].logits for k in (0, 1)]
    gradients = torch.autograd.grad(term(outputs, batch), readings, retain_graph=True, allow_unused=True)
    assert [gradient is not None and bool(gradient.any()) for gradient in gradients] == [through] * 2
    (gradient,) = torch.autograd.grad(term(outputs, batch), list(outputs["student"].features.values())[-1])
    assert gradient.isfinite().all()


def test_the_feature_term_starts_at_its_epoch() -> None:
    scheme, batch = build(*CAMKD), random_batch()
    weights = [scheme(batch, Progress(step, 100, 10)).weights["camkd_hint/teachers->student"] for step in (0, 9, 10)]
    assert weights == [0.0, 0.0, 50.0]


@pytest.mark.parametrize(
    ("option", "message"),
    [("teacher=resnet20", "teacher.name=resnet20"), ("teacher.weights=[1,2]", "teacher.weights .* method=camkd")],
)
def test_what_does_not_fit_is_refused_in_one_line(option: str, message: str) -> None:
    check_refused([*CAMKD, option], message)


def test_a_teacher_without_a_linear_classifier_is_refused() -> None:
    data_spec = ARCHITECTURES["timm/test_vit"]
    check_refused([*CAMKD, "teacher=[resnet20,timm/test_vit]"], "linear classifier.* timm/test_vit", data_spec)
