"""Which stages of the student meet which of the teacher, and in what shape."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import isqrt

from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from kdschemes.errors import UserError, unknown
from kdschemes.models.recombined import as_map as as_map

StageShapes = Mapping[str, tuple[int, ...]]
"""By stage, shallow to deep, the shape of one sample's feature: map (C, H, W), tokens (L, D) or vector (D,)."""


def match_stages(stages: str | list[str], student: Iterable[str], teacher: Iterable[str]) -> list[tuple[str, str]]:
    """Return the stage pairs (student's, teacher's), shallow to deep.

    'all' pairs the stages from the deepest backwards, as many as both have; 'last' is the deepest of these pairs,
    'middle' the middle one (of an even number, the shallower of the two); a list names pairs as 'student:teacher'.

    Raises:
        UserError: a stage that is not there, an entry that is no pair, a network without features.
    """
    student, teacher = list(student), list(teacher)
    for who, names in (("student", student), ("teacher", teacher)):
        if not names:
            raise UserError(f"the {who} gives no features: a feature or relation loss needs a model that has stages")
    count = min(len(student), len(teacher))
    pairs = list(zip(student[-count:], teacher[-count:], strict=True))
    middle = (count - 1) // 2
    chosen = {"all": pairs, "last": pairs[-1:], "middle": pairs[middle : middle + 1]}
    if isinstance(stages, str):
        if stages not in chosen:
            raise unknown("choice of stages", stages, chosen)
        return chosen[stages]
    if not stages:
        raise UserError("stages=[] pairs nothing: give all, last, middle or a list of 'student_stage:teacher_stage'")
    return [_parse_pair(entry, student, teacher) for entry in stages]


def _parse_pair(entry: str, student: list[str], teacher: list[str]) -> tuple[str, str]:
    a, colon, b = entry.partition(":")
    if not colon:
        raise UserError(f"stages entry '{entry}' is no pair: write 'student_stage:teacher_stage', as '{entry}:{entry}'")
    if a not in student:
        raise unknown("student stage", a, student)
    if b not in teacher:
        raise unknown("teacher stage", b, teacher)
    return a, b


def map_shape(loss: str, stage: str, shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return the (C, H, W) of a stage's feature as `to_map` gives it.

    Raises:
        UserError: a vector, or tokens that are no square.
    """
    if len(shape) == 3:
        return shape[0], shape[1], shape[2]
    if len(shape) == 2 and isqrt(shape[0]) ** 2 == shape[0]:
        return shape[1], isqrt(shape[0]), isqrt(shape[0])
    what = f"a vector of {shape[0]}" if len(shape) == 1 else f"{shape[0]} tokens, not a square number"
    raise UserError(f"{loss} needs a map, but stage '{stage}' is {what}: pair other stages by losses.*.stages=[...]")


def to_map(feature: Float[Tensor, "n ..."]) -> Float[Tensor, "n c h w"]:
    """Return a map as it is, and tokens `[N, L, D]` as the square map `[N, D, sqrt(L), sqrt(L)]`."""
    if feature.dim() == 4:
        return feature
    square: Tensor = rearrange(feature, "n (h w) d -> n d h w", h=isqrt(feature.shape[1]))
    return square


def as_map_shape(loss: str, stage: str, shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return the (C, H, W) of a stage's feature as `as_map` gives it.

    Raises:
        UserError: tokens that are no square.
    """
    return (shape[0], 1, 1) if len(shape) == 1 else map_shape(loss, stage, shape)


def pairs_of_positions(
    loss: str, stages: str | list[str], student: StageShapes, teacher: StageShapes
) -> list[tuple[str, str]]:
    """Return the stage pairs as `match_stages` does, for a loss that has nothing to compare between 1x1 maps.

    Of 'all' the pairs of one position are left out; other choices of them are refused.

    Raises:
        UserError: as `match_stages` and `map_shape` do, and where only one position is left to compare.
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
                "pair other stages by losses.feature.stages=[...]"
            )
    if not pairs:
        raise UserError(f"{loss} needs more than one position, but every stage pair compares 1x1 maps")
    return pairs
