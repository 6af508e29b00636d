"""Maps of stages."""

from __future__ import annotations

import pytest

from kdschemes.errors import UserError
from kdschemes.schemes.self_distillation.stage_maps import stage_maps


def test_square_tokens_are_maps_and_others_are_refused() -> None:
    assert stage_maps("sad", {"a": (3, 4, 5), "b": (9, 6)}) == {"a": (3, 4, 5), "b": (6, 3, 3)}
    for shape, what in (((10, 6), "10 tokens"), ((6,), "vectors of 6")):
        with pytest.raises(UserError, match=f"frskd .*'b' .*{what}"):
            stage_maps("frskd", {"a": (3, 4, 5), "b": shape})
