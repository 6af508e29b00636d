"""Accelerate's configuration files: those for the CPU start real runs, all start the processes that they name."""

from __future__ import annotations

import json
import re
import shlex
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType

from kdschemes.config.load import load_config
from tests import REPOSITORY
from tests.training.test_loop import SMALL

pytestmark = pytest.mark.slurm

FOLDER = REPOSITORY / "slurm" / "accelerate"
PROCESSES = {
    "one_cpu": (1, 1),
    "two_cpu_processes": (1, 2),
    "one_gpu": (1, 1),
    "eight_gpus": (1, 8),
    "two_nodes_of_eight_gpus": (2, 16),
    "fsdp2": (1, 8),
}
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch"]
RANKS = """
import os, sys
keys = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
open(os.path.join(sys.argv[1], os.environ.get("RANK", "0")), "w").write(" ".join(os.environ.get(k, "-") for k in keys))
assert os.environ.get("ACCELERATE_USE_FSDP", "false") == "false"
"""


def command(name: str) -> list[str]:
    """Return the words of the command in a file's header."""
    header = "".join(line[1:] for line in (FOLDER / f"{name}.yaml").read_text().splitlines(True) if line[0] == "#")
    (found,) = re.findall(r"accelerate launch(?:[^\n\\]|\\\n)*", header)
    return shlex.split(found.replace("\\\n", " "))


def test_every_file_is_known() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == {*PROCESSES, "job"}  # the batch scripts have their own


@pytest.mark.parametrize("name", PROCESSES)
def test_files_read_as_they_say(name: str) -> None:
    path = FOLDER / f"{name}.yaml"
    read, (machines, processes) = load_config_from_file(str(path)), PROCESSES[name]
    assert (read.num_machines, read.num_processes, read.use_cpu) == (machines, processes, "cpu" in name)
    assert read.distributed_type == (DistributedType.NO if processes == 1 else DistributedType.MULTI_GPU)
    assert "mixed_precision" not in yaml.safe_load(path.read_text())
    words = command(name)
    assert words[:4] == ["accelerate", "launch", "--config_file", f"slurm/accelerate/{name}.yaml"]
    config = load_config(words[words.index("run.py") + 1 :], recipes=REPOSITORY / "experiments")
    assert config.train.fsdp == (name == "fsdp2")
    assert config.device == ("cpu" if "cpu" in name else "auto")


def ranks(name: str, *machines: list[str]) -> dict[str, str]:
    """Launch a script that does no more than write down its ranks; one launcher a machine, all of them on this one."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "ranks.py"
        script.write_text(RANKS)
        file = ["--config_file", str(FOLDER / f"{name}.yaml")]
        out = Path(folder) / "out"
        out.mkdir()
        started = [subprocess.Popen([*LAUNCH, *file, *machine, str(script), str(out)]) for machine in machines]
        assert [process.wait(120) for process in started] == [0] * len(machines)
        return {path.name: path.read_text() for path in out.iterdir()}


@pytest.mark.parametrize("name", ["eight_gpus", "fsdp2"])
def test_files_for_a_machine_of_gpus_start_a_process_a_gpu(name: str) -> None:
    assert ranks(name, []) == {str(rank): f"{rank} {rank} 8 8" for rank in range(8)}


def test_the_file_for_two_nodes_starts_eight_processes_on_each() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    there = ["--main_process_ip", "127.0.0.1", "--main_process_port", str(port)]
    found = ranks("two_nodes_of_eight_gpus", *(["--machine_rank", str(number), *there] for number in (0, 1)))
    assert found == {str(rank): f"{rank} {rank % 8} 16 8" for rank in range(16)}


@pytest.mark.parametrize(
    ("name", "processes"), [pytest.param("one_cpu", 1, marks=pytest.mark.exhaustive), ("two_cpu_processes", 2)]
)
def test_files_for_the_cpu_train(name: str, processes: int, tmp_path: Path) -> None:
    words = [*LAUNCH, *command(name)[2:]]
    for relative in (f"slurm/accelerate/{name}.yaml", "run.py"):
        words[words.index(relative)] = str(REPOSITORY / relative)
    short = [*SMALL, "train.epochs=1", f"output_dir={tmp_path}"]
    done = subprocess.run([*words, *short], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    (results,) = tmp_path.glob("*/results.json")
    assert json.loads(results.read_text())["processes"] == processes
