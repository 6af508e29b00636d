"""What several processes, checkpoints, signals and requeues cost: `python -m experiments.bench_cluster`.

The last part starts a private SLURM (`experiments.private_slurm`) and is left out where its programs are missing.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as kdschemes sets it, here before torch is loaded

import torch

from experiments.bench import REPOSITORY, build, timed, train_one_epoch
from experiments.private_slurm import PrivateSlurm, missing, private_slurm
from kdschemes.storage.checkpoint import CHECKPOINT

OFFLINE = ("scheme=offline", "model=convnet", "teacher=resnet56")
CHECKPOINTS = {
    "convnet, 1.2 M parameters": ("scheme=supervised", "model=convnet"),
    "two convnets (dml)": ("scheme=online", "model=convnet"),
    "ResNet-18, 11.2 M parameters": ("scheme=supervised", "model=resnet18_cifar"),
}
LONG = (
    "scheme=supervised",
    "device=cpu",
    "train.epochs=4000",
    "train.eval_every_epochs=4000",
    "train.log_every_steps=1",
)
"""A run on digits that does not end by itself while it is measured."""
WORKER = "epochs"


def bench_processes(batch_size: int, steps: int, rounds: int) -> None:
    """Print images/s of two processes with half of the threads each against one process with all, alternating."""
    threads = max(2, torch.get_num_threads())
    print(f"offline, {OFFLINE[2].partition('=')[2]} teaches the convnet, global batch {batch_size}, 32x32, gloo")
    speeds: dict[int, list[float]] = {1: [], 2: []}
    for number in range(rounds):
        for processes in (1, 2):
            speeds[processes].append(_speed(processes, threads // processes, batch_size, steps))
        ratio = speeds[2][-1] / speeds[1][-1]
        print(
            f"round {number + 1}: {speeds[1][-1]:.0f} and {speeds[2][-1]:.0f} images/s, ratio {ratio:.2f}", flush=True
        )
    one, two = (statistics.median(speeds[processes]) for processes in (1, 2))
    ratio = statistics.median(b / a for a, b in zip(speeds[1], speeds[2], strict=True))
    print(
        f"1 process x {threads} threads {one:.0f} images/s, 2 processes x {threads // 2} threads {two:.0f} images/s: "
        f"ratio {ratio:.2f}"
    )


def _speed(processes: int, threads: int, batch_size: int, steps: int) -> float:
    launch = [str(Path(sys.executable).with_name("accelerate")), "launch", "--num_processes", str(processes)]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    launch += ["--multi_gpu"] if processes > 1 else []
    command = [*launch, "-m", "experiments.bench_cluster", WORKER, *map(str, (batch_size, steps, threads))]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"a worker failed:\n{done.stderr}")
    return float(done.stdout.split()[-1])


def train_epochs(batch_size: int, steps: int, threads: int) -> None:
    """Train two epochs and print images/s of the second one: what each of the processes does."""
    overrides = (*OFFLINE, f"train.num_threads={threads}", "device=cpu")
    with tempfile.TemporaryDirectory() as folder:
        run = build("fp32", batch_size, steps, Path(folder), overrides)
        train_one_epoch([run], 0)
        seconds = timed(partial(train_one_epoch, [run], 1))
    if run.main:
        print(batch_size * steps / seconds)


def bench_checkpoints(rounds: int) -> None:
    """Print size of a checkpoint, and seconds to write it and to read it back."""
    for title, overrides in CHECKPOINTS.items():
        with tempfile.TemporaryDirectory() as folder:
            run = build("fp32", 32, 1, Path(folder), overrides)
            run._resume()
            train_one_epoch([run], 0)
            path = Path(folder) / CHECKPOINT
            written = [timed(run.save) for _ in range(rounds)]
            read = [timed(run._resume) for _ in range(rounds)]
            size = path.stat().st_size
            print(
                f"checkpoint, {title}: {size / 2**20:.1f} MiB, written in {statistics.median(written):.3f} s "
                f"({size / 2**20 / statistics.median(written):.0f} MiB/s, flushed to the disk), "
                f"read in {statistics.median(read):.3f} s",
                flush=True,
            )
            run.close(None)


def bench_signals(rounds: int) -> None:
    """Print seconds from SIGTERM in the middle of a training to the end of its process, with everything saved."""
    found = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "run.py", *LONG, f"output_dir={folder}"]
            process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL)
            _until(lambda place=Path(folder): _steps(place) > 20)  # type: ignore[misc]
            begun = time.perf_counter()
            process.send_signal(signal.SIGTERM)
            process.wait()
            found.append(time.perf_counter() - begun)
    print(f"from SIGTERM to the end of the process: {statistics.median(found):.2f} s ({_each(found)})", flush=True)


def bench_requeue(rounds: int) -> None:
    """Print seconds from a requeue to the first new step, on a private SLURM, and those of them in its queue."""
    if missing():
        print(f"requeue: not measured, no {', '.join(missing())} here")
        return
    with tempfile.TemporaryDirectory() as place, private_slurm(Path(place) / "cluster") as cluster:
        found = [_requeue(cluster, Path(place) / f"runs{number}") for number in range(rounds)]
    lost, queued = ([pair[which] for pair in found] for which in range(2))
    print(
        f"from `scontrol requeue` to the first new step: {statistics.median(lost):.1f} s ({_each(lost)}), of which in "
        f"SLURM's queue {statistics.median(queued):.1f} s; no step is computed twice"
    )


def _requeue(cluster: PrivateSlurm, output: Path) -> tuple[float, float]:
    programs = f"{Path(sys.executable).parent}{os.pathsep}{cluster.environment['PATH']}"
    variables = {"KDSCHEMES_SCRIPTS": str(REPOSITORY), "GLOO_SOCKET_IFNAME": "lo", "PATH": programs}
    output.mkdir()
    script = str(REPOSITORY / "slurm" / "train.sbatch")
    job = cluster.run("sbatch", "--parsable", script, *LONG, f"output_dir={output}", folder=output, variables=variables)
    _until(lambda: _steps(output) > 20)
    cluster.run("scontrol", "requeue", job)
    begun = time.perf_counter()
    _until(lambda: any(output.glob("*/interrupted")))
    done = json.loads(next(output.glob("*/interrupted")).read_text())["step"]
    _until(lambda: cluster.job(job)["JobState"] == "PENDING")
    waiting = time.perf_counter()
    _until(lambda: cluster.job(job)["JobState"] == "RUNNING")
    running = time.perf_counter()
    _until(lambda: _steps(output) > done)
    lost = time.perf_counter() - begun
    cluster.run("scancel", job)
    return lost, running - waiting


def _steps(output: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in output.glob("*/timing.jsonl"))


def _until(done: Callable[[], object]) -> None:
    end = time.monotonic() + 300
    while not done():
        if time.monotonic() > end:
            raise SystemExit("gave up waiting")
        time.sleep(0.02)


def _each(values: Sequence[float]) -> str:
    return " ".join(f"{value:.2f}" for value in values)


PARTS = ("processes", "checkpoints", "signals", "requeue")


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and run the parts that it names."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == [WORKER]:
        train_epochs(*map(int, given[1:]))
        return
    parser = argparse.ArgumentParser(prog="python -m experiments.bench_cluster", description=__doc__)
    parser.add_argument("--only", action="append", choices=PARTS, help="what is measured; may be repeated [all]")
    parser.add_argument("--batch-size", type=int, default=128, help="processes: samples of a step")
    parser.add_argument("--steps", type=int, default=16, help="processes: steps of an epoch")
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds")
    options = parser.parse_args(given)
    parts = options.only or PARTS
    if "processes" in parts:
        bench_processes(options.batch_size, options.steps, options.rounds)
    if "checkpoints" in parts:
        bench_checkpoints(options.rounds)
    if "signals" in parts:
        bench_signals(options.rounds)
    if "requeue" in parts:
        bench_requeue(options.rounds)


if __name__ == "__main__":
    main()
