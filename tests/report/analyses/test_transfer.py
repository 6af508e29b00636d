"""Analyses of what passes between networks: a class that was never seen, and peers that were trained before."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdschemes.config.data import Digits
from kdschemes.config.load import load_config
from kdschemes.config.naming import dump_yaml
from kdschemes.data import open_data
from kdschemes.errors import UserError
from kdschemes.models import load_model
from kdschemes.report.analyses.collaborative import Setting, collaborative, tuned
from kdschemes.report.analyses.missing_class import LabeledLogits, best_offset, measure, missing_class
from kdschemes.report.analyses.transfer import Change, Transfer, change, seen_classes, transfer
from kdschemes.report.document import Section
from kdschemes.report.groups import Group, Member
from kdschemes.report.statistics import mean_by_seed
from kdschemes.storage.naming import run_name
from kdschemes.storage.predictions import HeadPredictions, Predictions, write_predictions
from kdschemes.study.record import Entry
from kdschemes.study.status import Row
from kdschemes.training.train import train
from tests.report.cases import both

pytestmark = pytest.mark.slow

SHORT = (
    *("model=convnet_quarter", "train.epochs=1", "train.num_threads=1"),
    *("data.val_fraction=0.8", "data.train_fraction=1"),
)
LABELS = {"val": np.arange(40) % 10, "test": np.arange(60) % 10}


def member(folder: Path, label: str, seed: int, results: dict[str, Any] | None) -> Member:
    entry = Entry(label=f"{label} seed={seed}", folder=folder.name, epochs=1, seed=seed)
    return Member(row=Row(entry=entry, state="finished"), folder=folder, results=results)


def trained(output: Path, label: str, *words: str) -> Member:
    """Train for an epoch of few images; return the run."""
    done = train(load_config([*SHORT, *words, f"output_dir={output}"], recipes=output))
    assert done.results is not None
    return member(done.folder, label, 0, done.results)


def written(
    output: Path, label: str, seed: int, words: Sequence[str], answers: Mapping[str, Mapping[str, int]]
) -> Member:
    """Write a run by hand; `answers` gives by head and split how many images, the first ones, are answered rightly."""
    config = load_config([*words, f"seed={seed}"], recipes=output)
    folder = output / run_name(config)
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(dump_yaml(config))
    heads = {
        head: {
            split: HeadPredictions(
                np.where(np.arange(len(LABELS[split])) < right, LABELS[split], (LABELS[split] + 1) % 10),
                np.ones(len(LABELS[split]), np.float32),
            )
            for split, right in of.items()
        }
        for head, of in answers.items()
    }
    write_predictions(folder, Predictions(LABELS, heads))
    reported = next(iter(answers))
    found = {
        "primary_head": reported,
        "teacher": "teacher" if "teacher" in answers else None,
        "heads": {head: both(50.0, None) for head in answers},
    }
    (folder / "results.json").write_text(json.dumps(found))
    return member(folder, label, seed, found)


def cells(section: Section, number: int) -> dict[str, dict[str, str]]:
    table = section.tables[number]
    return {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}


def test_changes_are_those_that_loops_count() -> None:
    random = np.random.default_rng(0)
    labels, before, after = (random.integers(0, 5, 97) for _ in range(3))
    labels[labels == 4] = 3  # no test image of class 4
    before = np.where(random.random(97) < 0.5, labels, before)
    seen = np.array([True, False, True, False, True])
    right = {"before": [0] * 5, "after": [0] * 5}
    count, won, lost, own, unseen = [0] * 5, 0, 0, [0, 0], [0, 0]
    for label, was, now in zip(labels.tolist(), before.tolist(), after.tolist(), strict=True):
        count[label] += 1
        right["before"][label] += was == label
        right["after"][label] += now == label
        won += was != label and now == label
        lost += was == label and now != label
        of = own if seen[label] else unseen
        of[0] += now == label
        of[1] += 1
    forgotten = [max(0.0, (right["before"][k] - right["after"][k]) / count[k]) for k in range(4)]
    found = change(labels, before, after, seen)
    assert found.top1 == pytest.approx(100 * sum(right["after"]) / 97)
    assert found.own == pytest.approx(100 * own[0] / own[1])
    assert found.unseen == pytest.approx(100 * unseen[0] / unseen[1])
    assert found.forgetting == pytest.approx(100 * sum(forgotten) / 4)
    assert found.forgetting > 0
    assert (found.positive, found.negative) == (pytest.approx(100 * won / 97), pytest.approx(100 * lost / 97))
    still = change(labels, before, before, np.ones(5, dtype=bool))
    assert (still.forgetting, still.positive, still.negative) == (0.0, 0.0, 0.0)
    assert math.isnan(still.unseen)


@pytest.mark.parametrize("omitted", [[3], [0, 4]])
@pytest.mark.parametrize("seed", range(5))
def test_no_offset_is_better_than_the_one_chosen(omitted: list[int], seed: int) -> None:
    random = np.random.default_rng(seed)
    labels = random.integers(0, 6, 50)
    logits = random.normal(size=(50, 6)) + 2.0 * np.eye(6)[labels]
    logits[:, omitted] -= 3.0
    found = LabeledLogits(logits=logits, labels=labels)

    def right(offset: float) -> int:
        count = 0
        for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
            moved = [value + (offset if k in omitted else 0.0) for k, value in enumerate(row)]
            count += moved.index(max(moved)) == label
        return count

    offset = best_offset(found, omitted)
    accuracies = {value: right(value) for value in np.arange(-12.0, 12.0, 0.01).tolist()}
    assert right(offset) == max(accuracies.values()) >= right(0.0)
    assert offset == 0.0 or right(0.0) < right(offset)
    again = LabeledLogits(logits=logits + offset * np.isin(np.arange(6), omitted), labels=labels)
    assert best_offset(again, omitted) == 0.0


def test_an_offset_of_nothing_to_gain_is_none() -> None:
    labels = np.array([0, 1, 2])
    assert best_offset(LabeledLogits(logits=10 * np.eye(3), labels=labels), [2]) == 0.0
    assert best_offset(LabeledLogits(logits=np.eye(3), labels=np.array([1, 0, 1])), [2]) == 0.0
    gone = np.array([[5.0, 0.0, 0.0], [0.0, 5.0, 0.0], [4.0, 0.0, 2.0]])
    # The last one is of class 2 and goes over at 2, the others at 5: from 2 to 5 all are right.
    assert best_offset(LabeledLogits(logits=gone, labels=labels), [2]) == 3.5


def test_an_omitted_class_of_trained_networks(tmp_path: Path) -> None:
    teacher = ("teacher=convnet_quarter", "teacher.epochs=1", "scheme=offline", "scheme.alpha=1")
    runs = [
        trained(tmp_path, "labels", "scheme=supervised", "data.exclude_classes=[3]"),
        trained(tmp_path, "soft", *teacher, "data.exclude_classes=[3]"),
        trained(tmp_path, "whole", "scheme=supervised"),
    ]
    found = measure(runs[1], [3])
    data = open_data(Digits(val_fraction=0.8), seed=0, device=torch.device("cpu"))
    network = load_model(runs[1].folder).eval()
    logits: dict[str, torch.Tensor] = {}
    for split in ("val", "test"):
        (batch,) = data.eval_batches(split, batch_size=10_000, rank=0, world=1)
        with torch.no_grad():
            logits[split] = network(batch.images).double()
    labels = data.labels["train"][data.positions["val"]]
    # The choice is that of the validation split, whatever the test set says.
    assert found.offset == best_offset(LabeledLogits(logits=logits["val"].numpy(), labels=labels.numpy()), [3])
    labels = data.labels["test"][data.positions["test"]]
    assert runs[1].results is not None
    assert found.top1[0] == pytest.approx(runs[1].results["heads"]["student"]["last"]["test"]["top1"], abs=0.2)
    logits["test"][:, 3] += found.offset
    right = logits["test"].argmax(1) == labels
    assert found.errors[1] == int((~right).sum())
    assert found.top1[1] == pytest.approx(100 * right.double().mean().item())
    assert found.recognized[1] == pytest.approx(100 * right[labels == 3].double().mean().item())
    groups = [Group(label=run.row.entry.label.split()[0], members=(run,)) for run in runs]
    (section,) = missing_class(groups)
    assert "(its test images recognized after the correction, soft, against labels): **no verdict" in section.text
    assert "Left out of the students' images: class 3, 55 of the 539 test images." in section.text
    rows = cells(section, 0)
    assert list(rows) == ["labels", "soft", "whole"]
    assert rows["soft"]["added to the logit"] == f"{found.offset:.2f}"
    assert rows["soft"]["corrected"] == f"{found.errors[1]:.1f}"
    section.charts[0].spec.to_dict()
    (runs[0].folder / "model.safetensors").unlink()
    (section,) = missing_class(groups)
    assert "Left out: labels seed=0. no weights at" in section.text
    assert "Nothing to compare yet" in section.text


def test_peers_that_are_trained_already_teach_each_other(tmp_path: Path) -> None:
    parts = ("data.num_partitions=2", "data.dirichlet_alpha=0.1")
    a, b = (trained(tmp_path, "first", "scheme=supervised", *parts, f"data.partition={part}") for part in (0, 1))
    start = f"model.checkpoint=[{a.folder},{b.folder}]"
    run = trained(tmp_path, "dml", "scheme=online", *parts, "data.partition=0", start, "optim.lr=1e-6")
    seen = seen_classes(load_config([*SHORT, *parts, "data.partition=0"], recipes=tmp_path))
    found = transfer(run, seen)
    assert a.results is not None
    assert run.results is not None
    assert found.before.top1 == pytest.approx(a.results["heads"]["student"]["last"]["test"]["top1"])
    assert found.after.top1 == pytest.approx(run.results["heads"]["peer0"]["last"]["test"]["top1"])
    assert found.after.positive - found.after.negative == pytest.approx(found.after.top1 - found.before.top1)
    # A step of nearly nothing leaves both peers what they were, the second what the second run was.
    assert found.after.top1 == pytest.approx(found.before.top1, abs=5.0)
    second = run.results["heads"]["peer1"]["last"]["test"]["top1"]
    assert second == pytest.approx(b.results["heads"]["student"]["last"]["test"]["top1"], abs=5.0)  # type: ignore[index]
    assert found.teacher is None
    with pytest.raises(UserError, match="did not start from another run"):
        transfer(a, seen)


def case(output: Path, skew: float | None, part: int, shift: int) -> list[Group]:
    """Return the groups of one case, three seeds each; KD at T=1 is best on validation, at T=4 on the test set."""
    data = ["data.num_partitions=2", *([f"data.dirichlet_alpha={skew}"] if skew else [])]
    groups: dict[str, list[Member]] = {}
    for seed in range(3):
        began = written(
            output,
            "first",
            seed,
            ["scheme=supervised", *data, "data.partition=0"],
            {"student": {"val": 20, "test": 30}},
        )
        words = [*data, f"data.partition={part}", f"model.checkpoint={output}/gone/{began.folder.name}"]
        offline = ["scheme=offline", "teacher.checkpoint=hf_hub:a/x", *words]
        jitter = seed % 2
        students = {
            "alone": (["scheme=supervised", *words], 20, 30 + jitter),
            "kd": ([*offline, "losses.response.temperature=4"], 22, 24 - jitter),
            "kd1": ([*offline, "losses.response.temperature=1"], 26, 36 + shift + jitter),
            "dpkd": ([*offline, "method=dpkd"], 25, 33 + seed),
        }
        for name, (run, val, test) in students.items():
            answers = {"student": {"val": val, "test": test}}
            if name.startswith(("kd", "dpkd")):
                answers |= {"teacher": {"val": 0, "test": 45}}
            groups.setdefault(name, []).append(written(output, name, seed, run, answers))
    return [Group(label=f"{name} {skew} {part}", members=tuple(members)) for name, members in groups.items()]


def test_collaborative(tmp_path: Path) -> None:
    groups = [*case(tmp_path, None, 0, 0), *case(tmp_path, 0.1, 0, 12), *case(tmp_path, 0.1, 1, 12)]
    (section,) = collaborative(groups)
    # 36 + shift + jitter of 60, against 30 + jitter: 10, 30 and 30 points, in the mean 23.33.
    assert (
        "(test top-1 of tuned KD against labels alone, mean of all cases): **supported** (+23.33 points" in section.text
    )
    # Tuning gives 12 + 2 jitter images on IID data, 12 more on others: 20 points.
    assert "Tuning matters most on non-IID data" in section.text
    assert "minus that on IID data): **supported** (+20.00 points" in section.text
    assert "Data-partitioning KD forgets less than KD (forgetting of KD minus its own): **supported**" in section.text
    rows = cells(section, 0)
    assert list(rows) == ["student before", "its teacher", "labels alone", "KD", "tuned KD", "DPKD"]
    assert [row["test top-1 %"] for row in rows.values()][:2] == ["50.00 ± 0.00", "75.00 ± 0.00"]
    assert rows["KD"]["negative flips %"] == "10.56 ± 0.96"  # 6, 7 and 6 of 60
    assert rows["tuned KD"]["positive flips %"] == "10.56 ± 0.96"
    assert rows["tuned KD"]["against labels alone"] == "better"
    assert rows["DPKD"]["unseen classes %"] == "-"
    assert cells(section, 1)["DPKD"]["unseen classes %"] != "-"
    settings = cells(section, 3)
    assert settings["T=1, alpha=0.9"]["chosen for seeds"] == "3 of 3"
    assert settings["T=4, alpha=0.9"]["validation top-1 %"] == "55.00 ± 0.00"
    assert [table.columns[0] for table in section.tables][:3] == [
        "IID, own images", "non-IID (0.1), own images", "non-IID (0.1), teacher's images",
    ]  # fmt: skip
    assert len({chart.name for chart in section.charts}) == 4  # accuracy and forgetting, of IID and of other data
    for chart in section.charts:
        chart.spec.to_dict()
    for folder in tmp_path.glob("supervised*"):
        if "checkpoint: null" in (folder / "config.yaml").read_text():
            (folder / "config.yaml").unlink()
    (section,) = collaborative(groups)
    assert f"Left out: kd None 0. {tmp_path}" in section.text
    assert not section.tables


def test_what_one_run_lacks_leaves_it_out(tmp_path: Path) -> None:
    groups = case(tmp_path, None, 0, 0)
    (groups[0].members[1].folder / "predictions.safetensors").unlink()
    (section,) = collaborative(groups)
    assert (
        f"Left out: alone seed=1. {groups[0].members[1].folder} has no stored predictions for test images"
        in section.text
    )
    assert "no verdict with fewer than 3 common seeds" in section.text


def test_settings_are_tuned_on_validation_and_for_each_seed() -> None:
    def run(val: float, top1: float) -> Transfer:
        of = Change(top1=top1, own=top1, unseen=0.0, forgetting=0.0, positive=0.0, negative=0.0)
        return Transfer(before=of, after=of, teacher=None, val=val)

    first, second = (Setting(temperature=t, alpha=0.9) for t in (1.0, 4.0))
    grid = {
        first: {0: run(80.0, 10.0), 1: run(70.0, 90.0), 2: run(50.0, 1.0)},
        second: {0: run(80.0, 99.0), 1: run(71.0, 20.0)},
    }
    assert {seed: chosen.after.top1 for seed, chosen in tuned(grid).items()} == {0: 10.0, 1: 20.0}
    assert tuned({}) == {}
    assert tuned({first: {0: run(math.nan, 1.0)}, second: {0: run(1.0, 1.0)}}) == {}
    assert mean_by_seed([{0: 1.0, 1: 2.0}, {1: 4.0}]) == {1: 3.0}
    assert mean_by_seed([]) == {}
