"""A run that is killed, stopped or short of disk, and then continued, equals one that nothing disturbed, bit for bit.

"Equal" is meant of bytes: exported weights (last and best), `metrics.jsonl`, `config.yaml`.
"""

from __future__ import annotations

import itertools
import json
import shutil
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from kdschemes.config.load import load_config
from kdschemes.errors import UserError
from kdschemes.storage.checkpoint import load_state, recover
from kdschemes.training.train import train
from tests import REPOSITORY
from tests.processes import Before, Ended, LimitFiles, SignalAtBatch, SignalAtFile, Started, run

SMALL = [
    "data.val_fraction=0.9",
    "data.train_fraction=1",  # 126 training images: 4 steps an epoch
    "train.batch_size=32",
    "train.epochs=2",
    "train.checkpoint_every_steps=3",
    "train.log_every_steps=4",
    "train.num_threads=1",
]
CASES = {
    "online": ["scheme=online", *SMALL],
    "self": ["scheme=self", "optim=adamw", "optim.lr=0.001", *SMALL],
    "memory": [
        *["scheme=online", "model=convnet_quarter", "losses.response=ctkd", "losses.relation=crd"],
        *["losses.relation.negatives=64", *SMALL],
    ],
    "average": ["scheme=supervised", "train.ema=0.9", "train.grad_accum_steps=2", "optim.clip_grad_norm=1", *SMALL],
}
FILES = ("config.yaml", "metrics.jsonl", "model.safetensors", "best/model.safetensors")
STEPS = 8


def run_folder(place: Path) -> Path:
    (folder,) = (place / "runs").iterdir()
    return folder


def checkpoint(place: Path) -> dict[str, Any]:
    return load_state(run_folder(place) / "checkpoint.pt")


def one_line(ended: Ended) -> str:
    """Return the only line on standard error: an error."""
    (line,) = ended.err.splitlines()
    assert line.startswith("error: ")
    return line


def finish(case: str, place: Path) -> None:
    ended = run(CASES[case], place)
    assert (ended.code, ended.err) == (0, "")


def check_equal(place: Path, whole: Path) -> None:
    ours, theirs = run_folder(place), run_folder(whole)
    assert ours.name == theirs.name
    for name in FILES:
        assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name
    results = [json.loads((folder / "results.json").read_text()) for folder in (ours, theirs)]
    assert results[0]["heads"] == results[1]["heads"]
    assert not list(ours.rglob("*.partial"))
    assert not (ours / "interrupted").exists()
    assert [path.name for path in ours.glob("best-epoch*")] == [path.name for path in theirs.glob("best-epoch*")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Give the place of a run of a case that nothing disturbed."""
    places: dict[str, Path] = {}

    def get(case: str) -> Path:
        if case not in places:
            place = tmp_path_factory.mktemp("whole") / case
            finish(case, place)
            places[case] = place
        return places[case]

    return get


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The place of an `average` run that SIGTERM stopped while it wrote the checkpoint of step 6."""
    place = tmp_path_factory.mktemp("stopped") / "run"
    before = SignalAtFile(signal.SIGTERM, 5, ("os.rename",))  # config, step 3, best of epoch 1, step 4, step 6
    assert run(CASES["average"], place, before).code == 143
    assert checkpoint(place)["step"] == 6
    return place


@pytest.fixture
def resuming(stopped: Path, tmp_path: Path) -> Path:
    """A copy of a stopped run, to be disturbed."""
    return Path(shutil.copytree(stopped, tmp_path / "run"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "first"),
    [
        pytest.param("online", 1, marks=pytest.mark.exhaustive),
        pytest.param("self", 2, marks=pytest.mark.exhaustive),
        pytest.param("average", 3, marks=pytest.mark.exhaustive),
        ("memory", 4),
    ],
)
def test_a_run_killed_while_it_writes_files_resumes_exactly(
    case: str, first: int, tmp_path: Path, whole: Callable[[str], Path]
) -> None:
    """Each process is killed before its n-th file is opened, renamed or removed; a file half written is left there."""
    place = tmp_path / "run"
    kills = 0
    for count in itertools.count(first, 4):
        ended = run(CASES[case], place, SignalAtFile(signal.SIGKILL, count))
        if ended.code == 0:
            break
        assert (ended.code, ended.err) == (-signal.SIGKILL, "")
        kills += 1
        for partial in place.rglob("*.partial"):
            partial.write_bytes(partial.read_bytes()[: partial.stat().st_size // 2])
    assert kills >= 3
    check_equal(place, whole(case))


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_run_killed_at_any_moment_resumes_exactly(tmp_path: Path, whole: Callable[[str], Path]) -> None:
    place = tmp_path / "run"

    def lines() -> int:
        return sum(path.read_bytes().count(b"\n") for path in place.glob("runs/*/metrics.jsonl"))

    moments: list[Callable[[], bool]] = [
        lambda: lines() >= 1,
        lambda: any(place.glob("runs/*/*.partial")),
        lambda: lines() >= 2,
        lambda: lines() >= 3,
        lambda: lines() >= 5,
    ]
    kills = 0
    for moment in moments:
        process = Started(CASES["online"], place)
        while process.running and not (process.has_begun and moment()):
            time.sleep(0.001)
        if process.running:
            process.signal(signal.SIGKILL)
        kills += process.wait().code == -signal.SIGKILL
    assert kills >= 2
    finish("online", place)
    check_equal(place, whole("online"))


@pytest.mark.slow
def test_signals_stop_a_run_at_the_next_step_and_it_resumes_exactly(
    tmp_path: Path, whole: Callable[[str], Path]
) -> None:
    place = tmp_path / "run"
    steps = [0]
    for number, file in ((signal.SIGTERM, 2), (signal.SIGUSR2, 4), (signal.SIGINT, 3)):
        ended = run(CASES["average"], place, SignalAtFile(number, file, ("os.rename",)))
        assert (ended.code, ended.err) == (128 + number, "")
        marker = json.loads((run_folder(place) / "interrupted").read_text())
        steps.append(marker["step"])
        assert marker == {"signal": number.name, "step": steps[-1], "total_steps": STEPS}
        assert checkpoint(place)["step"] == steps[-1]
        assert f"stopped by {number.name} after step {steps[-1]}; the same command resumes" in ended.out
    assert steps == [
        0,
        3,
        4,
        6,
    ]  # while a checkpoint was written: of step 3, of epoch 1, of step 6 (going on renames two logs before)
    finish("average", place)
    check_equal(place, whole("average"))


@pytest.mark.slow
def test_of_several_best_epochs_between_checkpoints_one_file_is_left(tmp_path: Path) -> None:
    rare = ["train.epochs=6", "train.checkpoint_every_epochs=6", "train.checkpoint_every_steps=null"]
    ended = run([*CASES["average"], *rare], tmp_path / "run")
    assert (ended.code, ended.err) == (0, "")
    rows = [json.loads(line) for line in (run_folder(tmp_path / "run") / "metrics.jsonl").read_text().splitlines()]
    accuracies = [row["student/top1"] for row in rows if row["kind"] == "eval"]
    assert sum(value > max([-1.0, *accuracies[:number]]) for number, value in enumerate(accuracies)) >= 3
    best = json.loads((run_folder(tmp_path / "run") / "results.json").read_text())["heads"]["student"]["best"]["epoch"]
    left = [path.name for path in run_folder(tmp_path / "run").glob("best-epoch*")]
    assert left == [f"best-epoch{best:04d}.pt"]


def test_a_second_process_on_a_folder_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "run"
    first = Started(CASES["average"], place, SignalAtFile(signal.SIGSTOP, 1, ("os.rename",)))
    while not list(place.glob("runs/*/config.yaml.*.partial")):
        assert first.running
        time.sleep(0.01)
    second = run(CASES["average"], place)
    assert second.code == 2
    told = one_line(second)
    assert f"is in use by another process (process {first.pid} on " in told
    assert told.endswith(": wait for it, or choose another seed or output_dir")
    assert list(run_folder(place).glob("config.yaml.*.partial"))
    first.signal(signal.SIGKILL)
    first.signal(signal.SIGCONT)
    assert first.wait().code == -signal.SIGKILL


@pytest.mark.slow
def test_damaged_files_are_refused_by_name(resuming: Path) -> None:
    folder = run_folder(resuming)
    good = (folder / "checkpoint.pt").read_bytes()
    other = torch.load(folder / "checkpoint.pt", weights_only=True)
    other["scheme"] = {}
    torch.save(other, folder / "other.pt")
    (folder / "checkpoint-previous.pt").unlink()
    for damaged, words in (
        (good[: len(good) // 2], "checkpoint.pt is damaged"),
        (b"", "checkpoint.pt is damaged"),
        ((folder / "other.pt").read_bytes(), "checkpoint.pt does not fit this run"),
    ):
        (folder / "checkpoint.pt").write_bytes(damaged)
        ended = run(CASES["average"], resuming)
        assert ended.code == 2
        assert words in one_line(ended)
        assert "delete " in ended.err
        assert (folder / "checkpoint.pt").read_bytes() == damaged
    (folder / "checkpoint.pt").write_bytes(good)
    (folder / "metrics.jsonl").write_bytes((folder / "metrics.jsonl").read_bytes()[:40])
    ended = run(CASES["average"], resuming)
    assert ended.code == 2
    assert "metrics.jsonl is damaged (it has 40 bytes, but the checkpoint recorded" in one_line(ended)


def flip(path: Path, part: float) -> None:
    """Flip one bit of a file, at a fraction of its length."""
    content = bytearray(path.read_bytes())
    content[int(part * len(content))] ^= 4
    path.write_bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "checkpoint.pt",
        *(pytest.param(name, marks=pytest.mark.exhaustive) for name in ("metrics.jsonl", "best-epoch0001.pt")),
    ],
)
def test_a_flipped_bit_is_found_and_the_run_resumes_from_the_checkpoint_before(
    name: str, resuming: Path, whole: Callable[[str], Path]
) -> None:
    """The last checkpoint is of step 6, the one before it of step 4; both have the same log and best epoch."""
    folder = run_folder(resuming)
    assert torch.load(folder / "checkpoint-previous.pt", weights_only=True)["step"] == 4
    flip(folder / name, 0.9)
    ended = run(CASES["average"], resuming)
    if name == "checkpoint.pt":
        assert f"{folder.name}/checkpoint.pt is damaged (" in ended.out
        assert ": resuming from the checkpoint before it, of step 4" in ended.out
    else:
        assert ended.code == 2
        assert f"{folder.name}/{name} is damaged (it" in one_line(ended)
        assert f"delete runs/{folder.name} to train the run again" in ended.err
        shutil.rmtree(folder)
        ended = run(CASES["average"], resuming)
    assert (ended.code, ended.err) == (0, "")
    assert not list(folder.glob("*previous*"))
    check_equal(resuming, whole("average"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[("step", value) for value in (True, "6", 6.0, -1, 10**6)],
        *[("best", value) for value in (7, {"file": "best-epoch0001.pt"})],
        *[(key, None) for key in ("scheme", "optimizer", "window_sums", "metrics_offset", "seconds")],
        ("window_sums", torch.zeros(1, 1, dtype=torch.float64)),
        ("optimizer", {"state": 3, "param_groups": [{"params": 4}]}),
    ],
)
def test_wrong_types_in_a_checkpoint_are_refused(
    key: str, value: object, resuming: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run_folder(resuming)
    (folder / "checkpoint-previous.pt").unlink()
    saved = torch.load(folder / "checkpoint.pt", weights_only=True)
    torch.save(saved | {key: value}, folder / "checkpoint.pt")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.chdir(resuming)
    with pytest.raises(UserError) as error:
        train(load_config(CASES["average"], recipes=REPOSITORY / "experiments"))
    message = str(error.value)
    assert "\n" not in message
    assert f"checkpoint.pt is damaged ({key}" in message or "checkpoint.pt does not fit this run (" in message
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_path_in_a_checkpoint_is_refused_and_deletes_nothing(resuming: Path) -> None:
    folder, victim = run_folder(resuming), resuming / "victim"
    victim.write_text("mine")
    (folder / "checkpoint-previous.pt").unlink()
    saved = torch.load(folder / "checkpoint.pt", weights_only=True)
    for file in (str(victim), "../../victim", "best-epoch0001.pt/../../../victim"):
        torch.save(saved | {"best": saved["best"] | {"file": file}}, folder / "checkpoint.pt")
        with pytest.raises(UserError, match=r"checkpoint\.pt is damaged \(best\.file: String should match pattern"):
            recover(folder)
        assert victim.read_text() == "mine"


def test_a_folder_of_another_configuration_is_refused(resuming: Path) -> None:
    path = run_folder(resuming) / "config.yaml"
    tree = yaml.safe_load(path.read_text())
    tree["optim"]["lr"] = 0.25
    path.write_text(yaml.safe_dump(tree))
    ended = run(CASES["average"], resuming)
    assert ended.code == 2
    assert (
        "contains a run with another configuration: optim.lr (0.25 there, 0.1 here); choose another output_dir"
        in one_line(ended)
    )
    path.write_text("a: [")
    ended = run(CASES["average"], resuming)
    assert ended.code == 2
    assert "config.yaml is damaged" in one_line(ended)


def test_a_damaged_result_is_refused(resuming: Path) -> None:
    (run_folder(resuming) / "results.json").write_text("{")
    ended = run(CASES["average"], resuming)
    assert ended.code == 2
    assert "results.json is damaged (" in one_line(ended)
    assert ended.err.endswith("): delete it and run again\n")


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    ended = run([*CASES["average"], f"output_dir={tmp_path / 'file' / 'x'}"], tmp_path / "run")
    assert ended.code == 2
    assert "cannot be written: Not a directory" in one_line(ended)
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.slow
def test_a_full_disk_keeps_the_last_checkpoint_and_the_run_resumes_exactly(
    resuming: Path, whole: Callable[[str], Path]
) -> None:
    """A limit on the size of a file stands for the full disk; both fail in the middle of a write."""
    folder = run_folder(resuming)
    before = (folder / "checkpoint.pt").read_bytes()
    ended = run(CASES["average"], resuming, LimitFiles(1_000_000))
    assert ended.code == 2
    assert "cannot be written: File too large; free the disk and run again" in one_line(ended)
    assert (folder / "checkpoint.pt").read_bytes() == before
    assert not list(folder.rglob("*.partial"))
    finish("average", resuming)
    check_equal(resuming, whole("average"))


def test_a_loss_that_is_not_finite_stops_the_run_and_is_named(tmp_path: Path) -> None:
    place = tmp_path / "run"
    arguments = ["scheme=online", *SMALL, "optim.lr=1e30", "train.checkpoint_every_steps=1"]
    ended = run(arguments, place)
    assert ended.code == 1
    line = one_line(ended)
    assert "term ce/peer0 is not finite at step 2 (it teaches peer0): the last good checkpoint is kept" in line
    saved = checkpoint(place)
    assert saved["step"] == 1
    assert all(bool(value.isfinite().all()) for value in saved["scheme"].values())
    again = run(arguments, place)
    assert (again.code, one_line(again)) == (1, line)


def test_without_a_checkpoint_the_error_says_so(tmp_path: Path) -> None:
    ended = run([*CASES["average"], "optim.lr=1e30"], tmp_path / "run")
    assert ended.code == 1
    assert "no checkpoint exists" in one_line(ended)


def pair(arguments: list[str], place: Path, before: Before | None = None, who: int = 0) -> list[Ended]:
    """Run two processes with the variables that `accelerate launch` sets; process `who` gets `before`."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    world = {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "OMP_NUM_THREADS": "1",
    }
    started = [
        Started(arguments, place, before if rank == who else None, world | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(2)
    ]
    return [process.wait() for process in started]


@pytest.mark.slow
def test_two_processes_stop_together_and_resume_exactly(tmp_path: Path) -> None:
    arguments = ["scheme=online", *SMALL, "device=cpu", "train.eval_batch_size=269"]  # 539 test images: 2 and 1 batches
    assert [ended.code for ended in pair(arguments, tmp_path / "whole")] == [0, 0]
    place = tmp_path / "run"
    stopped = pair(arguments, place, SignalAtFile(signal.SIGTERM, 2, ("os.rename",)))
    assert [ended.code for ended in stopped] == [143, 143]
    assert checkpoint(place)["step"] == 3
    again = pair(arguments, place, SignalAtBatch(signal.SIGUSR2, 2), who=1)  # in the first validation, on one of them
    assert "resuming from step 3" in again[0].out
    assert [ended.code for ended in again] == [143, 143]
    assert checkpoint(place)["step"] == 4
    assert "resuming from step 4" in pair(arguments, place)[0].out
    check_equal(place, tmp_path / "whole")


@pytest.mark.slow
def test_two_processes_both_stop_at_a_loss_that_is_not_finite(tmp_path: Path) -> None:
    first, second = pair(["scheme=online", *SMALL, "optim.lr=1e30", "device=cpu"], tmp_path / "run")
    assert (first.code, second.code) == (1, 1)
    assert "is not finite at step 2" in first.err.splitlines()[-1]
    assert second.err == ""
