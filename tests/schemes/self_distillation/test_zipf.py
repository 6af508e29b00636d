"""Zipf's label smoothing: soft labels by the rank of the classes in the network's own votes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import rankdata

from kdschemes.core.types import DataSpec
from kdschemes.errors import UserError
from kdschemes.schemes.self_distillation.zipf import dense_votes, zipf_labels, zipf_loss
from tests.losses import oracles
from tests.losses.inputs import gradients_at, normal
from tests.losses.oracles import Array
from tests.schemes.cases import base, build, network_of, random_batch
from tests.schemes.formulas import Formula, Seen, array
from tests.schemes.self_distillation.cases import outputs_of
from tests.schemes.self_distillation.formulas import hard, last_feature

ZIPF = base("self", "zipf")


def upsampled(plane: Array, factor: int) -> Array:
    """Bilinear interpolation of a plane whose pixels are squares: centers at half integers, the border repeated."""
    height, width = plane.shape

    def place(i: int, length: int) -> tuple[int, int, float]:
        at = max((i + 0.5) / factor - 0.5, 0.0)
        low = math.floor(at)
        return low, min(low + 1, length - 1), at - low

    out = np.zeros((height * factor, width * factor))
    for i, j in np.ndindex(*out.shape):
        top, bottom, down = place(i, height)
        left, right, across = place(j, width)
        upper = (1 - across) * plane[top, left] + across * plane[top, right]
        lower = (1 - across) * plane[bottom, left] + across * plane[bottom, right]
        out[i, j] = (1 - down) * upper + down * lower
    return out


def expected_votes(features: Array, weight: Array, bias: Array, *, factor: int) -> Array:
    """For each class the number of positions of the upsampled map that the classifier gives to it."""
    counts = np.zeros((len(features), len(weight)))
    for n, sample in enumerate(features):
        planes = np.stack([upsampled(plane, factor) for plane in sample])
        for i, j in np.ndindex(*planes.shape[1:]):
            scores = [math.fsum(w * planes[:, i, j]) + b for w, b in zip(weight, bias, strict=True)]
            counts[n, int(np.argmax(scores))] += 1
    return counts


def expected_loss(student: Array, scores: Array, labels: list[int], *, power: float) -> float:
    """KL of the law over the other classes, ranked among all with ties at the best rank, and the student's output."""
    total = 0.0
    for z, score, y in zip(student, scores, labels, strict=True):
        rank = rankdata(-score, method="min")
        others = [c for c in range(len(z)) if c != y]
        share = np.array([1.0 / rank[c] ** power for c in others])
        q = share / share.sum()
        total += math.fsum(q * (np.log(q) - oracles.log_softmax(z[others])))
    return total / len(student)


def expected_total(seen: Seen) -> float:
    chosen, scores = seen.config.scheme, seen.logits("student")
    if chosen.votes == "dense":
        classifier = seen.scheme.nodes["student"].network.fc
        weights = (array(classifier.weight), array(classifier.bias))
        scores = expected_votes(array(last_feature(seen, "student")), *weights, factor=chosen.upsample)
    soft = expected_loss(seen.logits("student"), scores, seen.labels, power=chosen.power)
    return hard(seen) + chosen.weight * soft


FORMULA: Formula = expected_total
EXACT = {
    "zipf-logits": [*ZIPF, "scheme.votes=logits", "scheme.power=0.5", "scheme.weight=2"],
    "zipf-plain": [*ZIPF, "scheme.upsample=1", "scheme.power=2", "scheme.weight=2"],
}
VARIANTS = {"self-zipf-logits": [*ZIPF, "scheme.votes=logits"]}
REFUSED = {
    name: f"scheme.votes=dense .*{name} .*scheme.votes=logits"
    for name in ("timm/mobilenetv3_small_050", "timm/test_vit")
}


def test_votes_and_ranks_by_hand() -> None:
    features = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]], [[0.0, 1.0], [1.0, 0.0]], [[0.0, 0.0], [0.0, 1.0]]]])
    votes = dense_votes(features, torch.eye(3), None, upsample=1)
    assert votes.tolist() == [[1, 2, 1]]
    enlarged = dense_votes(features, torch.eye(3), torch.zeros(3), upsample=3)
    assert enlarged.sum() == 36
    scores = torch.tensor([[5.0, 5.0, 1.0, 0.0, 0.0]])
    soft = zipf_labels(scores, torch.tensor([1]), power=1.0)
    torch.testing.assert_close(soft, torch.tensor([[1.0, 0.0, 1 / 3, 1 / 4, 1 / 4]]) / (1 + 1 / 3 + 1 / 2))
    assert torch.equal(zipf_labels(scores, torch.tensor([3]), power=0.0), torch.tensor([[0.25, 0.25, 0.25, 0.0, 0.25]]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_the_loss_is_the_divergence_among_the_other_classes(dtype: torch.dtype, scale: float) -> None:
    generator = torch.Generator().manual_seed(1)
    z = (scale * torch.randn(6, 8, generator=generator)).to(dtype).requires_grad_()
    scores = torch.randint(0, 4, (6, 8), generator=generator).to(dtype)
    labels = torch.arange(6)
    value = zipf_loss(z, zipf_labels(scores, labels, power=1.0), labels)
    assert value.dtype == torch.promote_types(dtype, torch.float32)
    expected = expected_loss(array(z), array(scores), labels.tolist(), power=1.0)
    assert value.item() == pytest.approx(expected, rel=1e-10 if dtype == torch.float64 else 1e-4)
    value.backward()
    assert z.grad is not None
    assert bool(z.grad.isfinite().all())
    assert not z.grad[range(6), labels].any()
    if scale == 1.0 and dtype == torch.float64:
        soft = zipf_labels(scores, labels, power=1.0)
        other = z.detach().scatter(1, labels[:, None], -torch.inf).softmax(1)
        torch.testing.assert_close(z.grad, (other - soft) / 6, rtol=1e-10, atol=1e-14)


def test_a_common_offset_costs_no_digits() -> None:
    z, labels = (normal(2, 6, 8) + 1e4).float(), torch.arange(6)
    soft = zipf_labels(normal(3, 6, 8).float(), labels, power=1.0)
    found, truth = (gradients_at(lambda z: zipf_loss(z, soft.to(z.dtype), labels), x)[0] for x in (z, z.double()))
    assert (found - truth).abs().max() < 3e-6 * truth.abs().max()


def test_two_classes_give_no_loss_and_one_is_refused() -> None:
    z = torch.randn(4, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    labels = torch.tensor([0, 1, 1, 0])
    value = zipf_loss(z, zipf_labels(z.detach(), labels, power=1.0), labels)
    assert value == 0
    with pytest.raises(UserError, match="method=zipf"):
        build(*base("self", "zipf"), data_spec=DataSpec(1, 1, 8))


def test_the_classifier_has_no_gradient_through_the_votes() -> None:
    scheme = build(*base("self", "zipf"))
    out = outputs_of(scheme, random_batch())
    term = scheme.terms[1]
    value = term(out, random_batch())
    (logits,) = torch.autograd.grad(value, [out["student"].logits], retain_graph=True)
    fc = network_of(scheme, "student").fc
    (bias,) = torch.autograd.grad(value, [fc.bias])
    torch.testing.assert_close(bias, logits.sum(0))
    assert term.classifier is scheme.nodes["student"].network.fc
    assert not any(name.startswith("terms") for name in scheme.state_dict())
