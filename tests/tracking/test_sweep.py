"""A study, offline, to W&B; and a sweep by `wandb sweep` and `wandb agent`: the real client, a recorder as server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from tests import REPOSITORY
from tests.tracking.wandb_recorder import Recorder

pytestmark = pytest.mark.exhaustive

SWEEP = REPOSITORY / "experiments" / "sweeps" / "alpha_temperature.yaml"
QUICK = {
    "train.epochs": 1,
    "train.num_threads": 1,
    "data.val_fraction": 0.8,
    "teacher": "resnet20",
    "teacher.epochs": 1,
}
STUDY = {
    "question": "Does alpha matter?",
    "base": {"scheme": "offline", "tracker": "wandb"} | QUICK,
    "grid": {"scheme.alpha": [0.1, 0.9]},
    "seeds": [0],
}


def environment(home: Path, **more: str) -> Mapping[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    tools = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}", "PYTHONPATH": str(REPOSITORY)}
    own = {"HOME": str(home), "NETRC": str(home / "netrc"), "WANDB_DIR": str(home), "WANDB_ERROR_REPORTING": "false"}
    return kept | tools | own | more


def command(words: list[str], folder: Path, given: Mapping[str, str]) -> str:
    done = subprocess.run(words, cwd=folder, env=dict(given), capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def kdschemes(*words: str) -> list[str]:
    return [sys.executable, "-m", "kdschemes.cli", *words]


def test_every_run_of_a_study_comes_to_one_group(tmp_path: Path) -> None:
    for name, alphas in (("first", [0.1, 0.9]), ("second", [0.1, 0.5])):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(STUDY | {"grid": {"scheme.alpha": alphas}}))
        command(kdschemes("study", "run", f"{name}.yaml", "--parallel", "1"), tmp_path, environment(tmp_path))
    with Recorder() as recorder:
        told = command(kdschemes("wandb", "sync"), tmp_path, environment(tmp_path, **recorder.environment()))
    assert told.splitlines()[-1] == "6 folders: 6 uploaded, 0 before"
    for group, alphas in (("first", [0.1, 0.9]), ("second", [0.1, 0.5])):
        runs = [run for run in recorder.runs.values() if run.facts()["groupName"] == group]
        assert sorted(run.facts()["jobType"] for run in runs) == ["offline", "offline", "teacher"]
        students = [run for run in runs if run.facts()["jobType"] == "offline"]
        assert sorted(run.values()["scheme"]["alpha"] for run in students) == alphas
        for run in runs:
            results = json.loads((tmp_path / run.values()["folder"] / "results.json").read_text())
            summary = json.loads(run.summary)
            assert summary["test/top1"] == pytest.approx(results["heads"]["student"]["last"]["test"]["top1"])
            assert summary["cost/macs"] == results["cost"]["student"]["macs"]
            assert run.exit_code == 0
    assert {run.history[-1]["global_step"] for run in recorder.runs.values()} == {2}


def test_an_agent_trains_points_of_the_shipped_sweep(tmp_path: Path) -> None:
    tree = yaml.safe_load(SWEEP.read_text())
    quick = [f"{key}={value}" for key, value in QUICK.items()]
    tree["command"][-1:] = [*quick, f"output_dir={tmp_path / 'runs'}", tree["command"][-1]]
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump(tree))
    point = {"scheme.alpha": {"value": 0.3}, "losses.response.temperature": {"value": 2}}
    with Recorder() as recorder:
        given = environment(tmp_path, **recorder.environment())
        assert "wandb agent me/kdschemes/s" in command(
            ["wandb", "sweep", "--project", "kdschemes", str(file)], REPOSITORY, given
        )
        assert yaml.safe_load(recorder.sweep)["command"] == tree["command"]
        for name in ("point1", "point2"):  # the second agent finds the point trained
            recorder.commands = [{"type": "run", "run_id": name, "program": "run.py", "args": point}]
            command(["wandb", "agent", "--count", "1", "me/kdschemes/s"], REPOSITORY, given)
    (teacher,) = (run for run in recorder.runs.values() if run.facts()["jobType"] == "teacher")
    assert "sweep" not in teacher.facts()
    first, second = recorder.runs["point1"], recorder.runs["point2"]
    assert len(recorder.runs) == 3
    for run in (first, second):
        assert (run.facts()["sweep"], run.facts()["groupName"], run.exit_code) == ("s", "alpha_temperature_sweep", 0)
        config = run.values()
        assert (config["scheme"]["alpha"], config["losses"]["response"]["temperature"]) == (0.3, 2)
    assert json.loads(first.summary)["val/top1"] == json.loads(second.summary)["val/top1"]
    assert [row["global_step"] for row in first.history] == [row["global_step"] for row in second.history] == [2]
