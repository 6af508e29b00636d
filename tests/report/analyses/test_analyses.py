"""Analyses of studies: each on groups made by hand whose answers are known, and on runs that are not finished."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdschemes.config.load import load_config
from kdschemes.config.naming import dump_yaml
from kdschemes.report.analyses import ANALYSES
from kdschemes.report.analyses.budgets import budgets, equal_compute
from kdschemes.report.analyses.capacity import Pair, axes, capacity
from kdschemes.report.analyses.efficiency import efficiency, epochs_to
from kdschemes.report.analyses.evidence import by_point, evaluated, missing, setting, verdict
from kdschemes.report.analyses.fidelity import Errors, correlation, fidelity, repeated_errors
from kdschemes.report.analyses.sensitivity import measure, sensitivity
from kdschemes.report.analyses.soft_gradient import compare, error_constant, soft_gradient, std
from kdschemes.report.analyses.temperature_limit import TEMPERATURES, measure_pair, slope, temperature_limit
from kdschemes.report.document import Section
from kdschemes.report.groups import Group, Member
from kdschemes.report.statistics import difference, paired
from kdschemes.storage.naming import run_name
from kdschemes.storage.predictions import HeadPredictions, Predictions, write_predictions
from kdschemes.study.record import Entry
from kdschemes.study.status import Row
from kdschemes.training.train import train

Make = Callable[..., Group]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Return what writes the runs of a point and returns their group; a value None is a run that is not finished."""

    def group(label: str, words: Sequence[str], top1: Mapping[int, float | None], **more: Any) -> Group:
        members = []
        for seed, value in top1.items():
            config = load_config([*words, f"seed={seed}"], recipes=tmp_path)
            folder = tmp_path / run_name(config)
            folder.mkdir(exist_ok=True)
            (folder / "config.yaml").write_text(dump_yaml(config))
            entry = Entry(label=f"{label} seed={seed}", folder=folder.name, epochs=15, seed=seed)
            found = None if value is None else results(value, **more)
            members.append(Member(row=Row(entry=entry, state="finished"), folder=folder, results=found))
        return Group(label=label, members=tuple(members))

    return group


def results(top1: float, **more: Any) -> dict[str, Any]:
    test = {"top1": top1, "agreement": more.get("agreement", 50.0), "kl": more.get("kl", 1.0)}
    heads = {"student": {"last": {"epoch": 15, "val": test, "test": test}, "best": None}}
    cost = {"student": {"parameters": more.get("size", 100), "macs": 10}}
    if "teacher_size" in more:
        heads["teacher"] = {"last": {"epoch": 15, "val": None, "test": {"top1": more["teacher_top1"]}}, "best": None}
        cost["teacher"] = {"parameters": more["teacher_size"], "macs": 10}
    return {
        "primary_head": "student",
        "teacher": "teacher",
        "heads": heads,
        "mean_over_peers": None,
        "cost": cost,
        "epochs": more.get("epochs", 15),
        "samples": {"train": more.get("images", 1000), "val": 250, "test": 539},
        "train_macs_per_image": more.get("macs"),
        "teacher_checkpoint": more.get("teacher_checkpoint"),
    }


def seeds(*values: float | None) -> dict[int, float | None]:
    return dict(enumerate(values))


def cells(section: Section, number: int = 0) -> dict[str, dict[str, str]]:
    """Return the rows of a section's table by their first cell, each by column."""
    table = section.tables[number]
    return {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}


def drawn(section: Section) -> list[list[dict[str, Any]]]:
    """Return the first rows of data of each chart, which must be one that Vega-Lite takes."""
    found = []
    for chart in section.charts:
        tree = chart.spec.to_dict()
        data = next(part["data"] for part in [tree, *tree.get("layer", [])] if "data" in part)
        found.append(data["values"] if "values" in data else tree["datasets"][data["name"]])
    return found


def test_verdicts_follow_the_rule() -> None:
    up = paired({0: 2.0, 1: 3.0, 2: 2.5}, {0: 1.0, 1: 1.9, 2: 1.6})
    down = paired({0: 1.0, 1: 1.9, 2: 1.6}, {0: 2.0, 1: 3.0, 2: 2.5})
    unclear = paired({0: 2.0, 1: 1.0, 2: 2.5}, {0: 1.0, 1: 3.0, 2: 2.0})
    two = paired({0: 2.0, 1: 3.0}, {0: 1.0, 1: 2.0})
    assert list(map(verdict, (up, down, unclear))) == ["supported", "contradicted", "inconclusive"]
    assert verdict(two) == "no verdict with fewer than 3 common seeds"
    assert evaluated("It helps", two) == (
        "It helps: **no verdict with fewer than 3 common seeds** (+1.00 points, 95 % interval +1.00 to +1.00, "
        "p < 0.001, 2 seeds)."
    )
    assert evaluated("It helps", paired({0: 1.0}, {1: 1.0})).endswith("(no common seed).")


def test_settings_are_read_from_the_grid_or_from_the_configuration(make: Make) -> None:
    group = make("mine", ["scheme=offline", "scheme.alpha=0.3"], seeds(1.0))
    assert setting(group, "scheme.alpha") == 0.3
    assert setting(group, "data.train_fraction") == 0.1
    assert setting(group, "scheme.peers") is None
    entry = Entry(label="x", folder="x", epochs=1, seed=0, grid={"scheme.alpha": 0.7})
    begun = Member(row=Row(entry=entry, state="queued"), folder=Path("none"), results=None)
    assert setting(Group(label="x", members=(begun,)), "scheme.alpha") == 0.7


def test_groups_of_one_point_are_not_mixed_and_missing_runs_are_named(make: Make) -> None:
    words = ["scheme=supervised"]
    two, three = make("a (processes=2)", words, seeds(1.0, 2.0)), make("a", words, seeds(3.0, 4.0, 5.0))
    none = make("b", ["scheme=supervised", "optim.lr=0.2"], seeds(*[None] * 6))
    found, left_out = by_point([two, three, none], lambda group: setting(group, "optim.lr"))
    assert found == {0.1: three}
    assert left_out == ["Left out: a (processes=2), which was not trained or evaluated like a."]
    (told,) = missing([two, none])
    assert told.startswith("**6 of 8 runs are not finished** (b seed=0, b seed=1, b seed=2, b seed=3 and 2 more)")
    assert missing([three]) == []


@pytest.mark.parametrize("name", ANALYSES)
def test_every_analysis_copes_with_runs_that_are_not_finished(name: str, make: Make) -> None:
    groups = [
        make("distilled", ["scheme=offline"], seeds(None, None)),
        make("alone", ["scheme=supervised"], seeds(None)),
    ]
    sections = ANALYSES[name](groups)
    assert sections
    for section in sections:
        assert "not finished" in section.text
        assert not section.charts
    assert ANALYSES[name]([])[0].title == sections[0].title


def with_curve(group: Group, *curves: Mapping[int, float]) -> Group:
    for member, curve in zip(group.members, curves, strict=True):
        rows = [{"kind": "eval", "split": "val", "epoch": n, "student/top1": value} for n, value in curve.items()]
        (member.folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return group


def test_efficiency(make: Make) -> None:
    curves = [{1: 40.0 + n, 2: 70.0, 3: 80.0} for n in range(3)]
    faster = [{1: 60.0 + n, 2: 80.0, 3: 80.0} for n in range(3)]
    groups = [
        make("alone 0.1", ["scheme=supervised", "data.train_fraction=0.1"], seeds(50.0, 52.0, 54.0), images=100),
        with_curve(make("alone 1", ["scheme=supervised", "data.train_fraction=1"], seeds(90.0, 91.0, 92.0)), *curves),
        make("taught 0.1", ["scheme=offline", "data.train_fraction=0.1"], seeds(60.0, 62.5, 64.0), images=100),
        with_curve(make("taught 1", ["scheme=offline", "data.train_fraction=1"], seeds(90.0, 90.0, 93.0)), *faster),
    ]
    images, epochs = efficiency(groups)
    claim = (
        "Distillation learns more from the same images (mean over fractions below 100 %): **supported** (+10.17 points"
    )
    assert images.text.startswith(claim)
    rows = cells(images)
    assert (rows["10 %"]["number"], rows["10 %"]["labels alone"]) == ("100", "52.00 ± 2.00")
    assert (rows["10 %"]["difference"], rows["10 %"]["verdict"]) == ("+10.17", "better")
    assert (rows["100 %"]["difference"], rows["100 %"]["verdict"]) == ("+0.00", "inconclusive")
    assert epochs.text.startswith(
        "Distillation learns in fewer epochs (validation top-1, mean over all epochs): **supported"
    )
    rows = cells(epochs)
    assert rows["40.00 % (50 %)"] == {
        "level": "40.00 % (50 %)", "epochs, labels alone": "1.0 ± 0.0", "epochs, distilled": "1.0 ± 0.0",
    }  # fmt: skip
    assert rows["72.00 % (90 %)"]["epochs, labels alone"] == "3.0 ± 0.0"
    assert rows["72.00 % (90 %)"]["epochs, distilled"] == "2.0 ± 0.0"
    (points,), (lines,) = drawn(images), drawn(epochs)
    assert {"images": 10.0, "top1": 62.5, "way": "distilled", "seed": 1} in points
    assert len(points) == 12
    assert {"epoch": 1, "top1": 61.0, "way": "distilled"} in lines


def test_efficiency_by_its_parts() -> None:
    assert [epochs_to({2: 50.0, 1: 10.0, 3: 90.0}, level) for level in (5.0, 50.0, 51.0, 91.0)] == [1, 2, 3, None]


def test_fidelity(make: Make) -> None:
    labels, teacher = np.arange(10) % 3, (np.arange(10) % 3 + (np.arange(10) < 4)) % 3
    for_all = {"scheme.alpha=0": labels, "scheme.alpha=1": np.where(np.arange(10) == 3, labels, teacher)}
    groups = []
    for n, (word, student) in enumerate(for_all.items()):
        words = ["scheme=offline", word, "losses.response.temperature=4"]
        parts = [
            make(word, words, {seed: 90.0 + n + seed / 10}, agreement=60.0 + 30 * n + seed * (1 + n), kl=1.0 - n / 2)
            for seed in range(3)
        ]
        groups.append(Group(label=word, members=tuple(part.members[0] for part in parts)))
        answers = {
            head: {"test": HeadPredictions(classes.astype(np.int64), np.ones(10, np.float32))}
            for head, classes in (("teacher", teacher), ("student", student))
        }
        for member in groups[-1].members:
            write_predictions(member.folder, Predictions({"test": labels}, answers))
    (section,) = fidelity(groups)
    claim = (
        "Distillation copies another network (agreement with the teacher at alpha=1, T=4 against that of a student of "
        "labels alone): **supported** (+31.00 points, 95 % interval +28.52 to +33.48, p < 0.001, 3 seeds)."
    )
    assert section.text.startswith(claim)
    assert "of the teacher's 4 errors the first repeats 75.0 ± 0.0 %, the second 0.0 ± 0.0 %" in section.text
    assert "a rank correlation of +1.00" in section.text
    rows = cells(section)
    assert rows["alpha=1, T=4"]["agreement %"] == "92.00 ± 2.00"
    assert rows["alpha=1, T=4"]["teacher's errors repeated %"] == "75.0 ± 0.0"
    assert rows["alpha=1, T=4"]["against labels alone"] == "agrees more"
    assert rows["alpha=0, T=4 (labels alone)"]["p (Holm)"] == "-"
    by_agreement, by_kl = drawn(section)
    assert {"agreement": 94.0, "top1": 91.2, "alpha": 1.0, "T": "4", "seed": 2} in by_agreement
    assert {"kl": 0.5, "top1": 91.0, "alpha": 1.0, "T": "4", "seed": 0} in by_kl


def test_fidelity_by_its_parts() -> None:
    labels, teacher, student = np.array([0, 1, 2, 1]), np.array([0, 2, 1, 1]), np.array([1, 2, 2, 1])
    assert repeated_errors(labels, teacher, student) == Errors(count=2, repeated=50.0)
    assert repeated_errors(labels, labels, student) == Errors(count=0, repeated=0.0)
    assert correlation([1.0, 2.0, 3.0], [9.0, 5.0, 1.0]) == (-1.0, 0.0)
    assert math.isnan(correlation([1.0, 2.0], [1.0, 2.0])[0])
    assert math.isnan(correlation([1.0, 1.0, 1.0], [1.0, 2.0, 3.0])[0])


def test_capacity(make: Make) -> None:
    small, middle, large = {"wrn_16_1": 100}, {"wrn_16_2": 400}, {"wrn_40_2": 1_600}
    sizes = small | middle | large

    def point(student: str, teacher: str | None, top1: Mapping[int, float | None], *more: str) -> Group:
        words = [f"model={student}", *([f"teacher={teacher}"] if teacher else []), *more]
        words = ["scheme=offline" if teacher else "scheme=supervised", *words]
        told = {"teacher_size": sizes["wrn_16_2" if more else teacher], "teacher_top1": 95.0} if teacher else {}
        return make(" ".join(words), words, top1, size=sizes[student], **told)

    groups = [
        point("wrn_16_1", None, seeds(80.0, 81.0, 82.0)),
        point("wrn_16_2", None, seeds(90.0, 91.0, 92.0)),
        point("wrn_16_1", "wrn_16_2", seeds(82.0, 83.0, 84.5)),
        point("wrn_16_1", "wrn_40_2", seeds(82.5, 83.5, 85.5)),
        point("wrn_16_1", "wrn_40_2", seeds(83.0, 84.0, 86.0), "method=takd", "scheme.assistants=[wrn_16_2]"),
        point("wrn_16_2", "wrn_40_2", seeds(91.0, 92.0, 93.0)),
    ]
    (section,) = capacity(groups)
    # Larger student: 8.5, 8.5, 7.5. Larger teacher: 0.5, 0.5, 1.0. Difference: 8, 8, 6.5.
    assert "(what a larger student gains, less what the smallest student gains from a larger teacher): **supported** (+7.50 points" in section.text  # fmt: skip # noqa: E501
    assert "from wrn_16_2 (400) to wrn_40_2 (1.60 k), the student stays wrn_16_1: +0.67 points" in section.text
    assert "from wrn_16_1 (100) to wrn_16_2 (400), the teacher stays wrn_40_2: +8.17 points" in section.text
    assert "wrn_16_1 from wrn_40_2 against the next size, wrn_16_2 alone: -7.17 points" in section.text
    assert "wrn_16_1 from wrn_40_2 by wrn_16_2 against wrn_16_1 from wrn_40_2: +0.50 points" in section.text
    rows = cells(section)
    assert list(rows)[:2] == ["wrn_16_1 alone", "wrn_16_1 from wrn_16_2"]
    assert rows["wrn_16_2 from wrn_40_2"] == {
        "student": "wrn_16_2 from wrn_40_2", "its parameters": "400", "teacher's parameters": "1,600",
        "teacher's top-1 %": "95.00 ± 0.00", "test top-1 %": "92.00 ± 1.00", "gain": "+1.00", "p (Holm)": "p < 0.001",
        "verdict": "better",
    }  # fmt: skip
    assert rows["wrn_16_1 from wrn_40_2 by wrn_16_2"]["teacher's parameters"] == "400"
    (points,) = drawn(section)
    assert {"parameters": 100.0, "top1": 81.0, "taught by": "alone", "student": "wrn_16_1"} in points


def test_capacity_by_its_parts() -> None:
    sizes = {"a": 1.0, "b": 2.0, "c": 3.0}
    pairs = [Pair(student="b", teacher="c"), Pair(student="a", teacher="c"), Pair(student="a", teacher="b")]
    chain = Pair(student="a", teacher="c", assistants=("b",))
    assert axes([*pairs, chain, Pair(student="a")], sizes) == ([pairs[2], pairs[1]], [pairs[1], pairs[0]])
    assert axes(pairs[:2], sizes) is None
    assert axes([Pair(student="a"), chain], sizes) is None
    assert difference({0: 3.0, 1: 5.0, 2: 1.0}, {1: 1.0, 0: 1.0}) == {0: 2.0, 1: 4.0}


def test_sensitivity(make: Make) -> None:
    words = ["scheme=offline", "scheme.alpha"]
    values = {
        "alpha=0.1": seeds(90.0, 90.5, 91.0),
        "alpha=0.5": seeds(94.0, 94.6, 95.0),
        "alpha=0.9": seeds(80.0, 80.5, 81.1),
    }
    groups = [make(label, [words[0], f"{words[1]}={label[6:]}"], of) for label, of in values.items()]
    (section,) = sensitivity(groups)
    assert "sensitive to its settings: **supported** (std over 3 settings 7.21 points, 7.21 without" in section.text
    assert "over 3 seeds 0.52; F = " in section.text
    assert "The best is alpha=0.5 with 94.53 ± 0.50 %, the worst alpha=0.9 with 80.53 ± 0.55 %" in section.text
    assert list(cells(section)) == ["alpha=0.5", "alpha=0.1", "alpha=0.9"]
    (points,) = drawn(section)
    assert {"setting": "alpha=0.9", "top1": 81.1, "seed": 2} in points


def test_spread_of_two_settings_is_the_paired_test() -> None:
    """With two settings F is the square of the paired t, with the same p; the deviations are worked out by hand."""
    first, second = {0: 1.0, 1: 2.0, 2: 3.0}, {0: 2.0, 1: 4.0, 2: 3.0}
    found = measure({"a": first, "b": second})
    assert found is not None
    assert (found.points, found.n) == (2, 3)
    assert found.f == pytest.approx(3.0)
    assert found.p == pytest.approx(paired(second, first).p)
    assert found.settings == pytest.approx(math.sqrt(0.5))
    assert found.own == pytest.approx(math.sqrt(0.5 - 0.5 / 3))
    assert found.seeds == pytest.approx(1.0)
    assert found.verdict == "inconclusive"


def test_spread_where_settings_matter_less_than_seeds_or_are_inconclusive() -> None:
    small = measure({"a": {0: 10.0, 1: 20.0, 2: 30.0}, "b": {0: 10.9, 1: 21.0, 2: 31.1}})
    two = measure({"a": {0: 10.0, 1: 20.0}, "b": {0: 11.0, 1: 22.0}})
    same = measure({"a": {0: 1.0, 1: 1.0, 2: 1.0}, "b": {0: 1.0, 1: 1.0, 2: 1.0}})
    assert small is not None
    assert two is not None
    assert same is not None
    assert [found.verdict for found in (small, two, same)] == [
        "contradicted", "no verdict with fewer than 3 common seeds", "inconclusive",
    ]  # fmt: skip
    assert math.isnan(same.p)
    assert measure({"a": {0: 1.0}, "b": {0: 2.0}}) is None
    assert measure({"a": {0: 1.0, 1: 2.0}}) is None
    assert measure({}) is None


def test_budgets(make: Make, tmp_path: Path) -> None:
    (tmp_path / "teacher").mkdir()
    told = results(90.0, macs=300.0)
    (tmp_path / "teacher" / "results.json").write_text(json.dumps(told))
    groups = [
        make("supervised", ["scheme=supervised"], seeds(90.0, 91.0, 92.0), macs=30.0),
        make("offline", ["scheme=offline"], seeds(91.0, 92.1, 93.0), macs=130.0, teacher_checkpoint=["runs/teacher"]),
        make("longer", ["scheme=supervised", "train.epochs=65"], seeds(93.0, 94.0, 95.1), macs=30.0, epochs=65),
        make("old", ["scheme=self"], seeds(90.0, 91.0, 92.0)),
    ]
    first, of_epochs, of_compute = budgets(groups)
    assert "The most expensive run is offline: 15 epochs, 1.95 M multiply-accumulates." in first.text
    assert "done once for all students, is not included: 4.50 M, 2.3 times as much." in first.text
    rows = cells(first)
    assert list(rows) == ["supervised", "offline", "longer"]
    assert rows["supervised"]["of the most expensive"] == "23 %"
    assert rows["longer"]["training MACs"] == "1.95 M"
    assert (of_epochs.title, of_compute.title) == (
        "Against cross-entropy, 15 epochs", "Against cross-entropy, equal compute",
    )  # fmt: skip
    assert cells(of_epochs)["offline"]["difference to supervised"] == "+1.03"
    assert cells(of_epochs)["offline"]["verdict"] == "better"
    assert cells(of_compute)["offline"]["difference to longer"] == "-2.00"
    assert equal_compute({"a": 90.0, "b": 111.0, "c": 100.0}, 100.0) == ["a", "c"]


def test_gradient_is_that_of_the_formula_and_of_two_classes_in_closed_form() -> None:
    generator = torch.Generator().manual_seed(0)
    z, v = (torch.randn(7, 10, generator=generator, dtype=torch.float64) for _ in range(2))
    for temperature in (1.0, 3.0, 500.0):
        formula = ((z / temperature).softmax(1) - (v / temperature).softmax(1)) / temperature
        torch.testing.assert_close(soft_gradient(z, v, temperature), formula, rtol=1e-10, atol=1e-15)
    a, b = torch.tensor([0.5, -2.0]).double(), torch.tensor([1.5, 0.25]).double()
    found = compare(torch.stack([a, -a], 1), torch.stack([b, -b], 1), [1.0, 100.0])
    for temperature, error in zip(found.temperatures, found.centered, strict=True):
        exact = (torch.tanh(a / temperature) - torch.tanh(b / temperature)) / (2 * temperature)
        limit = (a - b) / (2 * temperature**2)
        assert error == pytest.approx(float((exact - limit).norm() / limit.norm()), rel=1e-9)
    assert found.exact[0] == pytest.approx(float((torch.tanh(a) - torch.tanh(b)).abs().mean() / math.sqrt(2)))


def test_the_limits_error_falls_as_one_over_t_unless_logits_are_off_center() -> None:
    generator = torch.Generator().manual_seed(1)
    z, v = (torch.randn(200, 10, generator=generator, dtype=torch.float64) for _ in range(2))
    off = compare(z + 3.0, v, TEMPERATURES)
    assert [off.centered[TEMPERATURES.index(t)] for t in (10.0, 100.0, 1000.0)] == pytest.approx(
        [5.9e-2, 5.9e-3, 5.9e-4], rel=0.1
    )
    assert off.centered[-1] * 1000 == pytest.approx(error_constant(z, v), rel=1e-3)
    assert slope(off.temperatures, off.centered, above=10.0) == pytest.approx(-1.0, abs=0.01)
    shift = (3.0 + (z - v).mean(1)).square().sum() * 10
    length = (z + 3.0 - v).square().sum()
    assert off.raw[-1] == pytest.approx(float((shift / length).sqrt()), rel=1e-3)
    assert std(torch.tensor([[1.0, 3.0], [5.0, 1.0]]).double()) == pytest.approx(math.sqrt(2.5))
    assert slope([1.0, 10.0, 100.0, 1000.0], [7.0, 1.0, 0.01, 0.0001], above=5000.0) == pytest.approx(-2.0)


@pytest.mark.slow
def test_temperature_limit_of_a_trained_pair(tmp_path: Path) -> None:
    words = [
        "scheme=offline",
        "model=convnet_quarter",
        "teacher=convnet_quarter",
        "teacher.epochs=1",
        "train.epochs=1",
        "train.num_threads=1",
        "data.val_fraction=0.8",
        "data.train_fraction=1",
    ]
    done = train(load_config([*words, f"output_dir={tmp_path / 'made'}"], recipes=tmp_path))
    moved = (tmp_path / "made").rename(tmp_path / "moved") / done.folder.name
    entry = Entry(label="seed=0", folder=moved.name, epochs=1, seed=0)
    member = Member(row=Row(entry=entry, state="finished"), folder=moved, results=done.results)
    found = measure_pair(member)
    # The run began from weights that have not seen its teacher: another gradient, the same law.
    for one in (found.after, found.before):
        assert slope(one.temperatures, one.centered, above=10 * found.std) == pytest.approx(-1.0, abs=0.02)
    assert found.before.exact != found.after.exact
    assert found.at_useful < 0.5
    (section,) = temperature_limit([Group(label="pair", members=(member,))])
    assert "falls as 1/T: **supported** (slope on logarithmic axes" in section.text
    assert [row[0] for row in section.tables[0].rows] == ["1", "2", "5", "10", "20", "50", "100", "200", "500", "1000"]
    line, lengths = drawn(section)
    assert line[-1] == {"T": 1000.0, "value": pytest.approx(found.constant / 1000)}
    assert len(lengths) == 20
    (teacher,) = tmp_path.glob("moved/supervised*")
    (teacher / "model.safetensors").unlink()
    (section,) = temperature_limit([Group(label="pair", members=(member,))])
    assert "Not measured: no weights at" in section.text
    assert not section.charts
