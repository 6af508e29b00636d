"""Pairing of student and teacher stages, their shapes, and base classes of losses that sum over pairs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import isqrt
from typing import TypeVar

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from kdschemes.config.losses import Stages
from kdschemes.core.loss import Endpoint, Gather, Loss, Options
from kdschemes.core.precision import full_precision
from kdschemes.core.types import Batch, DataSpec, Output, StageShapes
from kdschemes.errors import UserError, unknown
from kdschemes.models.recombined import as_map

Staged = TypeVar("Staged", bound=Stages)

Shape = tuple[int, int, int]
"""The (C, H, W) of a map."""


class StageLoss(Loss[Staged]):
    """The sum over stage pairs of `pair_loss`."""

    def __init__(self, options: Staged, *, student: Endpoint, teacher: Endpoint, data_spec: DataSpec) -> None:
        super().__init__(options, student=student, teacher=teacher, data_spec=data_spec)
        self.pairs = self.match(student.features, teacher.features)

    def match(self, student: StageShapes, teacher: StageShapes) -> list[tuple[str, str]]:
        """Return the stage pairs to compare, from `options.stages`."""
        return match_stages(self.options.stages, student, teacher)

    def teacher_stages(self) -> list[str]:
        return [theirs for _, theirs in self.pairs]

    def pair_loss(
        self, number: int, student: Float[Tensor, "n ..."], teacher: Float[Tensor, "n ..."], gather: Gather
    ) -> Float[Tensor, ""]:
        """Return the loss of stage pair `number` (from 0), given the features of both sides."""
        raise NotImplementedError

    def forward(self, student: Output, teacher: Output, batch: Batch, gather: Gather) -> Float[Tensor, ""]:
        features = [(student.features[a], teacher.features[b]) for a, b in self.pairs]
        return torch.stack([self.pair_loss(i, s, t, gather) for i, (s, t) in enumerate(features)]).sum()


class LastStageLoss(Loss[Options]):
    """A loss between the last stages of both sides, `pair`."""

    pair: tuple[str, str]

    def match_last(self, student: Endpoint, teacher: Endpoint) -> tuple[Shape, Shape]:
        """Pair the last stages, and return the shapes of their features after `as_map`."""
        (self.pair,) = match_stages("last", student.features, teacher.features)
        return map_shapes(self.options.name, self.pair, student, teacher)  # type: ignore[attr-defined]

    def teacher_stages(self) -> list[str]:
        return [self.pair[1]]


def match_stages(stages: str | list[str], student: Iterable[str], teacher: Iterable[str]) -> list[tuple[str, str]]:
    """Return the stage pairs (student's, teacher's), shallow to deep.

    'all' pairs as many stages as both have, starting from the deepest; 'last' is the deepest of these pairs, 'middle'
    the middle one (the shallower of the two if even); a list gives pairs as 'student:teacher'.

    Raises:
        UserError: an unknown stage, an entry that is not a pair, or a network without features.
    """
    student, teacher = list(student), list(teacher)
    for who, names in (("student", student), ("teacher", teacher)):
        if not names:
            raise UserError(f"the {who} has no features: a feature or relation loss needs a model with stages")
    count = min(len(student), len(teacher))
    pairs = list(zip(student[-count:], teacher[-count:], strict=True))
    middle = (count - 1) // 2
    chosen = {"all": pairs, "last": pairs[-1:], "middle": pairs[middle : middle + 1]}
    if isinstance(stages, str):
        if stages not in chosen:
            raise unknown("choice of stages", stages, chosen)
        return chosen[stages]
    if not stages:
        raise UserError("stages=[] is empty: give all, last, middle or a list of 'student_stage:teacher_stage'")
    return [_parse_pair(entry, student, teacher) for entry in stages]


def _parse_pair(entry: str, student: list[str], teacher: list[str]) -> tuple[str, str]:
    a, colon, b = entry.partition(":")
    if not colon:
        raise UserError(
            f"stages entry '{entry}' is not a pair: write student_stage:teacher_stage, as '{entry}:{entry}'"
        )
    if a not in student:
        raise unknown("student stage", a, student)
    if b not in teacher:
        raise unknown("teacher stage", b, teacher)
    return a, b


def map_shape(loss: str, stage: str, shape: tuple[int, ...]) -> Shape:
    """Return the (C, H, W) of a stage's feature after `to_map`.

    Raises:
        UserError: a vector, or a number of tokens that is not a square.
    """
    if len(shape) == 3:
        return shape[0], shape[1], shape[2]
    if len(shape) == 2 and isqrt(shape[0]) ** 2 == shape[0]:
        return shape[1], isqrt(shape[0]), isqrt(shape[0])
    what = f"a vector of {shape[0]}" if len(shape) == 1 else f"{shape[0]} tokens, not a square number"
    raise UserError(f"{loss} needs a map, but stage '{stage}' is {what}: pair other stages with losses.*.stages=[...]")


def to_map(feature: Float[Tensor, "n ..."]) -> Float[Tensor, "n c h w"]:
    """Return maps unchanged, and tokens `[N, L, D]` as a square map `[N, D, sqrt(L), sqrt(L)]`."""
    if feature.dim() == 4:
        return feature
    square: Tensor = rearrange(feature, "n (h w) d -> n d h w", h=isqrt(feature.shape[1]))
    return square


def as_map_shape(loss: str, stage: str, shape: tuple[int, ...]) -> Shape:
    """Return the (C, H, W) of a stage's feature after `as_map`.

    Raises:
        UserError: a number of tokens that is not a square.
    """
    return (shape[0], 1, 1) if len(shape) == 1 else map_shape(loss, stage, shape)


def map_shapes(loss: str, pair: tuple[str, str], student: Endpoint, teacher: Endpoint) -> tuple[Shape, Shape]:
    """Return `as_map_shape` of a stage pair's features, the student's and the teacher's."""
    a, b = pair
    return as_map_shape(loss, a, student.features[a]), as_map_shape(loss, b, teacher.features[b])


def check_two_pairs(loss: str, pairs: Sequence[tuple[str, str]], advice: str) -> None:
    """Raise `UserError` if there are fewer than two stage pairs."""
    if len(pairs) < 2:
        raise UserError(
            f"{loss} needs at least two stage pairs, got {', '.join(f'{a}:{b}' for a, b in pairs)}: {advice}"
        )


def projection(channels: int, wanted: int) -> nn.Module:
    """Return a learned 1x1 convolution to `wanted` channels, or the identity if the number is the same."""
    return nn.Identity() if channels == wanted else nn.Conv2d(channels, wanted, 1)


def pairs_of_positions(
    loss: str, stages: str | list[str], student: StageShapes, teacher: StageShapes
) -> list[tuple[str, str]]:
    """Return the stage pairs like `match_stages`, for a loss that is always 0 between 1x1 maps.

    'all' omits pairs with a single position; other choices of such pairs are rejected.

    Raises:
        UserError: as in `match_stages` and `map_shape`, and if a single position would be compared.
    """
    pairs: list[tuple[str, str]] = []
    matched = match_stages(stages, student, teacher)
    for a, b in matched:
        _, height, width = map_shape(loss, a, student[a])
        _, their_height, their_width = map_shape(loss, b, teacher[b])
        if min(height, their_height) * min(width, their_width) > 1:
            pairs.append((a, b))
        elif stages != "all" or len(matched) == 1:
            raise UserError(
                f"{loss} needs more than one position, but '{a}:{b}' compares 1x1 maps and would always be 0: "
                "pair other stages with losses.feature.stages=[...]"
            )
    if not pairs:
        raise UserError(f"{loss} needs more than one position, but every stage pair compares 1x1 maps")
    return pairs


def match_size(
    a: Float[Tensor, "n ca ha wa"], b: Float[Tensor, "n cb hb wb"]
) -> tuple[Float[Tensor, "n ca h w"], Float[Tensor, "n cb h w"]]:
    """Return both maps, average-pooled if needed to the smaller height and the smaller width of the two."""
    size = (min(a.shape[2], b.shape[2]), min(a.shape[3], b.shape[3]))
    return _pool(a, size), _pool(b, size)


def _pool(features: Tensor, size: tuple[int, int]) -> Tensor:
    return features if features.shape[2:] == size else functional.adaptive_avg_pool2d(features, size)


def before_relu(output: Output, stage: str) -> Float[Tensor, "n c h w"]:
    """Return a stage's map before its last ReLU, or its features as a map if it does not end in one."""
    return as_map(output.preactivations.get(stage, output.features[stage]))


def linear_classifier(loss: str, who: str, endpoint: Endpoint) -> nn.Linear:
    """Return a side's classifier on its averaged last features; the caller must not register it as a submodule.

    Raises:
        UserError: there is none.
    """
    network = endpoint.network
    layer = network.linear_classifier() if network is not None else None
    if layer is None:
        what = "is not a whole network" if network is None else f"{network.spec.name} has none on just these features"
        raise UserError(
            f"{loss} needs the {who}'s linear classifier on the averaged features of its last stage, "
            f"but the {who} {what}: choose another {who} or another loss"
        )
    return layer


class Embedding(nn.Linear):
    """A linear layer that computes in at least float32."""

    @full_precision
    def forward(self, input: Float[Tensor, "n width"]) -> Float[Tensor, "n dimension"]:
        """Return the embeddings."""
        return super().forward(input)
