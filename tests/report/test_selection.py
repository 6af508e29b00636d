"""The best configuration: selected on validation, reported on test, uncertain as its seeds say."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdschemes.report.groups import Group, run_groups
from kdschemes.report.selection import select, selection_section, verdict
from tests.report.cases import metrics, results, supervised, write_run

VALIDATION = {0.1: (90.0, 91.0, 92.0), 0.2: (90.5, 90.0, 93.0), 0.3: (70.0, 71.0, 72.0)}
TEST = {0.1: (80.0, 82.0, 84.0), 0.2: (85.0, 86.0, 87.0), 0.3: (99.0, 99.0, 99.0)}


@pytest.fixture
def groups(tmp_path: Path) -> list[Group]:
    runs = []
    for rate, values in VALIDATION.items():
        for seed, value in enumerate(values):
            found = results(seed, TEST[rate][seed])
            found["heads"]["student"]["last"]["val"] = metrics(value)
            runs.append(write_run(tmp_path, supervised(seed, f"optim.lr={rate}"), found))
    return run_groups(runs)


def test_validation_selects_and_test_reports(groups: list[Group]) -> None:
    found = select(groups)
    assert found is not None
    by_rate = {group.label.rpartition("=")[2]: group.label for group in groups}
    assert [group.label for group in found.ranked] == [by_rate["0.2"], by_rate["0.1"], by_rate["0.3"]]
    # means without seed 0: 91.5, 91.5 (the first of equals); without 1: 91, 91.75; without 2: 90.5, 90.25
    assert dict(found.votes) == {by_rate["0.2"]: 2, by_rate["0.1"]: 1}
    assert found.held_out == {0: 85.0, 1: 86.0, 2: 84.0}
    assert [group.label for group in found.as_good] == [by_rate["0.1"]]
    # 86 +- 4.303 x 1 / sqrt(3)
    assert verdict(found).endswith("Test top-1: **86.00 %**, 95 % interval 83.52 to 88.48 over 3 seeds.")
    section = selection_section(found)
    for part in (
        "it is selected 2 of 3 times",
        "testing with it gives 85.00 ± 1.00 %",
        "standard error of 1.79 points",
    ):
        assert part in section.text
    assert section.tables[0].rows[1][2:5] == ["-0.17", "-2.75 to +2.42", "1 of 3"]


def test_one_run_is_no_selection(groups: list[Group], tmp_path: Path) -> None:
    assert select(groups[:1]) is None
    other = write_run(tmp_path / "b", supervised(0), results(0, 9.0, samples={"train": 9, "val": 9, "test": 539}))
    found = select([*groups, *run_groups([other])])
    assert found is not None
    assert len(found.ranked) == 3
    assert len(found.left_out) == 1
