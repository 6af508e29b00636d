"""Methods that teach by labels alone."""

from __future__ import annotations

import pytest

from tests.schemes.cases import START, base, build, check_refused, configure, random_batch


@pytest.mark.parametrize(("method", "hard", "weight"), [("uskd", 1.0, 1.0), ("tfkd_reg", 0.9, 0.1)])
def test_cross_entropy_has_its_published_weight(method: str, hard: float, weight: float) -> None:
    scheme = build(*base("self", method))
    weights = scheme(random_batch(), START).weights
    assert weights == pytest.approx({"ce/student": hard, f"{method}/student->student": weight})
    assert configure(*base("self", method)).scheme.ce_weight == hard
    assert configure(*base("self", method), "scheme.ce_weight=0.3").scheme.ce_weight == 0.3
    again = build(*base("self", method), "scheme.ce_weight=null")
    assert again(random_batch(), START).weights["ce/student"] == hard


@pytest.mark.parametrize("loss", ["losses.response=kd", "losses.feature=at", "losses.relation=rkd"])
def test_a_loss_that_needs_a_teacher_is_refused(loss: str) -> None:
    check_refused([*base("self", "uskd"), loss], loss)
