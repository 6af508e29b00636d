"""Teacher assistants: a chain of runs between the teacher and the student."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kdschemes.config.prerequisites import prerequisite_runs, with_teachers
from kdschemes.config.schemes.offline import OfflineKD
from kdschemes.schemes.offline.teachers import build_teachers
from kdschemes.storage.naming import run_name
from tests.processes import run
from tests.schemes.cases import DATA_SPEC, base, configure
from tests.schemes.formulas import Formula
from tests.schemes.offline.cases import SMALL, several_teachers

TAKD = base("offline", "takd")

FORMULA: Formula = several_teachers
EXACT = {"takd-other": [*TAKD, "scheme.assistants=[resnet56,convnet]", "scheme.alpha=0.4"]}


def test_each_assistant_is_a_run_taught_by_those_before_it() -> None:
    chain = ["scheme.assistants=[resnet56,resnet32,convnet]", "teacher=resnet110", "teacher.seed=4", "teacher.epochs=9"]
    config = configure(*TAKD, *chain, "seed=7", "train.ema=0.9")
    found: list[Any] = []
    while (earlier := prerequisite_runs(found[-1] if found else config)) != []:
        found += earlier
    assert [run.model.name for run in found] == ["convnet", "resnet32", "resnet56", "resnet110"]
    assert [run.scheme.method for run in found] == ["takd", "takd", "kd", "ce"]
    assert {run.seed for run in found} == {4}
    assert {(run.train.epochs, run.train.ema) for run in found} == {(9, None)}
    assert found[2].scheme == OfflineKD(alpha=config.scheme.alpha)
    others = [configure(*TAKD, *chain, seed) for seed in ("seed=1", "seed=2")]
    (first,), (second,) = (prerequisite_runs(other) for other in others)
    assert run_name(first) == run_name(second) == run_name(found[0])


def test_a_given_teacher_teaches_only_the_first_assistant(weights: dict[str, str]) -> None:
    config = configure(*TAKD, f"teacher.checkpoint={weights['teacher']}", "scheme.assistants=[convnet]")
    (assistant,) = prerequisite_runs(config)
    assert assistant.teacher.checkpoint == weights["teacher"]
    assert prerequisite_runs(assistant) == []
    for folders in (None, [weights["student"]]):
        resolved = with_teachers(config, folders)
        assert (resolved.teacher.name, resolved.teacher.checkpoint) == (["convnet"], folders)
        (node,) = build_teachers(resolved, DATA_SPEC).frozen
        assert node.network.spec.name == "convnet"


def test_the_options_of_the_teachers_images_are_the_teachers_alone() -> None:
    look = ["teacher.mean=[0.2]", "teacher.std=[0.3]", "teacher.image_size=16"]
    config = configure(*TAKD, *look, "scheme.assistants=[convnet]", "model.image_size=9")
    (assistant,) = prerequisite_runs(config)
    (teacher,) = prerequisite_runs(assistant)
    assert [run.model.image_size for run in (config, assistant, teacher)] == [9, None, 16]
    assert (teacher.model.mean, teacher.model.std) == ([0.2], [0.3])
    assert with_teachers(config, ["a"]).teacher.mean is None
    assert with_teachers(assistant, ["a"]).teacher.mean == [0.2]


@pytest.mark.slow
@pytest.mark.exhaustive
def test_students_share_a_chain_of_runs(tmp_path: Path) -> None:
    arguments = ["scheme=offline", "method=takd", "model=convnet", "teacher=convnet", "teacher.epochs=1", *SMALL]
    arguments += ["scheme.assistants=[resnet20,convnet]", "teacher.seed=3"]
    place = tmp_path / "run"
    first = run(arguments, place)
    assert (first.code, first.err) == (0, "")
    chain = {path: path.stat().st_mtime_ns for path in place.glob("runs/*-seed3-*/model.safetensors")}
    names = sorted(path.parent.name.rpartition("-")[0] for path in chain)
    assert names == [
        "offline-kd-digits-resnet20-seed3",
        "offline-takd-digits-convnet-seed3",
        "supervised-ce-digits-convnet-seed3",
    ]
    second = run([*arguments, "seed=1"], place)
    assert (second.code, second.err) == (0, "")
    assert {path: path.stat().st_mtime_ns for path in chain} == chain
    students = list(place.glob("runs/offline-takd-digits-convnet-seed[01]-*"))
    assert len(students) == 2
    for folder in students:
        (teacher,) = json.loads((folder / "results.json").read_text())["teacher_checkpoint"]
        assert Path(teacher).name.startswith("offline-takd-digits-convnet-seed3-")
        again = run([f"experiment={folder / 'config.yaml'}"], place)
        assert again.code == 0
        assert f"already finished: runs/{folder.name}" in again.out
