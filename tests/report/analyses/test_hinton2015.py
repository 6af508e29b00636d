"""The statements of Hinton et al. (2015), on runs made by hand and on trained networks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from kdschemes.config.load import load_config
from kdschemes.config.naming import dump_yaml
from kdschemes.report.analyses.hinton2015 import hinton2015
from kdschemes.report.analyses.missing_class import measure
from kdschemes.report.groups import Group, Member
from kdschemes.storage.naming import run_name
from kdschemes.study.record import Entry
from kdschemes.study.status import Row
from kdschemes.training.train import train
from tests.report.cases import results

TEMPERATURES = (1, 2.5, 4, 8, 20)


def group(output: Path, label: str, words: Sequence[str], errors: Sequence[float], *, earlier: bool = False) -> Group:
    """Write runs that made `errors` of 10,000, one per seed."""
    members = []
    for seed, wrong in enumerate(errors):
        config = load_config(["data=mnist", *words, f"seed={seed}"], recipes=output)
        folder = output / run_name(config)
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(dump_yaml(config))
        found = results(seed, 100 - wrong / 100, samples={"train": 57_000, "val": 3_000, "test": 10_000})
        entry = Entry(label=f"{label} seed={seed}", folder=folder.name, epochs=4, seed=seed)
        members.append(Member(row=Row(entry=entry, state="finished"), folder=folder, results=found))
    return Group(label=label, members=tuple(members), earlier=earlier)


def taught(units: int, temperature: float) -> list[str]:
    words = ["scheme=offline", f"model=mlp_{units}_{units}", "teacher=mlp_1200_1200"]
    return [*words, f"losses.response.temperature={temperature:g}"]


def around(mean: float, shift: float = 0.0) -> list[float]:
    return [mean + shift, mean + 1, mean - 1]


def test_what_the_paper_found_is_supported(tmp_path: Path) -> None:
    narrow = {1: 300.0, 2.5: 270.0, 4: 271.0, 8: 285.0, 20: 290.0}
    wide = {1: 95.0, 2.5: 88.0, 4: 85.0, 8: 80.0, 20: 81.0}
    groups = [
        group(tmp_path, "alone", ["scheme=supervised", "model=mlp_800_800"], around(146, 2)),
        group(tmp_path, "taught", taught(800, 20), around(74)),
        group(tmp_path, "large", ["scheme=supervised", "model=mlp_1200_1200"], around(67), earlier=True),
        group(tmp_path, "30 alone", ["scheme=supervised", "model=mlp_30_30"], around(330)),
        *(group(tmp_path, f"30 at {at}", taught(30, at), around(narrow[at])) for at in TEMPERATURES),
        *(group(tmp_path, f"300 at {at}", taught(300, at), around(wide[at])) for at in TEMPERATURES),
    ]
    (section,) = hinton2015(groups)
    statements = section.text.split("\n\n")
    assert "(1) A large regularized net is better than a small one: **supported** (+79.67 errors" in statements[0]
    assert "(2) Its soft targets pass most of that on to the small one: **supported** (+72.67 errors" in statements[1]
    assert "The student is within 15 errors of its teacher: +7.00 errors" in statements[2]
    assert statements[3].startswith("(3) With 300 units, all temperatures from 8 on are alike")
    assert "**supported** (the largest difference: -1.00 errors" in statements[3]
    assert "**supported** (than lower: +29.50 errors" in statements[4]
    assert "than higher: +17.00 errors" in statements[4]
    (table,) = section.tables
    rows = {row[0]: row[1:] for row in table.rows}
    assert table.columns == ("student", "30 units", "300 units")
    assert rows["T = 8"] == ["285.0 ± 1.0", "80.0 ± 1.0"]
    assert rows["labels only"] == ["330.0 ± 1.0", "-"]
    section.charts[0].spec.to_dict()


def test_what_contradicts_it_is_said(tmp_path: Path) -> None:
    groups = [
        *(group(tmp_path, f"300 at {at}", taught(300, at), around(80 + 2 * at)) for at in (8, 20)),
        *(group(tmp_path, f"30 at {at}", taught(30, at), around(300 - at)) for at in TEMPERATURES),
    ]
    (section,) = hinton2015(groups)
    assert "alike (every interval of a difference within 10 errors): **contradicted**" in section.text
    assert "better than lower and than higher ones: **contradicted** (than lower: +2.33" in section.text
    one_seed = [Group(label=each.label, members=each.members[:1]) for each in groups]
    assert hinton2015(one_seed)[0].text.count("no verdict with fewer than 3 common seeds**") == 2


def test_without_runs_there_is_nothing_to_say(tmp_path: Path) -> None:
    words = ["scheme=supervised", "model=convnet", "data=digits"]
    (section,) = hinton2015([group(tmp_path, "other", words, [100.0])])
    assert (list(section.tables), list(section.charts)) == ([], [])


@pytest.mark.slow
def test_students_that_miss_classes(tmp_path: Path) -> None:
    words = ["scheme=offline", "teacher=convnet_quarter", "model=mlp_20", "scheme.alpha=1"]
    words += ["train.epochs=3", "teacher.epochs=3"]
    members = []
    for number, omitted in enumerate(("[3]", "[0,1,2,3,4,5,6,9]")):
        config = load_config([*words, f"data.exclude_classes={omitted}", f"output_dir={tmp_path}"], recipes=tmp_path)
        done = train(config)
        entry = Entry(label=f"{number} seed=0", folder=done.folder.name, epochs=3, seed=0)
        members.append(Member(row=Row(entry=entry, state="finished"), folder=done.folder, results=done.results))
    (section,) = hinton2015([Group(label=str(k), members=(member,)) for k, member in enumerate(members)])
    rows = {row[0]: dict(zip(section.tables[0].columns, row, strict=True)) for row in section.tables[0].rows}
    assert rows["no 3"]["published errors"] == "206 (133 on 3s)"
    assert rows["only 7 and 8"]["published, corrected"] == "1320"
    for member, omitted, name in zip(members, ([3], [0, 1, 2, 3, 4, 5, 6, 9]), rows, strict=True):
        found, row = measure(member, omitted), rows[name]
        assert row["errors"] == f"{found.errors[0]:.1f}"
        assert row["corrected, unseen classes"] == f"{found.omitted_errors[1]:.1f}"
        assert float(row["corrected on test"]) <= found.errors[1]
    assert "(5) A student that saw no 3 knows the others" in section.text
    assert "(6) A student that saw only 7 and 8 knows the others" in section.text
