"""What Accelerate takes from the environment is honored or refused by name, and nothing that it reads is overlooked."""

from __future__ import annotations

import re
from pathlib import Path

import accelerate
import pytest
import torch
from accelerate.state import AcceleratorState

from kdschemes import cli
from kdschemes.config import Config
from kdschemes.config.load import load_config
from kdschemes.distributed import environment
from kdschemes.distributed.environment import check_environment, uses_cpu
from kdschemes.distributed.launch import start_processes
from kdschemes.errors import UserError

LAUNCHER = {
    "ACCELERATE_USE_CPU": "False",
    "ACCELERATE_MIXED_PRECISION": "no",
    "ACCELERATE_DYNAMO_BACKEND": "NO",
    "ACCELERATE_DYNAMO_MODE": "default",
    "ACCELERATE_DYNAMO_USE_FULLGRAPH": "False",
    "ACCELERATE_DYNAMO_USE_DYNAMIC": "False",
    "ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION": "False",
}
"""What `accelerate launch` always sets, by default."""

WITH_ANOTHER = {
    "ACCELERATE_USE_DEEPSPEED": r"ACCELERATE_(DEEPSPEED_\w*|CONFIG_DS_FIELDS)",
    "ACCELERATE_DYNAMO_BACKEND": r"ACCELERATE_DYNAMO_\w*",
    "ACCELERATE_MIXED_PRECISION": r"ACCELERATE_FP8_\w*",
    "ACCELERATE_USE_PARALLELISM_CONFIG": r"ACCELERATE_ALLOW_CP_STANDALONE",
    "ACCELERATE_USE_SAGEMAKER": r"ACCELERATE_SAGEMAKER_DISTRIBUTED_TYPE",
}
"""What has an effect only together with something that is refused."""

HARMLESS = {
    *("ACCELERATE_LOG_LEVEL", "ACCELERATE_ENABLE_RICH", "ACCELERATE_DEBUG_RDV_FILE", "ACCELERATE_DEBUG_MODE"),
    *("ACCELERATE_CPU_AFFINITY", "ACCELERATE_INIT_INCLUDE_BUFFERS", "ACCELERATE_BYPASS_DEVICE_MAP"),
    *("ACCELERATE_USE_CPU", "ACCELERATE_NUM_PROCESSES", "ACCELERATE_"),
}
"""What does not change what a run computes, or is honored."""


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in environment._settings(Config(device="cuda")):
        monkeypatch.delenv(name, raising=False)


def config(*words: str) -> Config:
    return load_config(words, recipes=Path())


@pytest.mark.parametrize("words", [[], ["precision=bf16"], ["train.grad_accum_steps=4"], ["device=cuda"]])
def test_what_the_launcher_always_sets_is_no_setting(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in LAUNCHER.items():
        monkeypatch.setenv(name, value)
    check_environment(config(*words))
    assert not uses_cpu()


@pytest.mark.parametrize(
    ("name", "value", "words", "cure"),
    [
        ("GRADIENT_ACCUMULATION_STEPS", "4", [], r"set train\.grad_accum_steps=4"),
        ("GRADIENT_ACCUMULATION_STEPS", "auto", ["train.grad_accum_steps=4"], r"set train\.grad_accum_steps=auto"),
        ("GRADIENT_CLIPPING", "2.0", ["optim.clip_grad_norm=1"], r"set optim\.clip_grad_norm=2\.0"),
        ("MIXED_PRECISION", "bf16", [], r"set precision=bf16 .*, or launch with --mixed_precision no"),
        ("MIXED_PRECISION", "BF16", ["precision=fp16"], r"set precision=bf16"),
        ("MIXED_PRECISION", "fp8", ["precision=bf16"], r"fp32, bf16 or fp16"),
        ("DYNAMO_BACKEND", "INDUCTOR", ["train.compile=true"], r"--dynamo_backend no"),
        ("DOWNCAST_BF16", "1", [], "TPU"),
        ("TORCH_DEVICE", "cuda:1", ["device=cuda"], "CUDA_VISIBLE_DEVICES"),
        ("TORCH_DEVICE", "cpu", [], "use device=cpu"),
        ("USE_CPU", "True", ["device=cuda"], r"contradicts device=cuda"),
        *((f"USE_{name}", "true", [], f"{name} .*train.fsdp=true") for name in environment.WRAPPERS),
    ],
)
def test_what_is_not_honored_is_refused_by_its_name(
    name: str, value: str, words: list[str], cure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"ACCELERATE_{name}", value)
    with pytest.raises(UserError, match=rf"^ACCELERATE_{name}={value} \(from .*\) is not honored: .*{cure}") as refused:
        start_processes(config(*words))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("GRADIENT_ACCUMULATION_STEPS", "4", ["train.grad_accum_steps=4"]),
        ("GRADIENT_CLIPPING", "1.0", ["optim.clip_grad_norm=1"]),
        ("MIXED_PRECISION", "bf16", ["precision=bf16"]),
        ("TORCH_DEVICE", "cpu", ["device=cpu"]),
        ("USE_CPU", "true", []),
        ("USE_FSDP", "false", []),
        ("CPU_AFFINITY", "1", []),
    ],
)
def test_what_says_the_same_as_the_run_is_honored(
    name: str, value: str, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"ACCELERATE_{name}", value)
    check_environment(config(*words))


def test_the_gradient_is_not_divided_by_accelerate_too(monkeypatch: pytest.MonkeyPatch) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    threads = torch.get_num_threads()
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    accelerator = start_processes(config("train.grad_accum_steps=4", "train.num_threads=1"))
    torch.set_num_threads(threads)
    assert (accelerator.gradient_accumulation_steps, accelerator.device.type) == (1, "cpu")


@pytest.mark.parametrize("name", environment.FLAGS)
def test_a_flag_that_is_neither_true_nor_false_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "perhaps")
    with pytest.raises(UserError, match=f"^{name}=perhaps must be true or false"):
        check_environment(Config())


@pytest.mark.parametrize("rank", ["0", "1"])
def test_every_process_exits_and_the_first_one_says_why(
    rank: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    assert cli.train([f"output_dir={tmp_path / 'runs'}"]) == 2
    out, err = capsys.readouterr()
    assert (out.count("\n"), err.count("\n")) == ((1, 1) if rank == "0" else (0, 0))
    assert not out or out.startswith("starting scheme=online ")
    assert not (tmp_path / "runs").exists()


def test_no_variable_that_accelerate_reads_is_overlooked() -> None:
    """A new version of Accelerate that reads more has to be looked at."""
    source = Path(accelerate.__file__).parent
    found = {
        name for file in source.rglob("*.py") for name in re.findall(r"[\"'](ACCELERATE_\w*)[\"']", file.read_text())
    }
    refused = environment._settings(Config(device="cuda"))
    assert WITH_ANOTHER.keys() <= refused.keys()
    without = re.compile("|".join(WITH_ANOTHER.values()))
    assert {name for name in found - refused.keys() - HARMLESS if not without.fullmatch(name)} == set()
