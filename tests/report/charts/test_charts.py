"""What charts show, against numbers worked out by hand and explicit loops over the runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdschemes.evaluation.metrics import ECE_BINS
from kdschemes.report.build import build
from kdschemes.report.charts.agreement import agreement_section
from kdschemes.report.charts.base import epochs
from kdschemes.report.charts.calibration import BINS, calibration_section, reliability
from kdschemes.report.charts.classes import classes_section
from kdschemes.report.charts.cost import cost_charts, front
from kdschemes.report.charts.curves import common, curve, curves, thinned
from kdschemes.report.charts.exits import exits
from kdschemes.report.charts.grid import grid
from kdschemes.report.charts.losses import losses
from kdschemes.report.colors import hue
from kdschemes.report.document import Chart
from kdschemes.report.formatting import mean_std
from kdschemes.report.groups import Group, run_groups, study_groups
from kdschemes.report.predictions import read_stored
from kdschemes.report.render import specs
from kdschemes.report.style import INK, PALETTES, ramp, resolved
from kdschemes.storage.predictions import read_predictions
from kdschemes.study.record import Study
from kdschemes.study.status import status
from tests.report.cases import both, results, rising, store_predictions, supervised, write_run, write_study_of


def data_of(chart: Chart) -> list[dict[str, Any]]:
    """Return all rows that a chart holds; each is also told which layer it is in."""
    tree = specs([chart])[chart.name]
    return [row | {"layer": number} for number, part in enumerate(tree["layer"]) for row in _values(part, tree)]


def _values(part: dict[str, Any], tree: dict[str, Any]) -> list[dict[str, Any]]:
    data = part.get("data", tree.get("data", {}))
    return data.get("values") or tree.get("datasets", {}).get(data.get("name"), [])


def groups_in(folder: Path) -> list[Group]:
    return run_groups(sorted(path for path in folder.iterdir() if (path / "config.yaml").is_file()))


@pytest.fixture(scope="module")
def grid_study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Alpha x T, 2 x 3 points of two seeds, of which one run is missing and one point has none."""
    output = tmp_path_factory.mktemp("grid")
    text = "{question: Q, base: {scheme: offline, teacher: resnet20, train.epochs: 4}, seeds: [0, 1], "
    text += "grid: {scheme.alpha: [0.5, 1.0], losses.response.temperature: [1, 4, 16]}}"
    study = write_study_of(output, "grid", text)
    for number, entry in enumerate(study.runs):
        words = ["scheme=offline", "teacher=resnet20", f"seed={entry.seed}"]
        words += [f"{key}={value}" for key, value in entry.grid.items()]
        top = 60.0 + number
        write_run(output, words, None if number in (7, 10, 11) else results(entry.seed, top), rising(top))
    return study


def test_curves_are_means_at_common_epochs(tmp_path: Path) -> None:
    first = write_run(tmp_path, supervised(0), results(0, 90.0), [10, 80])
    write_run(tmp_path, supervised(1), results(1, 90.0), [20, 60, 90])
    write_run(tmp_path, supervised(2), None, [30])
    (group,) = groups_in(tmp_path)
    found = [curve(member) for member in group.members]
    assert found == [{1: 10, 2: 80}, {1: 20, 2: 60, 3: 90}, {1: 30}]
    assert common(found[:2]) == ([1, 2], [[10, 20], [80, 60]])
    section = curves([group], hue([group]))
    assert section is not None
    top1, nll = section.charts
    rows = data_of(top1)
    band = [(row["epoch"], row["mean"], row["low"], row["high"]) for row in rows if row["layer"] == 0]
    assert band == [(1, 15, 10, 20), (2, 70, 60, 80)]
    started, point = [row for row in rows if "not finished" in row["run"]]
    assert point == started | {"layer": point["layer"]}, "a single epoch is a point too"
    assert (started["epoch"], started["mean"]) == (1, 30)
    assert {row["mean"] for row in data_of(nll) if row["layer"] == 0} == {2.7, 1.6}  # 3 - top1 / 50
    assert "Dotted" in top1.caption
    for damaged in ('{"kind": "eval", "split": "val", "epoch": 1}\n', "no\n", '{"kind": "eval", "split": "val"}\n'):
        (first / "metrics.jsonl").write_text(damaged)
        assert curve(group.members[0]) == {}
    (first / "metrics.jsonl").unlink()
    assert curve(group.members[0]) == {}


def test_long_curves_are_thinned_and_keep_their_end() -> None:
    assert thinned(range(5)) == [0, 1, 2, 3, 4]
    kept = thinned(range(1, 241))
    assert (len(kept), kept[-1], kept[1] - kept[0]) == (80, 239, 3)


def test_colors_say_what_many_groups_have_in_common(grid_study: Study, tmp_path: Path) -> None:
    groups = study_groups(status(grid_study))
    of_six = hue(groups, groups[0].label)
    assert len(set(of_six.colors)) == 6
    assert of_six.colors[0] == INK
    many = [Group(label=f"{group.label} {n}", members=group.members) for n in (0, 1) for group in groups]
    of_many = hue(many)
    assert (of_many.title, list(of_many.names)) == ("alpha", ["0.5", "1"])
    assert list(of_many.colors) == ramp(2)
    runs = [
        write_run(tmp_path, [*words, f"optim.lr={rate}"], None)
        for words in (["scheme=supervised"], ["scheme=self"])
        for rate in (1, 2, 3, 4, 5)
    ]
    assert list(hue(run_groups(runs)).names) == ["supervised ce", "self byot"]


def test_the_grid_has_a_heat_map_and_lines(grid_study: Study) -> None:
    section = grid(study_groups(status(grid_study)))
    assert section is not None
    assert section.title == "Effect of alpha and temperature"
    assert section.text == "No finished runs yet at: alpha=1.0 temperature=16."
    heat_map, lines = section.charts
    cells = {(row["y"], row["x"]): (row["top1"], row["seeds"]) for row in data_of(heat_map) if row["layer"] == 0}
    assert cells == {
        **{("0.5", x): (60.5 + 2 * n, 2) for n, x in enumerate(("1", "4", "16"))},
        **{("1", "1"): (66.0, 1)},
        **{("1", "4"): (68.5, 2)},
    }
    ends = [(row["hue"], row["x"], row["mean"], row["std"]) for row in data_of(lines) if row["layer"] == 1]
    assert ("0.5", 4.0, 62.5, 0.707) in ends
    assert "one line per alpha" in lines.caption
    tree = specs([lines])["lines"]
    assert tree["layer"][0]["encoding"]["x"]["scale"]["type"] == "log"


def test_one_key_has_lines_by_variant_with_the_seeds(tmp_path: Path) -> None:
    text = "{question: Q, base: {scheme: supervised, train.epochs: 4}, grid: {optim.lr: [0.1, 0.2]}, seeds: [0, 1], "
    text += "variants: {a: {}, b: {method: label_smoothing}}}"
    study = write_study_of(tmp_path, "one", text)
    for number, entry in enumerate(study.runs):
        words = supervised(entry.seed, *(["method=label_smoothing"] if entry.variant == "b" else []))
        write_run(tmp_path, [*words, f"optim.lr={entry.grid['optim.lr']}"], results(entry.seed, 60.0 + number))
    section = grid(study_groups(status(study)))
    assert section is not None
    (lines,) = section.charts
    rows = data_of(lines)
    assert [(row["hue"], row["x"], row["top1"]) for row in rows if row["layer"] == 0][:2] == [
        ("a", 0.1, 60),
        ("a", 0.1, 61),
    ]
    assert [row["mean"] for row in rows if row["layer"] == 1] == [60.5, 62.5, 64.5, 66.5]
    assert grid(groups_in(tmp_path)) is None


def test_the_student_alone_and_the_teacher_are_levels_of_one_key(tmp_path: Path) -> None:
    text = "{question: Q, base: {train.epochs: 4, teacher: convnet}, grid: {losses.response.temperature: [1, 4, 16]}, "
    text += "variants: {alone: {scheme: supervised}, taught: {scheme: offline}}, seeds: [0, 1]}"
    study = write_study_of(tmp_path, "levels", text)
    assert [entry.label for entry in study.runs if entry.variant == "alone"] == ["alone seed=0", "alone seed=1"]
    for number, entry in enumerate(study.runs):
        words = [f"seed={entry.seed}", f"scheme={'offline' if entry.grid else 'supervised'}"]
        words += [f"{key}={value}" for key, value in entry.grid.items()]
        words += ["teacher=convnet"] if entry.grid else []
        found = results(entry.seed, 60.0 + number)
        if entry.grid:
            found |= {"teacher": "teacher", "heads": found["heads"] | {"teacher": both(70.0, None)}}
        write_run(tmp_path, words, found)
    groups = study_groups(status(study))
    section = grid(groups)
    assert section is not None
    (lines,) = section.charts
    rows = data_of(lines)
    levels = [row for row in rows if row["layer"] == 4]
    assert [(row["hue"], row["mean"], row["std"]) for row in levels] == [("alone", 60.5, 0.707), ("teacher", 70.0, 0.0)]
    assert [(row["x"], row["mean"]) for row in rows if row["layer"] == 1] == [(1, 62.5), (4, 64.5), (16, 66.5)]
    assert "dashed: alone and teacher, whatever temperature is" in lines.caption
    assert len(hue([*groups, *(replace(group, label=f"{group.label}!") for group in groups)]).names) == 8


def test_a_teacher_that_is_far_away_does_not_hide_the_differences(tmp_path: Path) -> None:
    text = "{question: Q, base: {scheme: offline, train.epochs: 4, teacher: convnet}, seeds: [0, 1], "
    study = write_study_of(tmp_path, "far", text + "grid: {scheme.alpha: [0.1, 0.5, 0.9]}}")
    for number, entry in enumerate(study.runs):
        words = [f"seed={entry.seed}", "scheme=offline", "teacher=convnet"]
        words += [f"{key}={value}" for key, value in entry.grid.items()]
        found = results(entry.seed, 60.0 + 0.1 * number)
        write_run(
            tmp_path, words, found | {"teacher": "teacher", "heads": found["heads"] | {"teacher": both(70.0, None)}}
        )
    section = grid(study_groups(status(study)))
    assert section is not None
    (lines,) = section.charts
    assert all(row.get("mean", 60.0) < 61 for row in data_of(lines))
    assert lines.caption.endswith("Beyond the axis: teacher, 70.00 %.")


def test_the_front_is_what_nothing_beats() -> None:
    points = [(1.0, 50.0), (3.0, 60.0), (2.0, 49.0), (3.0, 61.0), (4.0, 61.0), (0.5, 40.0)]
    expected = [
        index
        for index, (cost, value) in enumerate(points)
        if not any((c <= cost and v >= value) and (c, v) != (cost, value) for c, v in points)
    ]
    assert front(points) == sorted(expected, key=lambda index: points[index]) == [5, 0, 3]
    assert front([(1.0, 5.0), (1.0, 5.0)]) == [0]


def test_accuracy_against_costs_that_differ(tmp_path: Path) -> None:
    for n, words in enumerate(
        (["scheme=offline", "teacher=resnet20"], ["scheme=offline", "teacher=resnet20", "optim.lr=1"])
    ):
        heads = {"student": both(80.0 + n, 1.0), "teacher": both(95.0, 1.0)}
        cost = {"student": {"parameters": 100, "macs": 7}, "teacher": {"parameters": 900, "macs": 7}}
        write_run(tmp_path, words, results(0, 0.0, heads=heads, cost=cost, teacher="teacher"))
    groups = groups_in(tmp_path)
    (chart,), words = cost_charts(groups, hue(groups))
    assert words == "Multiply-accumulates per image: the same for all."
    points = [(row["run"].split()[-1], row["parameters"], row["top1"]) for row in data_of(chart) if row["layer"] == 1]
    assert points == [("optim.lr=0.1", 100, 80), ("optim.lr=1.0", 100, 81), ("teacher", 900, 95)]
    assert chart.caption.endswith("as accurate): 1 offline-kd-digits-wrn_16_1 optim.lr=1.0, 2 teacher.")


def early_exit(macs: int, top1: float) -> dict[str, Any]:
    point = {"macs": macs, "top1": top1}
    return {
        "exits": {"student/exit1": point, "student": {"macs": 3 * macs, "top1": top1 + 5}},
        "static": {"macs": 2 * macs, "top1": top1 + 5},
        "curve": [point | {"ratio": 1.0}],
    }


def test_exits_are_means_over_seeds(tmp_path: Path) -> None:
    folders = [
        write_run(tmp_path, ["scheme=self", f"seed={seed}"], results(seed, 9.0, early_exit={"x": 1}))
        for seed in range(3)
    ]
    for seed, folder in enumerate(folders[:2]):
        (folder / "early_exit.json").write_text(json.dumps(early_exit(100, 70.0 + 2 * seed)))
    (folders[2] / "early_exit.json").write_text('{"exits": {"a": {}}, "static": 1, "curve": null}')
    groups = groups_in(tmp_path)
    section = exits(groups, hue(groups))
    assert section is not None
    assert section.text == "self-byot-digits-wrn_16_1: early_exit.json is missing in 1 of its runs."
    rows = data_of(section.charts[0])
    points = {(row["decision"], row.get("exit"), row["macs"], row["top1"]) for row in rows}
    assert points == {
        ("all at one exit", "exit1", 100, 71.0),
        ("all at one exit", "end", 300, 76.0),
        ("each at its first confident exit", None, 100, 71.0),
        ("without exits", None, 200, 76.0),
    }
    assert exits([], hue([])) is None


def test_reliability_is_that_of_an_explicit_loop() -> None:
    assert BINS == ECE_BINS
    random = np.random.default_rng(0)
    sure = np.concatenate([random.random(500), [1 / 15, 1.0, 0.0]])
    right = random.random(503) < sure
    found = reliability(sure, right)
    for index in range(BINS):
        inside = [
            (c, r)
            for c, r in zip(sure, right, strict=True)
            if index / BINS < c <= (index + 1) / BINS or (c == 0 and index == 0)
        ]
        assert found[index][2] == len(inside)
        assert found[index][0] == pytest.approx(100 * sum(c for c, _ in inside) / len(inside))
        assert found[index][1] == pytest.approx(100 * sum(bool(r) for _, r in inside) / len(inside))


@pytest.fixture
def with_predictions(tmp_path: Path) -> list[Group]:
    for seed in range(2):
        heads = {name: both(90.0, 50.0) for name in ("peer0", "peer1", "ensemble")}
        run = write_run(
            tmp_path, ["scheme=online", f"seed={seed}"], results(seed, 0.0, primary_head="peer0", heads=heads)
        )
        store_predictions(run, seed, {"peer0": 0.7, "peer1": 0.6, "ensemble": 0.8})
        run = write_run(tmp_path, supervised(seed), results(seed, 90.0))
        store_predictions(run, seed + 5, {"student": 0.9})
    write_run(tmp_path, ["scheme=self"], results(0, 90.0))
    return groups_in(tmp_path)


def test_agreement_of_heads_and_of_methods(with_predictions: list[Group]) -> None:
    stored = read_stored(with_predictions)
    section = agreement_section(with_predictions, stored)
    assert section is not None
    within, between = section.charts
    online, _, plain = with_predictions
    runs = {group.label: [read_predictions(member.folder) for member in group.members] for group in (online, plain)}

    def share(a: Any, head: str, b: Any, other: str) -> float:
        pairs = zip(a.heads[head]["test"].classes, b.heads[other]["test"].classes, strict=True)
        return 100 * sum(x == y for x, y in pairs) / 400

    cells = {(row["a"], row["b"]): row["percent"] for row in data_of(within) if row["layer"] == 0}
    mean = sum(share(run, "peer0", run, "ensemble") for run in runs[online.label]) / 2
    assert cells["peer0", "ensemble"] == cells["ensemble", "peer0"] == pytest.approx(mean, abs=0.006)
    assert len(cells) == 6
    cells = {(row["a"], row["b"]): row["percent"] for row in data_of(between) if row["layer"] == 0}
    of_online, of_plain = runs[online.label], runs[plain.label]
    mean = sum(share(a, "peer0", b, "student") for a, b in zip(of_online, of_plain, strict=True)) / 2
    assert cells[online.label, plain.label] == pytest.approx(mean, abs=0.006)
    assert cells[plain.label, plain.label] == pytest.approx(
        share(of_plain[0], "student", of_plain[1], "student"), abs=0.006
    )


def test_calibration_says_whose_predictions_are_missing(with_predictions: list[Group]) -> None:
    stored = read_stored(with_predictions)
    section = calibration_section(with_predictions, stored, hue(with_predictions), None)
    assert section.text == "Left out, without stored predictions: self-byot-digits-wrn_16_1."
    rows = [row for row in data_of(section.charts[0]) if row["layer"] == 2]
    sure, right = [], []
    for member in with_predictions[0].members:
        found = read_predictions(member.folder)
        assert found is not None
        sure.append(found.heads["peer0"]["test"].confidence.astype(float))
        right.append(found.heads["peer0"]["test"].classes == found.labels["test"])
    expected = [point for point in reliability(np.concatenate(sure), np.concatenate(right)) if point[2] >= 10]
    own = [(row["sure"], row["right"], row["images"]) for row in rows if "online" in row["run"]]
    assert own == [(round(a, 2), round(b, 2), n) for a, b, n in expected]
    assert {row["run"] for row in rows if "online" in row["run"]} == {"online-dml-digits-wrn_16_1: ECE 2.0 ± 0.0 %"}


def test_damaged_predictions_are_reported(with_predictions: list[Group]) -> None:
    (with_predictions[0].members[0].folder / "predictions.safetensors").write_bytes(b"no")
    made = build("Runs", "", with_predictions)
    (section,) = [section for section in made.sections if section.title == "Calibration"]
    assert "predictions.safetensors is damaged" in section.text
    assert len(section.charts) == 1


def test_names_of_charts_are_unique_and_colors_known(with_predictions: list[Group], grid_study: Study) -> None:
    for groups in (with_predictions, study_groups(status(grid_study))):
        made = build("Runs", "", groups)
        trees = specs(chart for section in made.sections for chart in section.charts)
        assert len(trees) >= 4
        assert "var(--" not in json.dumps(resolved(trees))
    assert PALETTES["light"].keys() == PALETTES["dark"].keys()
    assert resolved({"a": ["var(--ink)", 1]}, "dark") == {"a": [PALETTES["dark"]["ink"], 1]}


def test_an_axis_of_percentages_ends_at_0_and_100() -> None:
    from kdschemes.report.charts.base import percents

    ends = {values: percents(values).domain for values in ((40.0, 50.0), (1.0, 99.0), (70.0,), (100.0,), ())}
    assert list(ends.values()) == [[39.2, 50.8], [0.0, 100.0], [69.0, 71.0], [99.0, 100.0], [0.0, 100.0]]


def test_one_pareto_chart_where_all_students_have_one_network(tmp_path: Path) -> None:
    """Latencies of different runs are no cost: two equal students once made a front."""
    for n, rate in enumerate((0.1, 1)):
        heads = {"student": both(80.0 + n, 1.0), "teacher": both(95.0, 1.0)}
        cost = {"student": {"parameters": 100, "macs": 7, "latency_ms": 13.0 + 6 * n}}
        cost["teacher"] = {"parameters": 900, "macs": 9, "latency_ms": 5.0}
        words = ["scheme=offline", "teacher=resnet20", f"optim.lr={rate}"]
        write_run(tmp_path, words, results(0, 0.0, heads=heads, cost=cost, teacher="teacher"))
    groups = groups_in(tmp_path)
    charts, words = cost_charts(groups, hue(groups))
    assert ([chart.name for chart in charts], words) == (["cost_macs"], "Parameters: see the table.")


def test_colors_follow_alpha_and_temperature(grid_study: Study) -> None:
    groups = study_groups(status(grid_study))
    found = hue(groups, "alpha=1.0 temperature=4")
    labels = [f"alpha={alpha} temperature={T}" for alpha in (0.5, 1.0) for T in (1, 4, 16)]
    assert found.names == labels
    assert found.colors == [*ramp(6)[:4], INK, ramp(6)[5]]
    assert hue(groups[::-1], "alpha=1.0 temperature=4") == replace(found, of=dict(reversed(found.of.items())))
    many = hue([Group(label=f"{group.label} {n}", members=group.members) for n in (0, 1) for group in groups])
    assert (many.title, many.dash_title, set(many.dashes.values())) == ("alpha", "temperature", {"1", "4", "16"})


def test_epochs_are_whole_and_one_of_them_is_a_point(tmp_path: Path) -> None:
    for last, ticks in ((1, [1]), (2, [1, 2]), (15, [*range(1, 16)]), (40, [1, *range(5, 41, 5)]), (2.5, [1, 2])):
        assert epochs(float(last)).to_dict()["axis"]["values"] == ticks
    for seed in range(2):
        write_run(tmp_path, supervised(seed), results(seed, 90.0), [80 + seed])
    groups = groups_in(tmp_path)
    section = curves(groups, hue(groups))
    assert section is not None
    tree = specs([section.charts[0]])["curves"]
    (points,) = [part for part in tree["layer"] if part["mark"].get("opacity") == 1]
    assert [row["mean"] for row in _values(points, tree)] == [80.5]


def test_losses_are_means_by_term(tmp_path: Path) -> None:
    for seed in range(2):
        run = write_run(tmp_path, ["scheme=offline", "teacher=resnet20", f"seed={seed}"], results(seed, 90.0))
        rows = [
            {"kind": "train", "step": step, "epoch": step / 2, "lr": 0.1, "loss/total": 3.0}
            | {"loss/ce/student": 1.0 + seed, "loss/kd/teacher->student": "nan" if step == 3 else 2.0 / step}
            for step in range(1, 5)
        ]
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    groups = groups_in(tmp_path)
    section = losses(groups, hue(groups))
    assert section is not None
    _, ce, kd = section.charts
    lines = [[(row["epoch"], row["loss"]) for row in data_of(chart) if row["layer"] == 0] for chart in (ce, kd)]
    assert lines == [[(0.5, 1.5), (1, 1.5), (1.5, 1.5), (2, 1.5)], [(0.5, 2), (1, 1), (2, 0.5)]]
    assert "kd/teacher->student, before its weight" in kd.caption


def test_classes_are_counted_as_in_a_loop(with_predictions: list[Group]) -> None:
    stored = read_stored(with_predictions)
    online, _, plain = with_predictions
    section = classes_section(with_predictions, stored, online.label, plain.label)
    assert section is not None
    by_class, pairs = section.tables
    assert list(by_class.columns) == ["class", "images", online.label, plain.label]
    runs = [read_predictions(member.folder) for member in plain.members]
    shares = []
    for run in runs:
        assert run is not None
        answers = zip(run.labels["test"], run.heads["student"]["test"].classes, strict=True)
        of_three = [given for label, given in answers if label == 3]
        shares.append((100 * of_three.count(3) / len(of_three), 100 * of_three.count(5) / len(of_three)))
    assert by_class.rows[3][3] == mean_std([right for right, _ in shares], 1)
    cells = {(row["true"], row["given"]): row["percent"] for row in data_of(section.charts[1])}
    assert cells.get(("3", "5"), 0) == pytest.approx(sum(five for _, five in shares) / 2, abs=0.006)
    assert sorted((float(row[2]) for row in pairs.rows), reverse=True) == [float(row[2]) for row in pairs.rows]
