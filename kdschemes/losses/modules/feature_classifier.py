"""Losses that read features by a network's linear classifier."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from kdschemes.config.losses import feature_channels as config
from kdschemes.errors import UserError
from kdschemes.losses import feature
from kdschemes.losses.modules.base import Gather, Loss, Side, embedding
from kdschemes.losses.stages import as_map, as_map_shape, match_stages
from kdschemes.models import StagedNetwork
from kdschemes.models.recombined import Projector, Recombined, classify
from kdschemes.outputs import Batch, Output
from kdschemes.task import Task


class SRRL(Loss[config.SRRL]):
    """`feature.srrl` of the last features averaged over positions, the student's after a learned connector.

    The connector is a 1x1 convolution, batch norm and ReLU, before averaging. The teacher's classifier is a constant.
    """

    def __init__(self, options: config.SRRL, *, student: Side, teacher: Side, task: Task) -> None:
        super().__init__(options, student=student, teacher=teacher, task=task)
        if options.alpha == options.beta == 0:
            raise UserError("srrl with alpha=0 and beta=0 compares nothing: give one of them a positive weight")
        self._classifier = [_linear_classifier("srrl", "teacher", teacher)]
        self.pair = _last(student, teacher)
        ours, theirs = _shapes("srrl", self.pair, student, teacher)
        self.connector = nn.Sequential(
            nn.Conv2d(ours[0], theirs[0], 1, bias=False), nn.BatchNorm2d(theirs[0]), nn.ReLU(inplace=True)
        )

    def forward(self, student: Output, teacher: Output, batch: Batch, gather: Gather) -> Float[Tensor, ""]:
        a, b = self.pair
        return feature.srrl(
            embedding(self.connector(as_map(student.features[a]))),
            embedding(teacher.features[b]),
            classifier=self._classifier[0].weight.detach(),
            alpha=self.options.alpha,
            beta=self.options.beta,
        )


class CATKD(Loss[config.CATKD]):
    """`feature.cat_kd` of the class activation maps of the last stages. Square tokens count as a map.

    The student's classifier learns through its maps, the teacher's is a constant. Of a map of one position `normalise`
    leaves the sign alone, which has no gradient: refused.
    """

    def __init__(self, options: config.CATKD, *, student: Side, teacher: Side, task: Task) -> None:
        super().__init__(options, student=student, teacher=teacher, task=task)
        self._classifiers = [
            _linear_classifier("cat_kd", "student", student),
            _linear_classifier("cat_kd", "teacher", teacher),
        ]
        self.pair = _last(student, teacher)
        for stage, (_, height, width) in zip(self.pair, _shapes("cat_kd", self.pair, student, teacher), strict=True):
            if options.normalise and height * width == 1:
                raise UserError(
                    f"cat_kd with normalise=true needs more than one position, but the map of '{stage}' is 1x1: "
                    "set losses.feature.normalise=false or choose another model"
                )
        if options.normalise and options.resolution == 1:
            raise UserError("cat_kd with resolution=1 would keep signs alone: set losses.feature.normalise=false")

    def forward(self, student: Output, teacher: Output, batch: Batch, gather: Gather) -> Float[Tensor, ""]:
        (a, b), (ours, theirs) = self.pair, self._classifiers
        return feature.cat_kd(
            feature.class_activation(as_map(student.features[a]), ours.weight),
            feature.class_activation(as_map(teacher.features[b]), theirs.weight.detach()),
            resolution=self.options.resolution,
            normalise=self.options.normalise,
        )


class SimKD(Loss[config.SimKD]):
    """`feature.simkd` of the last maps, the student's after a projector, which the teacher's classifier then reads.

    It gives the student a further output, `simkd`: the teacher's classifier on the projected map. That classifier is
    neither trained nor held here.
    """

    head = "simkd"

    def __init__(self, options: config.SimKD, *, student: Side, teacher: Side, task: Task) -> None:
        super().__init__(options, student=student, teacher=teacher, task=task)
        if student.network is None:
            raise UserError(
                "simkd gives its student another classifier, but the student is no network by itself "
                "(an exit, or a peer with a shared trunk): choose another loss"
            )
        self._classifier = [_linear_classifier("simkd", "teacher", teacher)]
        if any(p.requires_grad for p in self._classifier[0].parameters()):
            raise UserError("simkd reuses a frozen teacher's classifier, but this one is trained: take scheme=offline")
        self.pair = _last(student, teacher)
        ours, theirs = _shapes("simkd", self.pair, student, teacher)
        size = (min(ours[1], theirs[1]), min(ours[2], theirs[2]))
        self.projector = Projector(ours[0], max(1, theirs[0] // options.factor), theirs[0], size)

    def forward(self, student: Output, teacher: Output, batch: Batch, gather: Gather) -> Float[Tensor, ""]:
        a, b = self.pair
        return feature.simkd(self.projector(student.features[a]), as_map(teacher.features[b]))

    def classify(self, features: Mapping[str, Tensor]) -> Float[Tensor, "n classes"]:
        return classify(self._classifier[0], self.projector(features[self.pair[0]]))

    def recombined(self, network: StagedNetwork) -> Recombined:
        return Recombined(network, self.projector, self._classifier[0])


FEATURE_CLASSIFIER: dict[type, type[Loss[Any]]] = {config.SRRL: SRRL, config.CATKD: CATKD, config.SimKD: SimKD}


def _linear_classifier(loss: str, who: str, side: Side) -> nn.Linear:
    """Return a side's classifier on its averaged last features; whoever holds it must not register it.

    Raises:
        UserError: there is none.
    """
    network = side.network
    layer = network.linear_classifier() if network is not None else None
    if layer is None:
        what = "is no network by itself" if network is None else f"{network.spec.name} has none that reads just these"
        raise UserError(
            f"{loss} needs the {who}'s linear classifier on the averaged features of its last stage, "
            f"but the {who} {what}: choose another {who} or another loss"
        )
    return layer


def _last(student: Side, teacher: Side) -> tuple[str, str]:
    (pair,) = match_stages("last", student.features, teacher.features)
    return pair


def _shapes(
    loss: str, pair: tuple[str, str], student: Side, teacher: Side
) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    a, b = pair
    return as_map_shape(loss, a, student.features[a]), as_map_shape(loss, b, teacher.features[b])
