"""Two runs side by side: what differs, and which predictions are correct."""

from __future__ import annotations

from math import comb
from pathlib import Path

import numpy as np
import pytest

from kdschemes import cli
from kdschemes.errors import UserError
from kdschemes.report.charts.agreement import agreement
from kdschemes.report.two_runs import compare, correct, mcnemar
from kdschemes.storage.predictions import Predictions, write_predictions
from tests.report.cases import both, results, store_predictions, supervised, write_run


def cells(text: str, first: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {first} ")]
    return [cell.strip() for cell in line.strip("| ").split("|")][1:]


def test_mcnemar_is_the_exact_binomial_test() -> None:
    for first, second in ((0, 3), (2, 9), (8, 8), (20, 8)):
        n, least = first + second, min(first, second)
        tail = sum(comb(n, k) for k in range(least + 1)) / 2**n
        assert mcnemar(first, second) == pytest.approx(min(1.0, 2 * tail))
    assert mcnemar(0, 0) == 1.0


def test_agreement_is_counted() -> None:
    labels = np.array([0, 1, 2, 3, 4])
    first, second = np.array([0, 1, 0, 9, 9]), np.array([0, 0, 2, 3, 9])
    assert agreement(first, second) == 40.0
    assert correct(first, second, labels) == (1, 1, 2)
    assert mcnemar(1, 2) == 1.0


def test_two_runs_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cost = {"student": {"parameters": 2_000_000, "macs": 3_270_000, "latency_ms": 1.5}}
    a = write_run(tmp_path, supervised(0), results(0, 90.0, best=80.0))
    more = {"heads": {"student": both(92.5, 79.0, nll=0.5)}, "cost": cost, "train_seconds": 4.0}
    b = write_run(tmp_path, supervised(1, "optim.lr=0.2"), results(1, 0.0, **more))
    for run, seed in ((a, 0), (b, 1)):
        store_predictions(run, seed, {"student": 0.8})
    assert cli.main(["compare", str(a), str(b)]) == 0
    text = capsys.readouterr().out
    assert cells(text, "optim.lr") == ["0.1", "0.2"]
    assert cells(text, "seed") == ["0", "1"]
    assert "output" not in text.partition("Results")[0].partition("\n\n")[2]
    assert cells(text, "last, test: top-1 %") == ["90.00", "92.50", "+2.50"]
    assert cells(text, "last, test: NLL") == ["1.0000", "0.5000", "-0.5000"]
    assert cells(text, "best, val: top-1 %") == ["80.00", "79.00", "-1.00"]
    assert cells(text, "parameters") == ["1,234,567", "2,000,000", "+765,433"]
    assert cells(text, "MACs") == ["3.27 M", "3.27 M", "0"]
    assert "latency" not in text
    assert cells(text, "training s") == ["10.0", "4.0", "-6.0"]
    assert "on the 400 images of the test set" in text
    assert "McNemar's exact test of a alone against b alone: p" in text
    assert "Two runs of one seed each prove nothing about their methods" in text
    assert "They differ in" not in text


def test_other_protocols_unfinished_and_old_runs(tmp_path: Path) -> None:
    a = write_run(tmp_path, supervised(0), results(0, 90.0))
    b = write_run(tmp_path, supervised(1), results(1, 90.0, epochs=8))
    text = compare(str(a), str(b))
    assert "They differ in epochs (4, 8): the differences below are not due to methods alone." in text
    assert "Predictions on the test set: not available, a and b stored none." in text
    store_predictions(a, 0, {"student": 0.8}, images=400)
    store_predictions(b, 0, {"student": 0.8}, images=300)
    assert "not compared, the runs were tested on different images" in compare(str(a), str(b))
    write_predictions(b, Predictions({}, {}))
    assert "a run stored none for it" in compare(str(a), str(b))
    begun = write_run(tmp_path, supervised(2), None, [10, 20])
    text = compare(str(a), str(begun))
    assert f"b: {begun} (interrupted, 2 of 4 epochs)" in text
    assert "Results are compared when both runs are finished." in text


def test_what_is_no_run(tmp_path: Path) -> None:
    run = write_run(tmp_path, supervised(0), results(0, 90.0))
    with pytest.raises(UserError, match="is not the folder of a run"):
        compare(str(run), str(tmp_path))
    with pytest.raises(UserError, match="are the same run: give two different runs"):
        compare(str(run), f"{run}/")


def test_a_value_in_a_configuration_is_spelled_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = write_run(tmp_path, supervised(0), results(0, 90.0))
    b = write_run(tmp_path, supervised(1), results(1, 90.0))
    config = b / "config.yaml"
    config.write_text(config.read_text().partition("\n")[2] + '"\\e[2J": "\\a"\n')
    assert cli.main(["compare", str(a), str(b)]) == 0
    text = capsys.readouterr().out
    assert cells(text, "\\x1b[2J") == ["-", "\\x07"]
    assert text.replace("\n", "").isprintable()
