"""Reports: means and deviations against numbers worked out by hand, and what is never averaged."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from kdschemes import cli
from kdschemes.errors import UserError
from kdschemes.report import report
from kdschemes.report.build import Report, build
from kdschemes.report.formatting import mean_std
from kdschemes.report.groups import run_groups, shortened, study_groups
from kdschemes.report.markdown import markdown
from kdschemes.report.significance import compare_groups
from kdschemes.study.record import Entry, Study, read_study_folder, write_study
from kdschemes.study.status import status
from tests.report.cases import both, metrics, results, rising, supervised, write_run, write_study_of

HEAD = "| run | test top-1 %, last | test top-1 %, best on validation | head | seeds |"
COMPARED = "| run | difference | 95 % interval | common seeds | p | test |"


def page(made: Report) -> str:
    return markdown(made, {chart.name: f"{chart.name}.png" for section in made.sections for chart in section.charts})


def of_runs(folder: Path) -> Report:
    return build("Runs", "", run_groups(sorted(path for path in folder.iterdir() if (path / "config.yaml").is_file())))


def of_study(study: Study) -> Report:
    return build(study.name, study.question, study_groups(status(study)), baseline=study.baseline)


def rows_of(text: str, head: str = HEAD) -> list[list[str]]:
    table = text[text.index(head) :].partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in table]


def test_spread_is_the_mean_and_the_sample_deviation() -> None:
    assert mean_std([1.0, 2.0, 6.0], 2) == "3.00 ± 2.65"  # sqrt((4 + 1 + 9) / 2) = 2.6458
    assert mean_std([2.5], 1) == "2.5"
    assert mean_std([], 2) == "-"
    assert mean_std([1.0, float("inf")], 1) == "nan ± nan"


def test_runs_that_differ_in_their_seed_alone_are_one_row(tmp_path: Path) -> None:
    for seed, top1, best, nll in ((0, 90.0, 91.0, 0.5), (1, 92.0, 95.0, 0.75), (2, 97.0, 93.0, 1.0)):
        write_run(tmp_path, supervised(seed), results(seed, top1, best=best, nll=nll))
    write_run(tmp_path, supervised(0, "optim.lr=0.05"), results(0, 80.0, best=None))
    text = page(of_runs(tmp_path))
    assert rows_of(text) == [
        ["supervised-ce-digits-wrn_16_1 optim.lr=0.05", "80.00", "-", "student", "0", "1.0000", "2.00"],
        [
            *("supervised-ce-digits-wrn_16_1 optim.lr=0.1", "93.00 ± 3.61", "93.00 ± 2.00", "student", "0, 1, 2"),
            *("0.7500 ± 0.2500", "2.00 ± 0.00"),
        ],
    ]
    assert rows_of(text, "| run | parameters | MACs | training s |")[1][1:] == ["1,234,567", "3.27 M", "11.0 ± 1.0"]
    assert "Not measured in these runs: training MACs, memory MB." in text
    assert "Not available: no run has `predictions.safetensors`" in text
    assert "Protocol of all rows: epochs 4, data digits, train images 1008, val images 250, test images 539," in text
    assert "Not finished" not in text
    assert "Other heads" not in text


def test_labels_leave_out_what_all_runs_share(tmp_path: Path) -> None:
    runs = [write_run(tmp_path, supervised(0, *more), results(0, 9.0)) for more in ([], ["method=label_smoothing"])]
    groups, shared = shortened(run_groups(runs))
    assert ([group.label for group in groups], shared) == (
        ["ce", "label_smoothing"],
        ["supervised", "digits", "wrn_16_1"],
    )
    assert "All names leave out supervised, digits, wrn_16_1, which all runs share." in page(
        build("R", "", groups, shared=shared)
    )
    assert shortened(run_groups(runs[:1]))[0][0].label == "supervised-ce-digits-wrn_16_1"


def test_costs_of_new_runs(tmp_path: Path) -> None:
    for seed, latency in ((0, 1.0), (1, 2.0)):
        cost = {"student": {"parameters": 5, "macs": 2_000_000_000, "latency_ms": latency}}
        more = {"train_macs_per_image": 1_000_000 * (1 + seed), "peak_memory_bytes": 5e8, "pack_size": 3}
        write_run(tmp_path, supervised(seed), results(seed, 90.0, cost=cost, **more))
    text = page(of_runs(tmp_path))
    (row,) = rows_of(text, "| run | parameters | MACs | training MACs | training s | memory MB |")
    # 1 M or 2 M an image x 1008 images x 4 epochs
    assert row[1:] == ["5", "2.00 G", "6.05 G (4.03 G to 8.06 G)", "10.5 ± 0.7", "500 ± 0"]
    assert "Some runs were trained in one process" in text
    assert "Not measured" not in text


def test_methods_are_compared_on_the_seeds_that_they_share(tmp_path: Path) -> None:
    for seed in range(4):
        write_run(tmp_path, supervised(seed), results(seed, 80.0 + seed))
        if seed:
            words = [f"seed={seed}", "scheme=supervised", "method=label_smoothing"]
            write_run(tmp_path, words, results(seed, 82.0 + seed + 0.1 * (seed - 2)))
        if seed < 2:
            write_run(tmp_path, ["scheme=online", f"seed={seed}"], results(seed, 99.0))
    made = of_runs(tmp_path)
    few = "fewer than 3 common seeds: no verdict"
    assert rows_of(page(made), COMPARED) == [
        ["online-dml-digits-wrn_16_1", "+18.50", "+12.15 to +24.85", "2", "-", few],
        ["supervised-label_smoothing-digits-wrn_16_1", "+2.00", "+1.75 to +2.25", "3", "< 0.001", "significant"],
    ]
    assert made.summary[:3] == [
        "Test top-1 after the last epoch against **supervised-ce-digits-wrn_16_1** (81.50 ± 1.29 %): difference "
        "in points, paired by seed, 95 % interval:",
        f"**online-dml-digits-wrn_16_1**: +18.50 (+12.15 to +24.85, 2 seeds); {few}.",
        "**supervised-label_smoothing-digits-wrn_16_1**: +2.00 (+1.75 to +2.25, 3 seeds); significant, p < 0.001.",
    ]
    assert made.summary[3].startswith(
        "Best on validation, of 3: **online-dml-digits-wrn_16_1** (99.00 ± 0.00 % there)."
    )


def test_the_baseline_is_the_one_that_is_named_or_has_the_same_model_or_point(tmp_path: Path) -> None:
    def against(study: Study, baseline: str | None) -> list[tuple[str, str]]:
        found = compare_groups(study_groups(status(study)), baseline)
        return [(each.group.label, each.against.label) for each in found]

    text = "{question: Q, base: {train.epochs: 4}, variants: {ls: {scheme: supervised, method: label_smoothing}, "
    text += "ce: {scheme: supervised}}, grid: {optim.lr: [0.1, 0.2]}, seeds: [0]}"
    study = write_study_of(tmp_path / "a", "mine", text)
    for entry in study.runs:
        words = supervised(0, *(["method=label_smoothing"] if entry.variant == "ls" else []))
        write_run(tmp_path / "a", [*words, f"optim.lr={entry.grid['optim.lr']}"], results(0, 90.0))
    assert against(study, None) == [("ls lr=0.1", "ce lr=0.1"), ("ls lr=0.2", "ce lr=0.2")]
    assert [pair[1] for pair in against(study, "ls lr=0.2")] == ["ls lr=0.2"] * 3
    runs = tmp_path / "b"
    for words in (["scheme=self"], ["scheme=self", "model=resnet20"], ["scheme=supervised"], ["model=resnet20"]):
        write_run(runs, [*words, *(["scheme=supervised"] if words == ["model=resnet20"] else [])], results(0, 90.0))
    text = page(of_runs(runs))
    rows = rows_of(text, "| run | difference | 95 % interval | against |")
    assert [[row[0], row[3]] for row in rows] == [
        ["self-byot-digits-resnet20", "supervised-ce-digits-resnet20"],
        ["self-byot-digits-wrn_16_1", "supervised-ce-digits-wrn_16_1"],
    ]


def test_the_baseline_trains_on_the_same_images_where_there_is_one(tmp_path: Path) -> None:
    variants = {
        "even": ["scheme=supervised"],
        "even taught": ["scheme=self"],
        "even smoothed": ["scheme=supervised", "method=label_smoothing"],
        "skewed": ["scheme=supervised", "data.dirichlet_alpha=0.1"],
        "skewed taught": ["scheme=self", "data.dirichlet_alpha=0.1"],
        "cut taught": ["scheme=self", "data.train_fraction=0.5"],
    }
    told = {name: dict(word.split("=") for word in words) for name, words in variants.items()}
    text = f"{{question: Q, base: {{train.epochs: 4, data.num_partitions: 2}}, variants: {json.dumps(told)}, "
    study = write_study_of(tmp_path, "mine", text + "grid: {data.partition: [0, 1]}, seeds: [0]}")
    for entry in study.runs:
        assert entry.variant is not None
        part = f"data.partition={entry.grid['data.partition']}"
        write_run(tmp_path, ["data.num_partitions=2", part, *variants[entry.variant], "seed=0"], results(0, 90.0))
    found = compare_groups(study_groups(status(study)))
    bases = {"even taught": "even", "even smoothed": "even", "skewed taught": "skewed", "cut taught": "even"}
    assert {each.group.label: each.against.label for each in found} == {
        f"{variant} partition={part}": f"{base} partition={part}" for variant, base in bases.items() for part in (0, 1)
    }


def test_a_baseline_of_another_model_is_reported(tmp_path: Path) -> None:
    for seed in range(3):
        write_run(tmp_path, supervised(seed), results(seed, 80.0 + seed))
        write_run(tmp_path, ["scheme=self", "model=resnet20", f"seed={seed}"], results(seed, 85.0 + seed))
    made = of_runs(tmp_path)
    (row,) = rows_of(page(made), COMPARED.removesuffix(" |"))
    assert row[1:] == ["+5.00", "+5.00 to +5.00", "3", "< 0.001", "significant", "model"]
    assert made.summary[1].endswith("3 seeds); significant, p < 0.001; differs in model too.")


def test_nothing_is_compared_before_the_named_baseline_has_finished(tmp_path: Path) -> None:
    text = "{question: Q, base: {scheme: supervised, train.epochs: 4}, grid: {optim.lr: [0.1, 0.2, 0.3]}, seeds: [0]}"
    study = write_study_of(tmp_path, "mine", text, baseline="lr=0.1")
    for rate in (0.2, 0.3):
        write_run(tmp_path, supervised(0, f"optim.lr={rate}"), results(0, 90.0))
    assert of_study(study).summary[0] == "Nothing is compared: the baseline, **lr=0.1**, has no finished run."
    write_run(tmp_path, supervised(0), results(0, 90.0))
    assert of_study(study).summary[0].startswith("Test top-1 after the last epoch against **lr=0.1** (90.00 %)")


def test_runs_on_other_images_are_never_compared(tmp_path: Path) -> None:
    write_run(tmp_path, supervised(0), results(0, 90.0))
    write_run(tmp_path, supervised(0, "optim.lr=0.2"), results(0, 95.0, samples={"train": 1008, "val": 250, "test": 9}))
    text = page(of_runs(tmp_path))
    (row,) = rows_of(text, COMPARED.removesuffix(" test |"))
    assert row[1:] == ["-", "-", "0", "-", "not compared: other test images", "test images"]


def test_runs_that_stopped_early_are_averaged(tmp_path: Path) -> None:
    for seed, epochs in enumerate((3, 4)):
        write_run(tmp_path, supervised(seed), results(seed, 90.0 + seed, epochs=epochs, epochs_planned=9))
    (row,) = rows_of(page(of_runs(tmp_path)))
    assert (row[4], row[1]) == ("0, 1", "90.50 ± 0.71")


@pytest.mark.parametrize(
    ("change", "label"),
    [
        ({"processes": 2}, "processes=2"),
        ({"epochs": 8}, "epochs=8"),
        ({"samples": {"train": 900, "val": 358, "test": 539}}, "train images=900 val images=358"),
        ({"device": "cuda"}, "device=cuda"),
    ],
)
def test_other_protocols_are_never_averaged(change: dict[str, Any], label: str, tmp_path: Path) -> None:
    write_run(tmp_path, supervised(0), results(0, 90.0))
    write_run(tmp_path, supervised(1), results(1, 92.0))
    write_run(tmp_path, supervised(2), results(2, 10.0, **change))
    write_run(tmp_path, supervised(3), None)
    made = of_runs(tmp_path)
    first, second = rows_of(page(made))
    assert (first[4], first[1]) == ("0, 1", "91.00 ± 1.41")
    assert (second[0], second[4], second[1]) == (f"supervised-ce-digits-wrn_16_1 ({label})", "2", "10.00")
    for key in change:
        assert any(
            f"**The rows differ in {key if key != 'samples' else 'train images'}** (" in w for w in made.warnings
        )
    assert "supervised-ce-digits-wrn_16_1-seed3" in page(made).partition("## Not finished")[2]


def test_other_versions_are_reported(tmp_path: Path) -> None:
    write_run(tmp_path, supervised(0), results(0, 90.0))
    write_run(tmp_path, supervised(1), results(1, 92.0, versions={"kdschemes": "0.1.0", "torch": "2.12.0"}))
    text = page(of_runs(tmp_path))
    assert rows_of(text)[0][1] == "91.00 ± 1.41"
    assert "**The runs were made with several versions of torch**: 2.11.0, 2.12.0." in text


def test_other_heads_have_a_table_of_their_own(tmp_path: Path) -> None:
    for seed in (0, 1):
        heads = {"peer0": both(90.0 + seed, 50.0), "peer1": both(80.0, 50.0), "ensemble": both(95.0, 50.0)}
        cost = {name: {"parameters": n + 1, "macs": 1_000_000 * (n + 1)} for n, name in enumerate(heads)}
        mean = both(85.0 + seed, 50.0)
        found = results(seed, 0.0, primary_head="peer0", heads=heads, mean_over_peers=mean, cost=cost)
        write_run(tmp_path, [f"seed={seed}"], found)
    text = page(of_runs(tmp_path))
    assert [[row[3], row[4], row[1]] for row in rows_of(text)] == [["peer0", "0, 1", "90.50 ± 0.71"]]
    others = rows_of(text[text.index("## Other heads") :])
    assert [(row[3], row[1]) for row in others] == [
        ("peer1", "80.00 ± 0.00"),
        ("ensemble", "95.00 ± 0.00"),
        ("mean over peers", "85.50 ± 0.71"),
    ]


def test_a_teacher_worse_than_its_student_is_warned_of(tmp_path: Path) -> None:
    for seed in (0, 1):
        heads = {"student": both(90.0 + seed, 50.0), "teacher": both(89.0, 50.0)}
        write_run(tmp_path, ["scheme=offline", f"seed={seed}"], results(seed, 0.0, heads=heads, teacher="teacher"))
    (warning,) = of_runs(tmp_path).warnings
    assert "worse than its own student**: 89.00 against 90.50 ± 0.71 % on the test set" in warning
    write_run(tmp_path, supervised(0, "optim.lr=0.05"), results(0, 88.0))
    assert not of_runs(tmp_path).warnings
    write_run(tmp_path, supervised(1, "optim.lr=0.05"), results(1, 95.0))
    (warning,) = of_runs(tmp_path).warnings
    assert "worse than its student alone (supervised-ce-digits-wrn_16_1)**: 89.00 against 91.50" in warning


def test_a_teacher_that_several_share_is_one_row(tmp_path: Path) -> None:
    for rate in (0.1, 0.2):
        heads = {"student": both(90.0, 50.0, agreement=97.5, kl=0.125), "teacher": both(95.0, 50.0)}
        words = ["scheme=offline", "teacher=resnet20", f"optim.lr={rate}"]
        write_run(tmp_path, words, results(0, 0.0, heads=heads, teacher="teacher"))
    text = page(of_runs(tmp_path))
    assert [row[-2:] for row in rows_of(text)] == [["97.50", "0.1250"]] * 2
    (row,) = rows_of(text[text.index("## Other heads") :])
    label = "offline-kd-digits-wrn_16_1 optim.lr"
    assert [row[0], row[3], row[4], row[1]] == [f"{label}=0.1, {label}=0.2", "teacher", "0", "95.00"]


def test_numbers_that_are_not_finite_are_shown(tmp_path: Path) -> None:
    found = results(0, 90.0)
    found["heads"]["student"]["last"]["test"] = metrics(90.0) | {"nll": "nan", "top1": "nan"}
    found["heads"]["student"]["best"]["test"] = None
    write_run(tmp_path, supervised(0), found)
    write_run(tmp_path, supervised(1), results(1, 90.0))
    (row,) = rows_of(page(of_runs(tmp_path)))
    assert [*row[1:3], row[5]] == ["nan ± nan", "50.00", "nan ± nan"]


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """Two points of two seeds: the first finished, of the second one run finished and one stopped."""
    output = tmp_path / "runs"
    grid = "base: {scheme: supervised, train.epochs: 4}, grid: {optim.lr: [0.1, 0.2]}, seeds: [0, 1]"
    study = write_study_of(output, "mine", f"{{question: 'Does a rate help?', {grid}}}")
    write_run(output, supervised(0), results(0, 90.0), rising(90))
    write_run(output, supervised(1), results(1, 94.0), rising(94))
    write_run(output, supervised(0, "optim.lr=0.2"), results(0, 70.0), rising(70))
    write_run(output, supervised(1, "optim.lr=0.2"), None, [40, 50])
    return study


def test_a_study_has_a_row_a_point_and_says_what_is_missing(study: Study) -> None:
    text = page(of_study(study))
    assert text.startswith("# mine\n\nDoes a rate help?\n\n- Test top-1 after the last epoch against **lr=0.1** (")
    assert [[row[0], row[4], row[1]] for row in rows_of(text)] == [
        ["lr=0.1", "0, 1", "92.00 ± 2.83"],
        ["lr=0.2", "0 (1 missing)", "70.00"],
    ]
    missing = rows_of(text, "| run | state | epochs | reason |")
    assert missing == [["lr=0.2 seed=1", "interrupted", "2 of 4", "no process is training it"]]
    assert "- 1 of 4 runs is not finished.\n" in text
    assert "![curves](curves.png)" in text


def test_runs_that_continue_others_are_seeds_of_one_configuration(tmp_path: Path) -> None:
    """`resume_from` names another run for each seed. What that run had otherwise distinguishes groups."""
    runs = []
    for rate, seed in product((0.1, 0.2), (0, 1)):
        parent = write_run(tmp_path, supervised(seed, f"optim.lr={rate}"), results(seed, 80.0 + seed))
        words = [f"resume_from={parent}", f"output_dir={tmp_path}", "optim.lr=0.1"]
        longer = results(seed, 90.0 + seed + rate, epochs=6)
        runs.append(write_run(tmp_path, words, longer, epochs=6))
    head = "supervised-ce-digits-wrn_16_1"
    labels = [f"{head} resume_from={{{rate}train.epochs: 4}}" for rate in ("", "optim.lr: 0.2, ")]
    assert {(group.label, len(group.finished)) for group in run_groups(runs)} == {(label, 2) for label in labels}
    for parent in set(tmp_path.iterdir()) - set(runs):
        (parent / "config.yaml").unlink()
    assert [(group.label, len(group.finished)) for group in run_groups(runs[:2])] == [(head, 2)]


def test_runs_are_given_as_folders_or_as_the_folder_that_holds_them(tmp_path: Path) -> None:
    first, second = (write_run(tmp_path, supervised(seed), results(seed, 90.0 + seed)) for seed in (0, 1))
    (tmp_path / "studies" / "mine").mkdir(parents=True)
    for word in (str(tmp_path / "none"), str(tmp_path / "studies")):
        with pytest.raises(UserError, match="is not the folder of a run: give folders of runs, or one study"):
            report([str(first), word], output=None, out=None)
    copy = tmp_path / "copy" / first.name
    copy.mkdir(parents=True)
    (copy / "config.yaml").write_bytes((first / "config.yaml").read_bytes())
    with pytest.raises(UserError, match="is the same run as"):
        report([str(first), str(copy.parent)], output=None, out=None)
    assert [len(group.finished) for group in run_groups([first, second])] == [2]


def test_a_study_of_which_nothing_ran_yet(tmp_path: Path) -> None:
    entry = Entry(label="a=1 seed=0", folder="none", epochs=3, seed=0)
    study = Study(folder=tmp_path / "studies" / "mine", question="Q?", overrides=(), entries=(entry,))
    study.folder.mkdir(parents=True)
    write_study(study)
    text = page(of_study(study))
    assert "- No run is finished yet: there are no results to show.\n- 1 of 1 runs is not finished." in text
    assert rows_of(text, "| run | state |") == [["a=1 seed=0", "not begun", "0 of 3", "-"]]
    assert "## Results" not in text


def test_runs_that_teach_are_rows_at_the_end_and_are_not_compared(tmp_path: Path) -> None:
    output = tmp_path / "runs"
    words = ["model=resnet20", "optim.lr=0.05"]
    teachers = [write_run(output, supervised(0, *words[:n]), results(0, 60.0 + n)) for n in (1, 2)]
    student = write_run(output, supervised(0), results(0, 90.0))
    entries = [Entry(label=run.name, folder=run.name, epochs=4, seed=0, earlier=True) for run in teachers]
    entries.append(Entry(label="missing", folder="supervised-ce-x-seed0-abc", epochs=4, seed=0, earlier=True))
    entries.append(Entry(label="seed=0", folder=student.name, epochs=4, seed=0))
    study = Study(folder=output / "studies" / "mine", question="Q?", overrides=(), entries=tuple(entries))
    study.folder.mkdir(parents=True)
    text = page(of_study(study))
    assert [(row[0], row[1]) for row in rows_of(text)] == [
        ("mine", "90.00"),
        ("supervised-ce-digits-resnet20 optim.lr=0.05 (teaches)", "62.00"),
        ("supervised-ce-digits-resnet20 optim.lr=0.1 (teaches)", "61.00"),
    ]
    assert "| missing | not begun | 0 of 4 | - |" in text
    assert COMPARED not in text


@pytest.mark.parametrize(
    "content",
    ["{}", '{"heads": {}}', '{"heads": {"student": {"last": {"test": {"top1": []}}}}, "primary_head": "student"}', "{"],
)
def test_damaged_results_are_reported_and_lose_nothing_else(content: str, tmp_path: Path) -> None:
    write_run(tmp_path, supervised(0), results(0, 90.0))
    damaged = write_run(tmp_path, supervised(1), results(1, 90.0), [10, 20])
    (damaged / "results.json").write_text(content)
    (damaged / "metrics.jsonl").write_text('{"kind": "eval", "split": "val"}\nnonsense\n')
    text = page(of_runs(tmp_path))
    assert rows_of(text)[0][4] == "0 (1 missing)"
    assert "results.json is damaged" in text


def test_nothing_to_report_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["study", "report", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.startswith("error: unknown study '")
    assert run_groups([]) == []


def test_a_large_difference_that_the_correction_leaves_open_is_told_with_its_size(tmp_path: Path) -> None:
    base = (90.0, 90.5, 90.2)
    found = {0.1: (0.0, 0.0, 0.0), 0.2: (-10.0, -12.0, -14.0), **{n: (0.1 * n, -0.2, 0.3) for n in range(3, 10)}}
    for rate, change in found.items():
        for seed, more in enumerate(change):
            write_run(tmp_path, supervised(seed, f"optim.lr={rate}"), results(seed, base[seed] + more))
    groups = run_groups(sorted(path for path in tmp_path.iterdir()))
    label = "supervised-ce-digits-wrn_16_1 optim.lr="
    made = build("R", "", groups, baseline=f"{label}0.1")
    assert made.summary[1] == (
        f"**{label}0.2**: -12.00 (-16.97 to -7.03, 3 seeds); inconclusive after correction, p = 0.073."
    )


def test_planned_comparisons_are_corrected_and_the_others_are_exploratory(tmp_path: Path) -> None:
    text = "{question: Q, base: {scheme: supervised, train.epochs: 4}, grid: {optim.lr: [0.1, 0.2, 0.3, 0.4]}, "
    study = write_study_of(tmp_path, "mine", text + "seeds: [0, 1, 2], compare: [[lr=0.4, lr=0.3]]}")
    for entry in study.runs:
        rate = entry.grid["optim.lr"]
        found = results(entry.seed, 80.0 + 10 * rate + entry.seed * (1 + rate))
        write_run(tmp_path, supervised(entry.seed, f"optim.lr={rate}"), found)
    study = read_study_folder(study.folder)
    assert study.compare == (("lr=0.4", "lr=0.3"),)
    made = build("R", "", study_groups(status(study)), compare=study.compare)
    rows = rows_of(page(made), "| run | difference | 95 % interval | against | common seeds | p | test |")
    assert [(row[0], row[3], row[6]) for row in rows] == [
        ("lr=0.4", "lr=0.3", "significant"),
        *((f"lr={rate}", "lr=0.1", "exploratory") for rate in (0.2, 0.3, 0.4)),
    ]
    assert [row[5] == "-" for row in rows] == [False, True, True, True]
    assert made.summary[1].startswith("**lr=0.4**: +1.10 (+0.85 to +1.35, 3 seeds); significant, p = 0.003")
    assert "Exploratory, in the table only: lr=0.2, lr=0.3, lr=0.4." in made.summary


def test_alpha_0_is_one_point_whatever_the_temperature_was(tmp_path: Path) -> None:
    """Also in studies that were recorded, and runs that were trained, when it was one for each temperature."""
    text = "{question: Q, base: {scheme: offline, teacher: resnet20, train.epochs: 4}, seeds: [0, 1], "
    text += "grid: {losses.response.temperature: [1, 4], scheme.alpha: [0, 0.5]}}"
    study = write_study_of(tmp_path, "mine", text)
    assert [entry.label for entry in study.runs if entry.seed == 0] == [
        *("alpha=0 seed=0", "temperature=1 alpha=0.5 seed=0", "temperature=4 alpha=0.5 seed=0")
    ]
    runs, entries = [], []
    for temperature, alpha, seed in product((1, 4), (0, 0.5), (0, 1)):
        grid = {"losses.response.temperature": temperature, "scheme.alpha": alpha}
        words = ["scheme=offline", "teacher=resnet20", f"seed={seed}", *(f"{k}={v}" for k, v in grid.items())]
        missing = (temperature, alpha, seed) == (1, 0, 1)
        runs.append(write_run(tmp_path, words, None if missing else results(seed, 80.0 + 10 * alpha + seed)))
        label = f"temperature={temperature} alpha={alpha} seed={seed}"
        entries.append(Entry(label=label, folder=runs[-1].name, epochs=4, seed=seed, grid=grid))
    old = replace(study, entries=tuple(entries))
    groups = study_groups(status(old))
    assert [(group.label, len(group.finished)) for group in groups] == [
        *[("alpha=0", 2), ("temperature=1 alpha=0.5", 2), ("temperature=4 alpha=0.5", 2)]
    ]
    assert [each.against.label for each in compare_groups(groups)] == ["alpha=0"] * 2
    assert sorted(len(group.finished) for group in run_groups(runs)) == [2, 2, 2]


def test_a_teacher_of_all_seeds_is_one_value(tmp_path: Path) -> None:
    for seed in range(3):
        heads = {"student": both(80.0 + seed, 50.0), "teacher": both(95.0, 50.0)}
        found = results(seed, 0.0, heads=heads, teacher="teacher", teacher_checkpoint="runs/teacher")
        write_run(tmp_path, ["scheme=offline", f"seed={seed}"], found)
    text = page(of_runs(tmp_path))
    (row,) = rows_of(text[text.index("## Other heads") :])
    assert row[1:6] == ["95.00", "50.00", "teacher", "one for all seeds", "1.0000"]
    assert "± 0.00 |" not in "|".join(row)


def test_the_code_of_each_run_is_shown(tmp_path: Path) -> None:
    for seed, commit in ((0, "abc"), (1, "abc"), (2, "def-dirty")):
        code = {"version": "0.1.0", "commit": commit, "command": f"kdschemes train scheme=supervised seed={seed}"}
        write_run(tmp_path, supervised(seed), results(seed, 80.0, code=code))
    made = of_runs(tmp_path)
    assert made.warnings == ["**The runs were made by several commits**: abc, def-dirty."]
    (table,) = made.sections[-1].tables
    assert [row[1:] for row in table.rows][1] == ["abc", "kdschemes train scheme=supervised seed=1"]
    assert [row["command"][-1] for row in made.runs] == ["0", "1", "2"]
