"""Paired comparisons against closed forms and numbers worked out by hand."""

from __future__ import annotations

import math

import pytest

from kdschemes.report.statistics import TOO_FEW, Paired, holm, mean_by_seed, paired, verdicts

T_2 = 4.30265272975
"""The 97.5 % point of Student's t with 2 degrees of freedom."""


def test_paired_is_the_t_test_of_the_differences() -> None:
    found = paired({0: 11.0, 1: 22.0, 2: 36.0, 3: 1.0}, {2: 30.0, 1: 20.0, 0: 10.0, 7: 5.0})
    error = math.sqrt((4 + 1 + 9) / 2 / 3)  # of the differences 1, 2 and 6
    t = 3 / error
    assert (found.n, found.mean_difference) == (3, pytest.approx(3))
    assert (found.low, found.high) == (pytest.approx(3 - T_2 * error), pytest.approx(3 + T_2 * error))
    assert found.p == pytest.approx(1 - t / math.sqrt(2 + t * t))  # the closed form for 2 degrees of freedom


def test_paired_turned_round_is_the_same_with_the_other_sign() -> None:
    a, b = {0: 1.0, 1: 2.5, 2: 2.0}, {0: 0.5, 1: 3.0, 2: 1.0}
    one, two = paired(a, b), paired(b, a)
    assert (one.mean_difference, one.low, one.p) == pytest.approx((-two.mean_difference, -two.high, two.p))


@pytest.mark.parametrize(("shift", "p"), [(0.5, 0.0), (0.0, 1.0)])
def test_differences_that_are_all_the_same(shift: float, p: float) -> None:
    found = paired({seed: seed + shift for seed in range(3)}, {seed: float(seed) for seed in range(3)})
    assert found == Paired(n=3, mean_difference=shift, low=shift, high=shift, p=p)


def test_too_few_seeds_and_no_numbers() -> None:
    one = paired({0: 3.0, 1: 9.0}, {0: 1.0, 2: 9.0})
    assert (one.n, one.mean_difference) == (1, 2.0)
    assert all(map(math.isnan, (one.low, one.high, one.p)))
    for found in (paired({0: 1.0}, {1: 1.0}), paired({0: 1.0, 1: math.nan}, {0: 1.0, 1: 2.0})):
        assert math.isnan(found.mean_difference)
        assert math.isnan(found.p)


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    corrected = holm([0.02, math.nan, 0.03])
    assert corrected[::2] == pytest.approx([0.04, 0.04])
    assert math.isnan(corrected[1])
    assert holm([]) == []


def test_verdicts_need_three_seeds_and_correct_for_several() -> None:
    def found(n: int, difference: float, p: float) -> Paired:
        return Paired(n=n, mean_difference=difference, low=-1.0, high=1.0, p=p)

    tests = [found(3, 1.0, 0.01), found(3, -1.0, 0.02), found(3, 1.0, 0.04), found(2, 5.0, 1e-9)]
    assert verdicts(tests)[:3] == [
        (pytest.approx(0.03), "better"),
        (pytest.approx(0.04), "worse"),
        (pytest.approx(0.04), "better"),
    ]
    assert math.isnan(verdicts(tests)[3][0])
    assert verdicts(tests)[3][1] == TOO_FEW
    assert [word for _, word in verdicts(tests[:2], more_is_better=False)] == ["worse", "better"]
    assert verdicts([found(3, 1.0, 0.03), found(3, 1.0, 0.04)])[0][1] == "inconclusive"
    assert verdicts([found(4, math.nan, math.nan)])[0][1] == "not a number: no verdict"


def test_the_mean_by_seed_takes_the_seeds_that_all_have() -> None:
    assert mean_by_seed([{0: 1.0, 1: 2.0}, {0: 3.0}]) == {0: 2.0}
    assert mean_by_seed([]) == {}
