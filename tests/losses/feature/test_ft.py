"""Factor transfer."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from kdschemes.config.losses import feature as config
from kdschemes.core.types import Output
from kdschemes.losses.feature.ft import FT, ft
from kdschemes.losses.feature.hint import hint
from tests.losses.cases import Flags, Inputs, MapCase, Parameters, Reference
from tests.losses.feature.test_at import formula_of_map
from tests.losses.formulas import Array, to_smaller
from tests.losses.inputs import normal
from tests.losses.stubs import (
    BIG,
    SMALL,
    N,
    build,
    output,
    value_of,
)


def formula(student: Array, teacher: Array, *, variant: str) -> float:
    def unit(sample: Array) -> Array:
        if variant == "attention":
            return formula_of_map(sample)
        flat = sample.ravel()
        length = math.sqrt(math.fsum(flat**2))
        return flat / length if length else flat

    pairs = zip(*to_smaller(student, teacher), strict=True)
    return float(np.mean([np.mean(np.abs(unit(s) - unit(t))) for s, t in pairs]))


CASES = {
    "ft": MapCase(ft, partial(formula, variant="attention"), teacher=4, scale_free=True, flat_at_zero=False),
    "ft, paper": MapCase(
        partial(ft, variant="paper"), partial(formula, variant="paper"), scale_free=True, flat_at_zero=False
    ),
}
OPTIONS = [config.FT(variant="paper"), config.FT(rate=0.3, reconstruction=0.5)]
FLAGS = Flags(needs_positions=True)


def factor(x: Inputs, p: Parameters) -> Tensor:
    return ft(x["s"], x["t"], variant="paper")


REFERENCES: dict[str, Reference] = {
    "FT.RepDistiller": lambda x, p: ft(x["s"], x["t"]),
    "FT.mmrazor": factor,
    "FT.torchdistill": factor,
}


def test_only_attention_maps_compare_different_numbers_of_channels() -> None:
    s, t = normal(7, 2, 3, 4, 4), normal(8, 2, 5, 4, 4)
    assert ft(s, t) > 0
    with pytest.raises(AssertionError, match="against"):
        ft(s, t, variant="paper")


def test_the_paraphraser_learns_only_from_its_reconstruction() -> None:
    s, t = output(SMALL, 4), output(BIG, 5).detach()
    found = []
    for scale in (1.0, 10.0):
        loss = build(config.FT(rate=0.3, reconstruction=0.5))
        assert isinstance(loss, FT)
        scaled = Output(s.logits, {k: scale * f + 1.0 for k, f in s.features.items()})
        value_of(loss, scaled, t).backward()
        found.append([p.grad.clone() for part in (loss.encoders, loss.decoders) for p in part.parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
    ((encode,), (decode,), (translate,)) = loss.encoders, loss.decoders, loss.translators
    code = encode(t.features["layer3"])
    assert code.shape == (N, 3, 2, 4)
    expected = ft(translate(scaled.features["block3"]), code)
    expected = expected + 0.5 * hint(decode(code), t.features["layer3"])
    torch.testing.assert_close(value_of(loss, scaled, t), expected)
