"""How stages are paired, and what becomes a map."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kdschemes.config.losses import feature as feature_config
from kdschemes.config.losses import relation as config
from kdschemes.errors import UserError
from kdschemes.losses.stages import map_shape, match_stages, to_map
from tests.losses.stubs import BIG, SMALL, batch, build, output, same


def test_tokens_become_square_maps() -> None:
    tokens = torch.arange(2 * 9 * 4.0).reshape(2, 9, 4)
    square = to_map(tokens)
    assert square.shape == (2, 4, 3, 3)
    assert torch.equal(square[:, :, 1, 2], tokens[:, 5])
    assert map_shape("at", "s", (9, 4)) == (4, 3, 3)
    token_shapes = {"a": (16, 6), "b": (16, 6)}
    for options in (feature_config.AT(), config.FSP(), config.RKD(), feature_config.Hint()):
        value = build(options, student=token_shapes)(output(token_shapes, 14), output(BIG, 15), batch(), same)
        assert value > 0


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
        (feature_config.AT(stages=["blok1:layer1"]), SMALL, BIG, r"student stage 'blok1'.*'block1'.*block2, block3"),
        (feature_config.AT(stages=["block1:layer9"]), SMALL, BIG, r"teacher stage 'layer9'.*'layer\d'.*stem"),
        (feature_config.AT(stages=["block1"]), SMALL, BIG, r"'block1'.*student_stage:teacher_stage"),
        (feature_config.AT(stages=[]), SMALL, BIG, r"stages=\[\].*all, last, middle"),
    ],
)
def test_undefined_losses_are_refused_when_built(options: Any, student: Any, teacher: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        build(options, student, teacher)
    assert "\n" not in str(error.value)
