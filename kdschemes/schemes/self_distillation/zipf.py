"""Zipf's label smoothing: soft labels by Zipf's law over class ranks, voted for by the last map's positions."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from kdschemes.config import Config
from kdschemes.config.schemes.self_distillation import SelfZipf
from kdschemes.core.distillation import Distillation
from kdschemes.core.nodes import Network
from kdschemes.core.precision import full_precision
from kdschemes.core.schedules import constant
from kdschemes.core.terms import Supervise, Term
from kdschemes.core.types import Batch, DataSpec, Output
from kdschemes.errors import UserError
from kdschemes.losses.response.divergence import divergence_by_gap
from kdschemes.losses.rows import without_offset
from kdschemes.schemes.distill import probe
from kdschemes.schemes.networks import student_network


class ZipfLabels(Term):
    """`zipf_loss` of the target's logits, with ranks from `dense_votes` of the last map or from the logits."""

    def __init__(self, target: str, options: SelfZipf, classifier: nn.Linear | None) -> None:
        super().__init__(f"zipf/{target}", target, constant(options.weight))
        self.options = options
        self._classifier = [classifier]

    @property
    def classifier(self) -> nn.Linear | None:
        return self._classifier[0]

    def forward(self, outputs: Mapping[str, Output], batch: Batch) -> Tensor:
        output, classifier = outputs[self.target].detach(), self.classifier
        scores = output.logits
        if classifier is not None:
            last = list(output.features.values())[-1]
            bias = None if classifier.bias is None else classifier.bias.detach()
            scores = dense_votes(last, classifier.weight.detach(), bias, upsample=self.options.upsample)
        labels = zipf_labels(scores, batch.labels, power=self.options.power)
        return zipf_loss(outputs[self.target].logits, labels, batch.labels)


@full_precision
def dense_votes(
    features: Float[Tensor, "n d h w"],
    weight: Float[Tensor, "c d"],
    bias: Float[Tensor, " c"] | None,
    *,
    upsample: int,
) -> Float[Tensor, "n c"]:
    """Return for each class the number of positions of the upsampled map that are classified as it.

    Args:
        features: the map that the classifier reads, before averaging.
        weight: of the classifier.
        bias: of the classifier.
        upsample: factor of bilinear upsampling.
    """
    if upsample > 1:
        features = functional.interpolate(features, scale_factor=float(upsample), mode="bilinear")
    chosen = functional.linear(features.flatten(2).mT, weight, bias).argmax(dim=2)
    votes = torch.zeros(len(features), len(weight), dtype=features.dtype, device=features.device)
    return votes.scatter_add_(1, chosen, torch.ones_like(chosen, dtype=votes.dtype))


@full_precision
def zipf_labels(scores: Float[Tensor, "n c"], labels: Int[Tensor, " n"], *, power: float) -> Float[Tensor, "n c"]:
    r"""Return $q_c \propto 1 / r_c^{power}$ on the classes other than the label, and 0 on the label.

    $r_c$ is 1 + the number of classes with a higher score, including the label: equal scores share the best rank.

    Args:
        scores: by which classes are ranked.
        labels: class indices.
        power: exponent of the law.
    """
    ascending = scores.sort(dim=1).values
    rank = 1 + scores.shape[1] - torch.searchsorted(ascending, scores.contiguous(), right=True)
    share = rank.to(scores.dtype).pow(-power).scatter(1, labels[:, None], 0.0)
    return share / share.sum(dim=1, keepdim=True)


@full_precision
def zipf_loss(
    student: Float[Tensor, "n c"], soft: Float[Tensor, "n c"], labels: Int[Tensor, " n"]
) -> Float[Tensor, ""]:
    r"""Return $\frac1N \sum_n KL(q_n \| softmax(z_{n, c \ne y}))$ over the classes other than the label.

    Liang et al. 2022, "Efficient One Pass Self-distillation with Zipf's Label Smoothing". Gradients flow to the
    logits. With two classes, the value is 0.

    Args:
        student: logits z.
        soft: q, 0 on the label.
        labels: class indices.
    """
    others = torch.ones_like(student, dtype=torch.bool).scatter(1, labels[:, None], False)
    shape = (len(student), student.shape[1] - 1)
    log_p = soft[others].view(shape).log()
    z = without_offset(student[others].view(shape))
    return divergence_by_gap(z - log_p, log_p, functional.log_softmax(z, dim=1)).mean()


def zipf(config: Config, data_spec: DataSpec) -> Distillation:
    """Return CE + weight times the divergence from Zipf's law over the ranks of the other classes.

    Raises:
        UserError: fewer than 2 classes, or dense votes with a model whose classifier does not read its last map.
    """
    options = config.scheme
    assert isinstance(options, SelfZipf)
    if data_spec.num_classes < 2:
        raise UserError(
            f"method=zipf ranks the classes other than the label, but there is only {data_spec.num_classes} class"
        )
    student = Network("student", student_network(config, data_spec, "student"))
    classifier = None
    if options.votes == "dense":
        classifier = student.network.linear_classifier()
        last = list(probe([student], data_spec)["student"].values())[-1]
        if classifier is None or len(last) != 3:
            raise UserError(
                f"scheme.votes=dense needs a linear classifier on the averaged last map, which {config.model.name} "
                "does not have: use scheme.votes=logits"
            )
    terms = [Supervise("student", constant(1.0)), ZipfLabels("student", options, classifier)]
    return Distillation({"student": student}, terms, ["student"])
