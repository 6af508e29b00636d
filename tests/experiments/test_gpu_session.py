"""The session for a machine with one GPU: its clock, its records, and a rehearsal of all of it on the CPU."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from experiments.gpu_session import carry
from experiments.gpu_session.__main__ import SHARES, main
from experiments.gpu_session.record import Record, Task
from experiments.gpu_session.studies import RUNS, STUDIES, study_file
from experiments.gpu_session.teacher import FOLDER, SUMS, join
from kdschemes.study.spec import read_study
from tests import REPOSITORY


def task(out: Path, *, rehearse: bool = False) -> Task:
    return Task(out=out, data=out, until=0.0, rehearse=rehearse)


def test_a_record_says_what_is_left(tmp_path: Path) -> None:
    record = Record(tmp_path / "part.json", ("right", "wrong", "broken", "for a GPU", "new"))
    record.write("right", {"ok": True, "device": "CPU"})
    record.write("wrong", {"ok": False, "device": "CPU"})
    record.write("broken", {"ok": False, "device": "CPU", "error": "out of memory"})
    record.write("for a GPU", {"ok": True, "device": "CPU", "not_run": "no GPU"})
    again = Record.read(tmp_path / "part.json")
    assert again == record
    assert again.left() == ["broken", "new"]
    assert again.left(gpu=True) == ["broken", "for a GPU", "new"]
    again.write("for a GPU", {"ok": True, "device": "a GPU", "not_run": "no scipy"})
    assert again.left(gpu=True) == ["broken", "new"]
    assert Record.read(tmp_path / "other.json").left() == []


@pytest.mark.parametrize("words", [[], ["--out", "OUT", "--minutes", "0"], ["--out", "FILE"]])
def test_a_wrong_command_is_one_line(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "FILE").touch()
    assert main([word.replace("OUT", str(tmp_path)).replace("FILE", str(tmp_path / "FILE")) for word in words]) == 2
    assert re.fullmatch(r"error: .+\n", capsys.readouterr().err)


def test_without_time_or_data_every_part_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--out", str(tmp_path / "out"), "--data", str(tmp_path)]
    assert main([*command, "--minutes", "0.01"]) == 1
    assert read(tmp_path / "out" / "session.json")["not_reached"] == [*SHARES]
    told = capsys.readouterr().out
    assert all(f"{part}: not reached (the time is over)" in told for part in SHARES)
    assert main([*command, "--rehearse"]) == 2
    assert "has a session, and this is a rehearsal" in capsys.readouterr().err


def test_the_studies_are_the_decks(tmp_path: Path) -> None:
    folders = []
    for name, points in zip(STUDIES, (7, 6), strict=True):
        study = read_study(study_file(task(tmp_path), name, 1), (), recipes=REPOSITORY / "experiments")
        assert len(study.runs) == points
        assert {run.seed for run in study.runs} == {1}
        assert {(run.config.model.name, run.config.teacher.name) for run in study.runs} == {
            ("convnet", "resnet18_cifar")
        }
        folders += [run.folder for run in study.runs]
    assert len(set(folders)) == RUNS


def test_what_is_carried_and_what_is_expected_is_all_that_training_needs() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    needed = {re.split(r"[<>=]", word)[0] for word in project["dependencies"]}
    given = {"torch", "torchvision", "timm", "accelerate", "einops"}
    brought = {"huggingface-hub", "safetensors", "pyyaml", "filelock", "psutil", "numpy", "pillow"}
    left_out = {"vl-convert-python", "scikit-learn"} | LEFT_OUT
    assert needed - given - brought - left_out <= set(carry.PACKAGES)
    own = {name for package in carry.PACKAGES for name in dependencies(package)}
    assert own - set(carry.PACKAGES) == {"markdown-it-py", "pygments"}  # for what rich does not print here
    assert {"safetensors", "pyyaml", "huggingface-hub"} <= dependencies("timm")
    assert "psutil" in dependencies("accelerate")
    assert {"numpy", "pillow"} <= dependencies("torchvision")
    assert {"filelock", "typing-extensions"} <= dependencies("torch")


def dependencies(package: str) -> set[str]:
    words = [word for word in requires(package) or [] if ";" not in word]
    return {re.split(r"[\s<>=!~(\[]", word)[0].lower().replace("_", "-") for word in words}


def read(path: Path) -> Any:
    return json.loads(path.read_text())


LEFT_OUT = {"wandb", "sklearn", "scipy", "matplotlib", "altair", "vl_convert", "pygments", "markdown_it"}

HIDE = f"""
import sys
from importlib.machinery import PathFinder

class Hiding(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {LEFT_OUT} else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Hiding
"""
"""Python reads it when it starts: then these packages are not installed, as on a bare machine."""


def rehearse(out: Path, minutes: float) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "experiments.gpu_session", "--rehearse", "--out", str(out), "--minutes"]
    (out / "bare").mkdir(exist_ok=True)
    (out / "bare" / "sitecustomize.py").write_text(HIDE)
    environment = os.environ | {"PYTHONPATH": str(out / "bare")}
    environment.pop("OMP_NUM_THREADS", None)
    return subprocess.run(
        [*command, str(minutes)], cwd=REPOSITORY, capture_output=True, text=True, check=False, env=environment
    )


@pytest.mark.slow
def test_a_rehearsal_is_stopped_by_the_clock(tmp_path: Path) -> None:
    stopped = rehearse(tmp_path, 0.25)
    assert stopped.returncode == 1, stopped.stdout + stopped.stderr
    session = read(tmp_path / "session.json")
    assert session["calls"][0]["seconds"] < 60 * 0.25 + 30
    assert "studies" in session["not_reached"]
    assert "studies: not reached" in stopped.stdout


@pytest.mark.exhaustive
def test_a_stopped_rehearsal_is_resumed_to_its_end(tmp_path: Path) -> None:
    assert rehearse(tmp_path, 0.25).returncode == 1
    before = {part: Record.read(tmp_path / f"{part}.json") for part in SHARES}

    resumed = rehearse(tmp_path, 20)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    session = read(tmp_path / "session.json")
    assert (len(session["calls"]), session["not_reached"]) == (2, [])
    after = {part: Record.read(tmp_path / f"{part}.json") for part in SHARES}
    for part, record in after.items():
        assert record.left() == []
        assert record.machine["torch"] == torch.__version__
        assert all(found["ok"] for found in record.items.values())
        for name, found in before[part].items.items():
            if before[part].is_finished(name, gpu=False):
                assert record.items[name] == found
    not_run = session["parts"]["correctness"]["not_run"]
    assert not_run["training and resuming in fp16"] == "no GPU: fp16 with its gradient scaler is for GPUs only"
    assert not_run["bits of views: mixup"] == "scipy, which mixes images, is not installed"
    assert "no report: altair is not installed" in (tmp_path / "studies.log").read_text()
    assert (tmp_path / "teacher.log").read_text().count("matplotlib is not installed") == 1
    compared = [found for name, found in after["correctness"].items.items() if name.startswith("gradients")]
    assert 0 < max(found["relative_difference"] for found in compared) < 1e-9
    assert after["correctness"].items["training and resuming in fp32"]["same_bytes"]["model.safetensors"]
    assert {"bare/ours", "timm/ours"} == after["speed"].items["1 student, channels_last"]["ratio_of_times"].keys()

    weights = after["teacher"].items["weights in half precision"]
    assert weights["test_top1"] == pytest.approx(after["teacher"].items["training"]["test_top1"], abs=4)
    pieces = [name for name in weights["sha256"] if name.endswith(".safetensors")]
    assert len(pieces) > 1
    joined = load_file(tmp_path / FOLDER / "model.safetensors")
    (tmp_path / FOLDER / "model.safetensors").unlink()
    again = load_file(join(tmp_path / FOLDER))
    assert all(torch.equal(joined[name], tensor) for name, tensor in again.items())
    assert {tensor.dtype for tensor in joined.values()} == {torch.float16, torch.int64}
    (tmp_path / FOLDER / pieces[0]).write_bytes(b"damaged")
    with pytest.raises(ValueError, match="missing or damaged"):
        join(tmp_path / FOLDER)
    assert len((tmp_path / FOLDER / SUMS).read_text().splitlines()) == len(weights["sha256"])

    runs = after["studies"].items["alpha, seed 0"]["runs"]
    assert [run["state"] for run in runs.values()] == ["finished", "finished"]
    assert all(run["teacher_test_top1"] == pytest.approx(weights["test_top1"], abs=4) for run in runs.values())
    assert (tmp_path / "runs.tar.gz").stat().st_size > 1000
