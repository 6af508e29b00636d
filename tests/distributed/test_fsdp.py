"""Weights that are split over two real processes (FSDP2 over gloo): all as one process computes it, and whole files."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from kdschemes.distributed.fsdp import blocks
from kdschemes.models import create_model, load_model
from tests.distributed.fsdp_worker import (
    EXPORTED,
    NETWORKS,
    SPLIT,
    TEACHERS,
    run_clipped,
    run_export,
    run_network,
    run_teachers,
)
from tests.distributed.worker import CASES, run_case
from tests.distributed.worlds import Results, close, launch
from tests.processes import SignalAtFile, run
from tests.training.test_loop import SMALL, check_equal, checkpoint, one_line, pair, run_folder

pytestmark = pytest.mark.slow

SHARDED = ["train.fsdp=true", "teacher.placement=sharded", "device=cpu"]
OFFLINE = ["scheme=offline", "teacher.name=resnet20", "losses.feature=hint", "optim.lr=0.01"]
OFFLINE += ["optim.clip_grad_norm=1", "train.ema=0.9", *SMALL]


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return launch(2, tmp_path_factory.mktemp("sharding"), "tests.distributed.fsdp_worker")


@pytest.mark.parametrize("name", SPLIT)
def test_split_weights_learn_what_one_process_learns(name: str, launched: Results) -> None:
    one, split = run_case(CASES[name], None), launched[0]["cases"][name]
    for ours, theirs in zip(split["gradients"], one["gradients"], strict=True):
        close(ours, theirs)
    close(split["state"], one["state"])
    for results in launched:
        for head, values in one["metrics"].items():
            assert results["cases"][name]["metrics"][head] == pytest.approx(values, rel=1e-7)


def test_networks_are_clipped_by_their_whole_norm_and_states_come_back_whole(launched: Results) -> None:
    one, split = run_clipped(None), launched[0]["clipped"]
    for ours, theirs in zip(split["gradients"], one["gradients"], strict=True):
        close(ours, theirs)
        for peer in ("peer0", "peer1"):
            own = [g.flatten() for name, g in ours.items() if name.startswith(f"nodes.{peer}.")]
            assert 0.05 < torch.cat(own).norm() <= 0.1 + 1e-9
    close(split["weights"], one["weights"])
    assert split["state"].keys() == one["state"].keys()
    for number, values in one["state"].items():
        close(split["state"][number], values)
    assert [results["clipped"]["here"] for results in launched] == pytest.approx([0.5, 0.5], abs=0.01)


@pytest.mark.parametrize("name", TEACHERS)
def test_sharded_teachers_give_the_same_bits_as_whole_ones(name: str, launched: Results) -> None:
    expected = run_teachers(TEACHERS[name], None)
    for results in launched:
        answers = results["teachers"][name]
        assert answers.keys() == expected.keys()
        assert all(torch.equal(answers[key], value) for key, value in expected.items())


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_are_split_by_their_blocks(name: str, launched: Results) -> None:
    one = run_network(name, None)
    for number, results in enumerate(launched):
        split: dict[str, Any] = results["networks"][name]
        for key in ("logits", "alone") if number else one:
            torch.testing.assert_close(split[key], one[key], rtol=1e-9, atol=1e-11)


def test_blocks_are_those_that_repeat() -> None:
    counts = {}
    for name in (*NETWORKS, "resnet56", "shufflenet_v2", "timm/convnext_atto"):
        network = create_model(name, num_classes=10, channels=3, image_size=32)
        counts[name] = len(list(blocks(network)))
    assert counts == {
        "resnet8x4": 3,
        "vgg8": 0,
        "timm/test_vit": 6,
        "resnet56": 27,
        "shufflenet_v2": 54,
        "timm/convnext_atto": 12,
    }


@pytest.mark.parametrize("name", EXPORTED)
def test_the_first_process_exports_whole_networks(name: str, launched: Results) -> None:
    expected, exported = run_export(name, None), launched[0]["exports"][name]
    assert expected
    assert exported.keys() == expected.keys()
    assert all(torch.equal(exported[key], value) for key, value in expected.items())


def test_every_process_evaluates_as_many_batches(launched: Results) -> None:
    assert [results["evenly"] for results in launched] == [
        [[0, 1, 2, 3], [4], [0, 1, 2, 3, 4]],
        [[5, 6], [7, 8], [5, 6, 7, 8]],
    ]


def test_a_sharded_run_resumes_exactly_and_leaves_whole_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    teacher = create_model("resnet20", num_classes=10, channels=1, image_size=8)
    torch.save(teacher.state_dict(), tmp_path / "teacher.pt")
    arguments = [*OFFLINE, *SHARDED, f"teacher.checkpoint={tmp_path / 'teacher.pt'}"]
    whole, place = tmp_path / "whole", tmp_path / "run"
    assert [ended.code for ended in pair(arguments, whole)] == [0, 0]
    stopped = pair(arguments, place, SignalAtFile(signal.SIGTERM, 2, ("os.rename",)))
    assert [ended.code for ended in stopped] == [143, 143]
    assert checkpoint(place)["step"] == 3
    saved = checkpoint(place)
    assert all(type(value) is torch.Tensor for value in saved["scheme"].values())
    assert all(type(v) is torch.Tensor for values in saved["optimizer"]["state"].values() for v in values.values())
    assert "resuming from step 3" in pair(arguments, place)[0].out
    check_equal(place, whole)
    network, ours = load_model(str(run_folder(place))), checkpoint(place)["scheme"]
    for name, value in network.plain_state().items():
        assert torch.equal(value, ours[f"nodes.student.network.{name}"])


@pytest.mark.exhaustive
def test_a_run_resumes_with_sharded_weights_and_without(tmp_path: Path) -> None:
    arguments = ["scheme=self", "losses.feature=none", "optim.lr=0.01", *SMALL, "device=cpu"]
    split = [*arguments, "train.fsdp=true"]
    stopped = pair(split, tmp_path, SignalAtFile(signal.SIGTERM, 2, ("os.rename",)))
    assert [ended.code for ended in stopped] == [143, 143]
    alone = run(arguments, tmp_path, SignalAtFile(signal.SIGTERM, 3, ("os.rename",)))
    assert alone.code == 143
    assert "resuming from step 3" in alone.out
    assert [(ended.code, ended.err) for ended in pair(split, tmp_path)] == [(0, "")] * 2
    results = json.loads((run_folder(tmp_path) / "results.json").read_text())
    assert results["processes"] == 2
    assert {*results["early_exit"]["exits"]} == {"student", "student/exit1", "student/exit2", "student/exit3"}


REFUSED = {
    "one-process": (["train.fsdp=true"], "this is one process"),
    "sharded-teacher-alone": (["scheme=offline", "teacher.placement=sharded"], "this is one process"),
    "compile": (["train.fsdp=true", "train.compile=true"], "train.compile=true exclude each other"),
    "own-batch-norm": (["train.fsdp=true", "train.sync_bn=false"], "needs train.sync_bn=true"),
    "fp16": (["train.fsdp=true", "precision=fp16"], "precision=bf16 or fp32"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_split_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    arguments, words = REFUSED[name]
    ended = run(arguments, tmp_path)
    assert ended.code == 2
    assert words in one_line(ended)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["losses.response=ctkd"], "cannot shard scalar"),
        (["train.eval_batch_size=1"], "needs train.eval_batch_size of 2"),
    ],
)
def test_what_two_processes_cannot_split_is_told_once(arguments: list[str], words: str, tmp_path: Path) -> None:
    first, second = pair(["scheme=online", "train.fsdp=true", *SMALL, "device=cpu", *arguments], tmp_path)
    assert (first.code, second.code) == (2, 2)
    assert words in one_line(first)
    assert second.err == ""


def test_accelerates_own_fsdp_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kdschemes.config import Config
    from kdschemes.distributed.launch import start_processes
    from kdschemes.errors import UserError

    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UserError, match=r"FSDP.*train.fsdp=true"):
        start_processes(Config(device="cpu"))
    assert os.environ["ACCELERATE_USE_FSDP"] == "true"
