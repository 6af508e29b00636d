"""`run.py` as a user meets it: what it prints, what it leaves in the run's folder, how it answers mistakes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from kdschemes import cli
from kdschemes.config.data import Digits
from kdschemes.data import open_data
from kdschemes.models import create_model, load_model, save_weights
from kdschemes.storage.checkpoint import load_state
from kdschemes.tracking.metrics_log import read_rows
from tests import REPOSITORY
from tests.processes import Ended, SignalAtFile, Started, run

TINY = ["scheme=online", "train.epochs=1", "model=convnet", "train.num_threads=1"]
FEW = ["data.val_fraction=0.9", "data.train_fraction=1", "train.epochs=1", "train.num_threads=1"]


def python(*arguments: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=os.environ | environment)


def imported(stderr: str) -> set[str]:
    """Return the top-level packages that `python -X importtime` reports."""
    lines = [line for line in stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}


def test_help_is_answered_without_torch(tmp_path: Path) -> None:
    done = python("-X", "importtime", str(REPOSITORY / "run.py"), "--help", folder=tmp_path)
    assert done.returncode == 0
    assert done.stdout.startswith("usage: kdschemes train [KEY=VALUE ...]")
    assert "optim.lr=0.1" in done.stdout
    assert "pydantic" in imported(done.stderr)
    assert imported(done.stderr).isdisjoint({"torch", "numpy", "accelerate", "timm"})
    assert not list(tmp_path.iterdir())


def test_a_typo_is_answered_without_torch_in_one_line(tmp_path: Path) -> None:
    done = python("-X", "importtime", str(REPOSITORY / "run.py"), "trian.epochs=3", folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert imported(done.stderr).isdisjoint({"torch", "numpy", "accelerate", "timm"})
    (line,) = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert line == "error: unknown key 'trian'; did you mean 'train'? (--help all lists all keys)"
    assert not list(tmp_path.iterdir())


def test_help_that_nobody_reads_to_its_end_says_nothing() -> None:
    command = [sys.executable, str(REPOSITORY / "run.py"), "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as helped:
        assert helped.stdout is not None
        assert helped.stderr is not None
        helped.stdout.close()
        assert (helped.stderr.read(), helped.wait()) == ("", 0)


def test_other_processes_than_the_first_are_silent(tmp_path: Path) -> None:
    done = python(str(REPOSITORY / "run.py"), "trian.epochs=3", folder=tmp_path, RANK="1")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")
    helped = python(str(REPOSITORY / "run.py"), "--help", folder=tmp_path, RANK="1")
    assert (helped.returncode, helped.stdout, helped.stderr) == (0, "", "")


def test_a_value_with_a_line_break_is_reported_in_one_line(tmp_path: Path) -> None:
    done = python(str(REPOSITORY / "run.py"), 'seed="a\\nb"', folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: seed=a\\nb is not allowed (must be a whole number at least 0)\n"


@dataclass(frozen=True)
class Done:
    """A run that is over: where it was started, what it printed and its folder."""

    place: Path
    out: str
    folder: Path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """`python run.py` on the digits, for one epoch."""
    place = tmp_path_factory.mktemp("tiny")
    done = python(str(REPOSITORY / "run.py"), *TINY, folder=place)
    assert (done.returncode, done.stderr) == (0, "")
    (folder,) = (place / "runs").iterdir()
    return Done(place, done.stdout, folder)


def test_a_run_ends_with_its_table_and_its_folder(tiny: Done) -> None:
    lines = tiny.out.splitlines()
    assert lines[0].startswith("starting scheme=online method=dml data=digits model=")
    assert lines[1] == tiny.folder.name
    assert lines[2].startswith("epoch 1/1  validation: peer0 ")
    assert lines[-1] == f"run folder: runs/{tiny.folder.name}"
    results = json.loads((tiny.folder / "results.json").read_text())
    assert results["code"]["command"].startswith("kdschemes train scheme=online ")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| ")]
    assert rows[0][:4] == ["head", "peer0 (reported)", "peer1", "ensemble"]
    found = {row[0]: row[1:] for row in rows}
    for number, head in enumerate(("peer0", "peer1", "ensemble")):
        test = results["heads"][head]["last"]["test"]
        assert found["test top-1 %"][number] == f"{test['top1']:.2f}"
        assert found["test NLL"][number] == f"{test['nll']:.4f}"


def test_what_a_run_leaves(tiny: Done) -> None:
    found = {str(path.relative_to(tiny.folder)) for path in tiny.folder.rglob("*") if path.is_file()}
    exported = {"model.safetensors", "config.json", "best/model.safetensors", "best/config.json"}
    logs = {"config.yaml", "metrics.jsonl", "timing.jsonl", "results.json", "predictions.safetensors", "curves.png"}
    assert found == exported | logs | {"checkpoint.pt", "best-epoch0001.pt"}
    assert [path.name for path in tiny.place.iterdir()] == ["runs"]
    assert (tiny.folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    kinds = [row["kind"] for row in read_rows(tiny.folder / "metrics.jsonl")]
    assert kinds == ["train", "eval", *["final"] * 4]
    assert len(read_rows(tiny.folder / "timing.jsonl")) == 1
    assert load_state(tiny.folder / "checkpoint.pt")["step"] == 2


@pytest.mark.parametrize("which", ["last", "best"])
def test_the_exported_network_reproduces_the_reported_numbers(tiny: Done, which: str) -> None:
    network = load_model(tiny.folder if which == "last" else tiny.folder / "best")
    reported = json.loads((tiny.folder / "results.json").read_text())["heads"]["peer0"][which]
    data = open_data(Digits(), seed=0, device=torch.device("cpu"))
    for split, count in (("test", 539), ("val", 250)):
        (batch,) = data.eval_batches(split, batch_size=1000, rank=0, world=1)
        with torch.no_grad():
            logits = network(batch.images)
        assert len(logits) == count == data.sizes[split]
        top1 = 100 * (logits.argmax(1) == batch.labels).double().mean().item()
        assert top1 == pytest.approx(reported[split]["top1"], abs=1e-9)
        nll = torch.nn.functional.cross_entropy(logits.double(), batch.labels).item()
        assert nll == pytest.approx(reported[split]["nll"], rel=1e-5)


def accuracy(folder: Path) -> float:
    """Return the test top-1 of an exported network."""
    data = open_data(Digits(), seed=0, device=torch.device("cpu"))
    (batch,) = data.eval_batches("test", batch_size=1000, rank=0, world=1)
    with torch.no_grad():
        return 100 * (load_model(folder)(batch.images).argmax(1) == batch.labels).double().mean().item()


@pytest.mark.parametrize("which", ["last", "best"])
@pytest.mark.parametrize("head", ["peer0", "peer1"])
def test_any_peer_is_exported_from_the_checkpoint(tiny: Done, tmp_path: Path, head: str, which: str) -> None:
    words = ["export", str(tiny.folder), str(tmp_path), "--head", head, *(["--best"] if which == "best" else [])]
    assert cli.main(words) == 0
    reported = json.loads((tiny.folder / "results.json").read_text())["heads"][head][which]
    assert accuracy(tmp_path) == pytest.approx(reported["test"]["top1"], abs=1e-9)
    if head == "peer0":
        left = tiny.folder if which == "last" else tiny.folder / "best"
        assert (tmp_path / "model.safetensors").stat().st_size == (left / "model.safetensors").stat().st_size


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["RUN", "--head", "peer3"], "unknown head 'peer3'; did you mean 'peer"),
        (["RUN", "--head", "ensemble"], "ensemble is not a single network"),
        (["nowhere"], "folder nowhere not found"),
    ],
)
def test_what_cannot_be_exported_is_refused_in_one_line(
    tiny: Done, tmp_path: Path, words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run_folder, *more = words
    place = str(tiny.folder) if run_folder == "RUN" else run_folder
    assert cli.main(["export", place, str(tmp_path / "out"), *more]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert told in err
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_another_network_is_not_exported(
    tiny: Done, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = (tiny.folder / "config.yaml").read_text()
    assert config.count("name: convnet") > 0
    changed = config.partition("\n")[2].replace("name: convnet", "name: resnet20", 1)
    (tmp_path / "config.yaml").write_text(changed)
    shutil.copy(tiny.folder / "checkpoint.pt", tmp_path)
    assert cli.main(["export", str(tmp_path), str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "checkpoint.pt does not fit this run" in err
    assert not (tmp_path / "out").exists()


def test_the_same_command_again_does_not_train_again(tiny: Done) -> None:
    before = {path: path.stat().st_mtime_ns for path in tiny.folder.rglob("*")}
    again = run(TINY, tiny.place)
    assert (again.code, again.err) == (0, "")
    assert again.out.splitlines()[1] == f"this run is already finished: runs/{tiny.folder.name}"
    assert again.out.splitlines()[2:] == tiny.out.splitlines()[3:]
    assert {path: path.stat().st_mtime_ns for path in tiny.folder.rglob("*")} == before


@pytest.mark.slow
@pytest.mark.parametrize("source", ["command", "config.yaml"])
def test_the_same_run_elsewhere_gives_the_same_bytes(tiny: Done, tmp_path: Path, source: str) -> None:
    arguments = TINY if source == "command" else [f"experiment={tiny.folder / 'config.yaml'}"]
    done = run([*arguments, "output_dir=other/place"], tmp_path / "run")
    assert (done.code, done.err) == (0, "")
    (folder,) = (tmp_path / "run" / "other" / "place").iterdir()
    assert folder.name == tiny.folder.name
    for name in ("metrics.jsonl", "model.safetensors", "best/model.safetensors", "config.json"):
        assert (folder / name).read_bytes() == (tiny.folder / name).read_bytes(), name


@pytest.mark.slow
def test_a_teacher_without_weights_is_trained_once_for_all_students(tmp_path: Path) -> None:
    arguments = ["scheme=offline", "model=convnet", "teacher=convnet", "teacher.epochs=2", *FEW]
    place = tmp_path / "run"
    first = run(arguments, place)
    assert (first.code, first.err) == (0, "")
    (teacher,) = [folder for folder in (place / "runs").iterdir() if folder.name.startswith("supervised-ce-")]
    assert f"teacher convnet has no checkpoint: training it in runs/{teacher.name}" in first.out
    assert f"this run is already finished: runs/{teacher.name}" not in first.out
    written = (teacher / "model.safetensors").stat().st_mtime_ns
    assert json.loads((teacher / "results.json").read_text())["epochs"] == 2

    second = run([*arguments, "seed=1"], place)
    assert (second.code, second.err) == (0, "")
    assert f"this run is already finished: runs/{teacher.name}" in second.out
    assert (teacher / "model.safetensors").stat().st_mtime_ns == written
    students = sorted(folder.name for folder in (place / "runs").iterdir() if folder != teacher)
    assert [name[: len("offline-kd-digits-convnet-seed0")] for name in students] == [
        "offline-kd-digits-convnet-seed0",
        "offline-kd-digits-convnet-seed1",
    ]
    tops = []
    for name in students:
        results = json.loads((place / "runs" / name / "results.json").read_text())
        assert results["teacher"] == "teacher"
        tops.append(results["heads"]["teacher"]["last"]["test"]["top1"])
    exported = json.loads((teacher / "results.json").read_text())["heads"]["student"]["last"]["test"]["top1"]
    assert tops == [exported, exported]


@pytest.mark.slow
def test_a_signal_during_the_teachers_training_stops_the_run_and_it_resumes(tmp_path: Path) -> None:
    arguments = ["scheme=offline", "teacher=convnet", "teacher.epochs=1", *FEW, "train.batch_size=32"]
    place = tmp_path / "run"
    stopped = run(arguments, place, SignalAtFile(signal.SIGTERM, 1, ("os.rename",)))
    assert stopped.code == 143
    (teacher,) = (place / "runs").iterdir()
    assert teacher.name.startswith("supervised-ce-")
    done = run(arguments, place)
    assert (done.code, done.err) == (0, "")
    assert len(list((place / "runs").iterdir())) == 2


def refused(ended: Ended, place: Path) -> str:
    """Return the one line of an error that a user can mend, which has left nothing behind."""
    assert (ended.code, ended.out.count("Traceback")) == (2, 0)
    (line,) = ended.err.splitlines()
    assert line.startswith("error: ")
    assert not list(place.iterdir())
    return line


OFFLINE = ["scheme=offline", "teacher=convnet"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["precision=fp16", "device=cpu"], "precision=fp16 needs a GPU (on CPU use precision=bf16 or fp32)"),
        (["data=image_folder", "data.root=nowhere"], "nowhere/train is not a folder"),
        (["scheme=self", "scheme.exits=[stage9]"], "stage9"),
        ([*OFFLINE, "losses.feature=hint", "losses.feature.stages=[stage9:stage4]"], "stage9"),
        (["scheme.topology=shared_trunk", "scheme.split=stage9"], "stage9"),
        (["scheme.split=stage4"], "scheme.split needs scheme.topology=shared_trunk"),
        (["scheme.topology=shared_trunk", "train.ema=0.9"], "train.ema"),
        ([*OFFLINE, "teacher.checkpoint=nowhere"], "no weights at nowhere"),
        (["model.checkpoint=nowhere.safetensors"], "no weights at nowhere.safetensors"),
        (["model=timm/no_such_network"], "no_such_network"),
        (["train.batch_size=4000", "train.drop_last=true"], "train.batch_size=100 or less"),
        (["train.batch_size=6", "train.grad_accum_steps=4"], "train.batch_size=8 or more"),
        (["data.cutout=9"], "data.cutout=9"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_mistake_that_shows_only_later_is_one_line_and_leaves_nothing(
    arguments: list[str], words: str, tmp_path: Path
) -> None:
    assert words in refused(run(arguments, tmp_path / "run"), tmp_path / "run")


def test_a_teacher_of_other_classes_is_refused(tmp_path: Path) -> None:
    save_weights(create_model("convnet", num_classes=7, channels=1, image_size=8), tmp_path / "weights")
    place = tmp_path / "run"
    line = refused(run([*OFFLINE, f"teacher.checkpoint={tmp_path / 'weights'}"], place), place)
    assert "has 7 classes, but the data has 10" in line


def test_a_gpu_that_is_not_there_is_refused(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    line = refused(run(["device=cuda"], tmp_path / "run"), tmp_path / "run")
    assert line == "error: device=cuda, but torch sees no GPU here (use device=auto or device=cpu)"


def test_one_process_where_several_were_asked_for_is_refused(tmp_path: Path) -> None:
    """The variables of `accelerate launch --cpu --num_processes 2`, which starts one process."""
    started = Started(TINY, tmp_path / "run", environment={"MASTER_PORT": "29500"})
    line = refused(started.wait(), tmp_path / "run")
    assert "several processes were requested, but only one started" in line
    assert "accelerate launch --multi_gpu --num_processes N run.py" in line


@pytest.mark.slow
@pytest.mark.parametrize("trained", [False, True])
def test_a_teacher_at_chance_level_is_warned_of(tmp_path: Path, trained: bool) -> None:
    network = create_model("resnet20", num_classes=10, channels=1, image_size=8)
    torch.nn.init.zeros_(network.fc.weight)
    save_weights(network, tmp_path / "teacher")
    if trained:
        teacher = run(["scheme=supervised", "model=resnet20", "train.epochs=4", "train.num_threads=1"], tmp_path)
        assert teacher.code == 0
        (weights,) = (tmp_path / "runs").iterdir()
    else:
        weights = tmp_path / "teacher"
    done = run(["scheme=offline", "teacher=resnet20", f"teacher.checkpoint={weights}", *FEW], tmp_path)
    assert done.code == 0
    assert ("warning: the teacher is at chance level" in done.out) is not trained


@pytest.mark.slow
def test_what_was_adapted_in_given_weights_is_said_in_one_line_each(tmp_path: Path) -> None:
    for name, classes in (("teacher", 10), ("student", 100)):
        save_weights(create_model("convnet", num_classes=classes, channels=3, image_size=8), tmp_path / name)
    paths = [f"teacher.checkpoint={tmp_path / 'teacher'}", f"model.checkpoint={tmp_path / 'student'}"]
    done = run([*OFFLINE, "model=convnet", *paths, "model.head=new", *FEW], tmp_path)
    assert (done.code, done.err) == (0, "")
    summed = "stage1.conv1.weight is summed over RGB, because the data is gray"
    assert sorted(line for line in done.out.splitlines() if "summed" in line) == [
        f"{tmp_path / 'student'}: new classifier for 10 classes; {summed}",
        f"{tmp_path / 'teacher'}: {summed}",
    ]
