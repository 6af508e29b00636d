"""`kdschemes study run` as a user starts it: packs, kills, failures, a budget, two at once; and the same by runs."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import yaml

from kdschemes import cli
from kdschemes.config.load import load_config
from kdschemes.storage.naming import run_name
from kdschemes.study.spec import read_study
from kdschemes.training.train import train
from tests import REPOSITORY

pytestmark = pytest.mark.slow

PATIENCE = 180.0
BYTES = ("model.safetensors", "metrics.jsonl", "predictions.safetensors", "best/model.safetensors")
BASE = {
    "scheme": "offline",
    "model": "convnet_quarter",
    "teacher": "convnet_quarter",
    "train.epochs": 2,
    "train.batch_size": 32,
    "train.num_threads": 1,
    "train.checkpoint_every_steps": 5,
    "data.val_fraction": 0.5,
    "device": "cpu",
}
STUDY = {
    "question": "How much should a student listen to its teacher?",
    "base": BASE,
    "grid": {"scheme.alpha": [0.2, 0.5, 0.9]},
    "seeds": [0, 1],
}


class Command:
    """`kdschemes study run FILE` in a folder, in a process group of its own."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder
        self._process = subprocess.Popen(
            [sys.executable, "-m", "kdschemes.cli", "study", "run", "mine.yaml", *arguments],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def until(self, seen: Callable[[], bool]) -> None:
        """Wait until something is there while the command runs."""
        end = time.monotonic() + PATIENCE
        while not seen():
            assert self._process.poll() is None, self._process.communicate()
            assert time.monotonic() < end
            time.sleep(0.02)

    def signal(self, number: signal.Signals, *, workers: bool = False) -> None:
        """Send a signal to its process group, and to its workers' too."""
        groups = [self._process.pid]
        if workers:
            groups += [worker.pid for worker in self.workers()]
        for group in groups:
            os.killpg(group, number)

    def workers(self) -> list[psutil.Process]:
        """Return the processes that it has started."""
        return psutil.Process(self._process.pid).children(recursive=True)

    def wait(self) -> tuple[int, str, str]:
        """Return its exit code and what it printed."""
        out, err = self._process.communicate(timeout=PATIENCE)
        return self._process.returncode, out, err


def begin(folder: Path, study: object = STUDY) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "mine.yaml").write_text(yaml.safe_dump(study))
    return folder


def finished(folder: Path) -> dict[str, int]:
    """Return when each finished run wrote its results."""
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("runs/*/results.json")}


def saved(folder: Path) -> list[str]:
    """Return the students that have a checkpoint and no results."""
    names = [path.parent.name for path in folder.glob("runs/offline-*/checkpoint.pt")]
    return [name for name in names if name not in finished(folder)]


def contents(folder: Path) -> dict[str, bytes]:
    return {
        f"{name}/{file}": (folder / "runs" / name / file).read_bytes() for name in finished(folder) for file in BYTES
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The study in one go, and what it printed."""
    folder = begin(tmp_path_factory.mktemp("whole"))
    code, out, err = Command(folder).wait()
    assert (code, err) == (0, ""), out
    return folder, out


def test_a_study_prints_a_line_per_run_and_ends_with_a_report(whole: tuple[Path, str]) -> None:
    folder, out = whole
    lines = out.splitlines()
    assert lines[:3] == [
        "mine: How much should a student listen to its teacher?",
        "6 runs: 6 not begun; 1 prerequisite: 1 not begun",
        "to train: 7 runs in 3 packs, 2 at once" if (os.cpu_count() or 1) > 1 else lines[2],
    ]
    runs = [line for line in lines if re.match(r"\[\d/7\] ", line)]
    assert [line[:5] for line in runs] == [f"[{n}/7]" for n in range(1, 8)]
    assert "(prerequisite): test " in runs[0]
    assert {line[6:].partition(":")[0] for line in runs[1:]} == {
        f"alpha={alpha} seed={seed}" for alpha in (0.2, 0.5, 0.9) for seed in (0, 1)
    }
    assert lines[-1] == "6 runs: 6 finished; 1 prerequisite: 1 finished"
    report = folder / "runs" / "studies" / "mine"
    assert "alpha=0.9" in (report / "report.md").read_text()
    assert (report / "report.html").is_file()
    assert len(finished(folder)) == 7


def test_a_run_has_the_bytes_of_its_single_run(
    whole: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(begin(tmp_path))
    assert train(read_study(Path("mine.yaml"), [], recipes=tmp_path).runs[-1].config).ran
    alone = contents(tmp_path)
    assert len(alone) == 2 * len(BYTES)  # the teacher's and the student's
    assert alone.items() <= contents(whole[0]).items()


@pytest.mark.parametrize("orphans", [False, pytest.param(True, marks=pytest.mark.exhaustive)])
def test_a_stopped_and_killed_study_resumes_and_repeats_nothing(
    orphans: bool, whole: tuple[Path, str], tmp_path: Path
) -> None:
    """With `orphans`, it is killed without its workers too, and they go on."""
    folder = begin(tmp_path)
    place = folder / "runs" / "studies" / "mine"
    first = Command(folder, "--parallel", "1")
    first.until((place / "study.yaml").exists)
    code, out, err = Command(folder, "--parallel", "1").wait()
    assert (code, out) == (2, "")
    assert err == f"error: {place} is in use by another kdschemes study run or submit: wait for it\n"
    first.until(lambda: bool(saved(folder)))
    first.signal(signal.SIGTERM)
    code, out, err = first.wait()
    assert (code, err) == (143, ""), out
    assert "SIGTERM: saving the active runs" in out
    assert out.splitlines()[-1] == f"stopped by SIGTERM; the same command resumes: {place}"
    assert "interrupted" in (place / "report.md").read_text()
    left: list[psutil.Process] = []
    if orphans:
        orphaned = Command(folder, "--parallel", "1")
        orphaned.until(lambda: len(finished(folder)) >= 2)
        left = orphaned.workers()
        orphaned.signal(signal.SIGKILL)
        assert orphaned.wait()[0] == -signal.SIGKILL
    killed = Command(folder, "--parallel", "1")
    killed.until(lambda: len(finished(folder)) >= 3)
    killed.signal(signal.SIGKILL, workers=True)
    assert killed.wait()[0] == -signal.SIGKILL
    for orphan in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            orphan.kill()
    psutil.wait_procs(left, timeout=PATIENCE)
    before = finished(folder)
    assert 3 <= len(before) < 7
    code, out, err = Command(folder, "--parallel", "1").wait()
    assert (code, err) == (0, ""), out
    assert f"to train: {7 - len(before)} run" in out
    assert {name: when for name, when in finished(folder).items() if name in before} == before
    assert contents(folder) == contents(whole[0])


def test_runs_that_fail_leave_the_others_to_continue_and_workers_run_the_code_that_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(REPOSITORY / "experiments" / "topologies" / "online_self.py", tmp_path / "ours.py")
    base = {key: value for key, value in BASE.items() if key not in ("scheme", "teacher")}
    alone = {"scheme": "supervised"}
    variants: dict[str, dict[str, object]] = {
        "good": alone,
        "wild": alone | {"optim.lr": 1e9},
        "lost": alone | {"model.checkpoint": "nowhere-seed0-00000000"},
        "taught": {"scheme": "offline", "teacher": "convnet_quarter", "teacher.checkpoint": "prerequisites.lost"},
        "ours": {"experiment": "ours.py", "data.val_fraction": 0.9},
    }
    study = {
        "question": "Q",
        "base": base,
        "variants": variants,
        "prerequisites": {"lost": alone | {"model.checkpoint": "nothing-seed0-00000000"}},
    }
    folder = begin(tmp_path, study)
    monkeypatch.chdir(folder)
    assert cli.main(["study", "run", "mine.yaml"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.endswith("allow it: kdschemes study run mine.yaml --allow ours.py\n")
    assert not (folder / "runs").exists()
    code, out, err = Command(folder, "--allow", "ours.py").wait()
    assert (code, err) == (1, ""), out
    told = dict(re.findall(r"^\[\d/6\] (\w+) seed=0(?: \(prerequisite\))?: (.*)$", out, flags=re.MULTILINE))
    good = run_name(load_config([f"{key}={value}" for key, value in (base | alone).items()], recipes=tmp_path))
    assert len(finished(folder)) == 2
    assert good in finished(folder)
    assert told["ours"].startswith("test ")
    assert "wild seed=0: failed, " in out
    assert "not finite" in out
    assert "failed: no weights at no" in told["lost"]
    assert told["taught"] == "not started: it needs 'lost seed=0', which is not finished"
    assert out.splitlines()[-1] == "5 runs: 2 finished, 3 failed; 1 prerequisite: 1 failed"
    assert (folder / "runs" / "studies" / "mine" / "report.html").is_file()


@pytest.mark.exhaustive
def test_a_spent_budget_ends_a_study_and_more_budget_resumes_it(tmp_path: Path) -> None:
    base = {**BASE, "scheme": "supervised"}
    del base["teacher"]
    study = {"question": "Q", "base": base, "seeds": [0, 1, 2]}
    folder = begin(tmp_path, {**study, "budget": {"hours": 0.001}})
    code, out, err = Command(folder, "--parallel", "1").wait()
    assert (code, err) == (1, ""), out
    assert "the budget is used up: saving the active runs\n" in out
    assert out.splitlines()[-1] == "the budget of 0.001 h is used up; the same command resumes with the same budget"
    assert len(finished(folder)) < 3
    assert (folder / "runs" / "studies" / "mine" / "report.html").is_file()
    code, out, err = Command(begin(tmp_path, study), "--parallel", "1").wait()
    assert (code, err) == (0, ""), out
    assert out.splitlines()[-1] == "3 runs: 3 finished"
