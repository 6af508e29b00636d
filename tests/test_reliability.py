"""Random kills, damaged files and bad inputs: no run is silently wrong, nothing is lost, every error is one line."""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdschemes.config.naming import read_config
from kdschemes.errors import UserError
from kdschemes.models import load_model
from kdschemes.storage.checkpoint import load_state, read_checkpoint, recover
from kdschemes.storage.predictions import read_predictions
from kdschemes.storage.results import read_results
from tests.processes import SignalAtFile, Started, run
from tests.training.test_loop import CASES, check_equal, finish, run_folder

DAMAGES, RESUMED = 200, 4

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("finished")
    finish("average", place)
    return place


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped at step 6 of 8; its checkpoint before the last is of step 4."""
    place = tmp_path_factory.mktemp("stopped")
    assert run(CASES["average"], place, SignalAtFile(signal.SIGTERM, 5, ("os.rename",))).code == 143
    return place


@pytest.mark.parametrize("most", [20, pytest.param(50, marks=pytest.mark.exhaustive)])
def test_random_kills(most: int, tmp_path: Path, finished: Path) -> None:
    """Runs of the same seed, each killed again and again until it happens to finish, all equal one that was never."""
    chance, kills, runs = random.Random(most), 0, 0
    while kills < most:
        place = tmp_path / str(runs)
        while not list(place.glob("runs/*/results.json")):
            process = Started(CASES["average"], place)
            while process.running and not process.has_begun:
                time.sleep(0.001)
            time.sleep(chance.uniform(0, 0.6))
            if kills < most and process.running:
                process.signal(signal.SIGKILL)
            code = process.wait().code
            assert code in (0, -signal.SIGKILL)
            kills += code != 0
        check_equal(place, finished)
        runs += 1


def flip_a_bit(content: bytes, chance: random.Random) -> bytes:
    place = chance.randrange(len(content))
    return content[:place] + bytes([content[place] ^ 1 << chance.randrange(8)]) + content[place + 1 :]


def cut(content: bytes, chance: random.Random) -> bytes:
    return content[: chance.randrange(len(content))]


def zero_a_block(content: bytes, chance: random.Random) -> bytes:
    place = chance.randrange(len(content))
    return content[:place] + bytes(min(512, len(content) - place)) + content[place + 512 :]


def append(content: bytes, chance: random.Random) -> bytes:
    return content + chance.randbytes(chance.randrange(1, 100))


def swap_halves(content: bytes, chance: random.Random) -> bytes:
    middle = chance.randrange(1, len(content))
    return content[middle:] + content[:middle]


def make_random(content: bytes, chance: random.Random) -> bytes:
    return chance.randbytes(min(len(content), 1000))


KINDS = (flip_a_bit, flip_a_bit, flip_a_bit, cut, zero_a_block, append, swap_halves, make_random)


def content_of(value: Any) -> Any:
    """Return data with tensors and arrays as bytes, for comparison."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().contiguous().numpy().tobytes()
    if isinstance(value, np.ndarray):
        return value.tobytes()
    if isinstance(value, dict):
        return {key: content_of(item) for key, item in value.items()}
    return [content_of(item) for item in value] if isinstance(value, list | tuple) else value


def predictions(folder: Path) -> Any:
    found = read_predictions(folder)
    assert found is not None
    return content_of(vars(found)["labels"]), {
        head: {split: content_of(list(vars(each).values())) for split, each in of.items()}
        for head, of in found.heads.items()
    }


def resumed(folder: Path) -> Any:
    """Return what a run resumes from: its step, its weights, the best epoch's, and the log up to there."""
    recover(folder)
    saved = read_checkpoint(folder / "checkpoint.pt")
    best = saved["best"]
    assert best is not None
    log = (folder / "metrics.jsonl").read_bytes()[: saved["metrics_offset"]]
    return content_of(dict(saved)), content_of(load_state(folder / best["file"])), log


READERS: dict[str, Callable[[Path], Any]] = {
    "results.json": read_results,
    "config.yaml": read_config,
    "predictions.safetensors": predictions,
    "model.safetensors": lambda folder: content_of(load_model(folder).plain_state()),
    "config.json": lambda folder: content_of(load_model(folder).plain_state()),
    "best/model.safetensors": lambda folder: content_of(load_model(folder / "best").plain_state()),
}
OF_A_CHECKPOINT = ("checkpoint.pt", "checkpoint-previous.pt", "best-epoch0001.pt", "metrics.jsonl")


def test_200_damaged_files(tmp_path: Path, finished: Path, stopped: Path) -> None:
    """A damaged file is refused in one line that names it, or has no effect at all."""
    chance, refused, names = random.Random(1), 0, (*READERS, *OF_A_CHECKPOINT)
    before = Path(shutil.copytree(run_folder(stopped), tmp_path / "before"))
    (before / "checkpoint-previous.pt").replace(before / "checkpoint.pt")
    known = {name: read(run_folder(finished)) for name, read in READERS.items()}
    states = [resumed(Path(shutil.copytree(run_folder(stopped), tmp_path / "whole"))), resumed(before)]
    for number in range(DAMAGES):
        name = names[number % len(names)]
        source = run_folder(stopped if name in OF_A_CHECKPOINT else finished)
        folder = tmp_path / "damaged"
        shutil.copytree(source, folder)
        content = (folder / name).read_bytes()
        kind = chance.choice(KINDS)
        (folder / name).write_bytes(kind(content, chance))
        try:
            if name in OF_A_CHECKPOINT:
                assert resumed(folder) in states, (name, kind)
            else:
                assert READERS[name](folder) == known[name], (name, kind)
        except UserError as error:
            message, refused = str(error), refused + 1
            assert str(folder) in message, message
            assert message.isprintable(), message
        shutil.rmtree(folder)
    assert refused > DAMAGES / 2


def test_damaged_runs_that_are_started_again(tmp_path: Path, finished: Path, stopped: Path) -> None:
    """The command refuses in one line and writes nothing, or finishes with the same bytes."""
    chance = random.Random(2)
    for number in range(RESUMED):
        place = Path(shutil.copytree(stopped, tmp_path / str(number)))
        path = run_folder(place) / chance.choice([*OF_A_CHECKPOINT, "config.yaml"])
        path.write_bytes(chance.choice(KINDS)(path.read_bytes(), chance))
        ended = run(CASES["average"], place)
        if ended.code == 0:
            assert ended.err == ""
            check_equal(place, finished)
        else:
            assert ended.code == 2
            assert ended.err.startswith("error: ")
            assert ended.err.count("\n") == 1
