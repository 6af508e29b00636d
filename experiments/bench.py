"""Benchmarks that print ratios measured in one run: `python -m experiments.bench step`, or another name."""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as kdschemes sets it, here before torch is loaded

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor

from kdschemes.config import Config
from kdschemes.config.load import load_config
from kdschemes.core.cross_entropy import cross_entropy
from kdschemes.core.distillation import Distillation
from kdschemes.core.frozen import Frozen
from kdschemes.core.nodes import Network
from kdschemes.data import DataModule, views
from kdschemes.data.augment import Augmentation
from kdschemes.data.views import Stream
from kdschemes.distributed.launch import start_processes
from kdschemes.evaluation.cost import peak_memory
from kdschemes.losses.feature.nst import nst
from kdschemes.losses.relation.rkd import rkd_angle
from kdschemes.schemes import build_scheme
from kdschemes.seeding import integers, uniform
from kdschemes.tracking.console import Reporter
from kdschemes.training.loop import train_epoch
from kdschemes.training.pack import Pack
from kdschemes.training.run import Run
from kdschemes.training.signals import StopSignal

REPOSITORY = Path(__file__).resolve().parents[1]
PRECISIONS = ("fp32", "bf16")
PADDING, SIDE, CLASSES = 4, 32, 100


class RandomImages:
    """CIFAR-sized random images on a device, viewed as CIFAR's are (crop with padding, flip, normalize)."""

    channels, image_size, kept, digest = 3, SIDE, 1.0, "random"
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.25, 0.25, 0.25)

    def __init__(self, count: int, device: torch.device, augment: Augmentation) -> None:
        self.augment = augment
        side = SIDE + 2 * PADDING
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)
        self.images, self.labels = images.to(device), {"train": torch.arange(count, device=device) % CLASSES}
        self.classes = [str(label) for label in range(CLASSES)]

    def views(self, epoch: int, batches: Iterable[Tensor], number: int = 0) -> Iterator[Tensor]:
        """Yield the random views of batches of positions."""
        seed = views.view_seed(0, number)
        for batch in batches:
            index = batch.to(self.images.device)
            row, column = (integers(seed, epoch, index, s, 2 * PADDING + 1) for s in (Stream.ROW, Stream.COLUMN))
            flip = uniform(seed, epoch, index, Stream.FLIP) < 0.5
            pixels = views.crop(self.images, index, row, column, flip, SIDE)
            yield views.normalize(self.augment(pixels, batch, seed=seed, epoch=epoch), self.mean, self.std)

    def plain(self, array: str, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield batches of positions as they are."""
        return self.views(0, batches)


OFFLINE = ("scheme=offline", "model=convnet", "teacher=resnet18_cifar")
"""The benchmark's run: ResNet-18 teaches the 1.2 M convnet, batch norm and all, SGD with momentum."""


def build(precision: str, batch_size: int, steps: int, folder: Path, overrides: Sequence[str] = OFFLINE) -> Run:
    """Return our training loop over `steps` steps of random images an epoch."""
    AcceleratorState._reset_state(reset_partial_state=True)
    common = ["data=cifar100", "train.epochs=1000", f"precision={precision}", f"train.batch_size={batch_size}"]
    config = load_config([*overrides, *common], recipes=REPOSITORY / "experiments")
    accelerator = start_processes(config)
    data = random_data(config, batch_size * steps, accelerator.device)
    scheme = build_scheme(config, data.spec)
    return built(config, accelerator, data, scheme, folder)


def random_data(config: Config, count: int, device: torch.device) -> DataModule:
    """Return `count` random images to train on, in batches as a configuration describes."""
    source = RandomImages(count, device, Augmentation.of(config.data))
    return DataModule(
        source=source,
        options=config.data,
        labels=source.labels,
        positions={"train": torch.arange(count), "val": torch.arange(0), "test": torch.arange(0)},
        seed=0,
        device=device,
        memory_format=torch.channels_last if config.train.channels_last else torch.contiguous_format,
    )


def built(config: Config, accelerator: Accelerator, data: DataModule, scheme: Distillation, folder: Path) -> Run:
    """Return a run at its first step that neither logs nor saves."""
    run = Run(config, accelerator, data, scheme, folder, console=Reporter(show=False))
    run.build()
    return run


def train_one_epoch(runs: Sequence[Run], number: int) -> None:
    """Train an epoch of runs that share their batches."""
    for run in runs:
        run.state.step = number * run.steps_per_epoch
    train_epoch(Pack(runs, StopSignal(), Reporter(show=False)), number, 0)


def bare_parts(run: Run) -> dict[str, Callable[[], None]]:
    """Return the parts of a step by themselves: teacher forward, student forward and backward, optimizer."""
    teacher, student = (run.scheme.node_of(name) for name in ("teacher", "student"))
    assert isinstance(teacher, Frozen)
    assert isinstance(student, Network)
    size = run.config.train.batch_size
    steps = run.data.train_steps(0, batch_size=size, grad_accum_steps=1, rank=0, world=1, drop_last=False)
    batch = next(steps)[0]

    def teach() -> None:
        with torch.no_grad(), run.accelerator.autocast():
            teacher.network(batch.images)

    def learn() -> None:
        with run.accelerator.autocast():
            logits = student.network(batch.images)
        run.accelerator.backward(cross_entropy(logits, batch.labels))

    def update() -> None:
        run.optimizer.step()
        run.optimizer.zero_grad(set_to_none=True)

    return {"teacher forward": teach, "student forward and backward": learn, "optimizer": update}


def bench_step(batch_size: int, steps: int, rounds: int) -> None:
    """Print images/s of one offline step against the bare sum of its parts, interleaved in one process."""
    print(
        f"offline step: ResNet-18 teacher, 1.2 M convnet, batch {batch_size}, {SIDE}x{SIDE}, {rounds} rounds",
        flush=True,
    )
    for precision in PRECISIONS:
        with tempfile.TemporaryDirectory() as folder:
            run = build(precision, batch_size, steps, Path(folder))
            parts = bare_parts(run)
            ratios, ours, bare = [], [], []
            shares: dict[str, list[float]] = {name: [] for name in parts}
            for number in range(rounds + 1):
                whole = timed(partial(train_one_epoch, [run], number))
                seconds = {name: sum(timed(part) for _ in range(steps)) for name, part in parts.items()}
                if number == 0:
                    continue
                total = sum(seconds.values())
                ours.append(batch_size * steps / whole)
                bare.append(batch_size * steps / total)
                ratios.append(total / whole)
                for name in parts:
                    shares[name].append(batch_size * steps / seconds[name])
            print(
                f"{precision}: ours {statistics.median(ours):.0f} images/s, bare sum {statistics.median(bare):.0f} "
                f"images/s, ratio {100 * statistics.median(ratios):.1f} % (rounds "
                + " ".join(f"{100 * ratio:.1f}" for ratio in ratios)
                + ")"
            )
            for name, speeds in shares.items():
                print(f"      {name}: {statistics.median(speeds):.0f} images/s")
        peaks = {what: peak_of_process(what, precision, batch_size) for what in ("ours", "parts")}
        print(
            f"      peak memory: ours {peaks['ours'] / 2**20:.0f} MiB, parts {peaks['parts'] / 2**20:.0f} MiB, "
            f"ratio {peaks['ours'] / peaks['parts']:.2f}",
            flush=True,
        )


ONE = ("scheme=supervised",)
SCHEMES: dict[str, tuple[tuple[str, ...], int]] = {
    "2 peers (dml)": (("scheme=online", "scheme.peers=2"), 2),
    "3 peers (dml)": (("scheme=online", "scheme.peers=3"), 3),
    "3 peers on one trunk (dml)": (("scheme=online", "scheme.peers=3", "scheme.topology=shared_trunk"), 3),
    "3 linear exits, cross-entropy": (
        ("scheme=supervised", "method=deep_supervision", "scheme.exit_head=linear"),
        1,
    ),
    "3 bottleneck exits, cross-entropy": (("scheme=supervised", "method=deep_supervision"), 1),
    "3 bottleneck exits (byot)": (("scheme=self", "method=byot"), 1),
}
"""By title the overrides, and with how many plain runs of the same network the cost is compared."""


def bench_schemes(model: str, batch_size: int, steps: int, rounds: int) -> None:
    """Print the time of a step with peers or exits over that of as many plain runs, interleaved in one process."""
    print(f"{model}, batch {batch_size}, {SIDE}x{SIDE}, fp32, {rounds} rounds, relative to a plain run", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        plain = build("fp32", batch_size, steps, Path(folder), (*ONE, f"model={model}"))
        for title, (overrides, count) in SCHEMES.items():
            run = build("fp32", batch_size, steps, Path(folder), (*overrides, f"model={model}"))
            ratios, speeds = [], []
            for number in range(rounds + 1):
                one, taken = (timed(partial(train_one_epoch, [each], number)) for each in (plain, run))
                if number:
                    ratios.append(taken / (count * one))
                    speeds.append(batch_size * steps / taken)
            runs = "1 run" if count == 1 else f"{count} independent runs"
            print(
                f"{title}: {statistics.median(ratios):.2f} times {runs} "
                f"(rounds {' '.join(f'{ratio:.2f}' for ratio in ratios)}; {statistics.median(speeds):.0f} images/s)",
                flush=True,
            )


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that `work` takes."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_of_process(what: str, precision: str, batch_size: int) -> int:
    """Return the peak memory in bytes of a fresh process that runs three steps, or the parts three times."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_of, (what, precision, batch_size))


def _peak_of(what: str, precision: str, batch_size: int) -> int:
    with tempfile.TemporaryDirectory() as folder:
        run = build(precision, batch_size, 3, Path(folder))
        parts = bare_parts(run)
        if what == "ours":
            train_one_epoch([run], 0)
        else:
            for part in list(parts.values()) * 3:
                part()
        return int(peak_memory(run.device))


def added_memory(work: Callable[[], object]) -> int:
    """Return the bytes that `work` adds at most to this process (Linux), or to the tensors on the GPU."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return int(torch.cuda.max_memory_allocated()) - before
    Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    before = int(status.partition("VmRSS:")[2].split()[0]) * 1024
    work()
    return int(peak_memory(torch.device("cpu"))) - before


def naive_angle(student: Tensor, teacher: Tensor) -> Tensor:
    """Return RKD's angle loss with all N^3 cosines and N^2 difference vectors in one tensor."""

    def cosines(x: Tensor) -> Tensor:
        unit = torch.nn.functional.normalize(x[None] - x[:, None], dim=2)
        return unit @ unit.mT

    return torch.nn.functional.smooth_l1_loss(cosines(student), cosines(teacher))


def naive_nst(student: Tensor, teacher: Tensor) -> Tensor:
    """Return NST with the products of all pairs of channels at all positions in one tensor."""
    s, t = (torch.nn.functional.normalize(x.flatten(2), dim=2) for x in (student, teacher))

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a[:, None] * b[:, :, None]).sum(3).square().mean()

    return kernel(t, t) + kernel(s, s) - 2 * kernel(s, t)


PAIRWISE: dict[str, tuple[tuple[int, ...], Callable[..., Tensor], Callable[..., Tensor]]] = {
    "rkd angle, N=256, D=256": ((256, 256), rkd_angle, naive_angle),
    "nst, N=256, C=256, 4x4": ((256, 256, 4, 4), nst, naive_nst),
}


def _cost_of(name: str, which: int) -> tuple[float, int, float]:
    """Return seconds and bytes of one forward and backward pass, and the value, in this process."""
    shape, *functions = PAIRWISE[name]
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(shape, generator=generator) for _ in range(2))
    student.requires_grad_()
    small = tuple(min(size, 8) for size in shape)
    torch.autograd.backward(functions[which](torch.randn(small, requires_grad=True), torch.randn(small)))
    found: list[float] = []

    def work() -> None:
        value = functions[which](student, teacher)
        torch.autograd.backward(value)
        found.append(value.item())

    seconds: list[float] = []
    peak = added_memory(lambda: seconds.append(timed(work)))
    return seconds[0], peak, found[0]


def bench_pairwise() -> None:
    """Print time and peak memory of the losses over pairs, ours next to the form of their authors."""
    print("forward and backward, float32, each in a fresh process")
    for name in PAIRWISE:
        costs = []
        for which in range(2):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                costs.append(pool.apply(_cost_of, (name, which)))
        (time_ours, peak_ours, value_ours), (time_naive, peak_naive, value_naive) = costs
        print(
            f"{name}: memory {peak_ours / 2**20:.0f} MiB against {peak_naive / 2**20:.0f} MiB "
            f"(1/{peak_naive / peak_ours:.0f}), time {time_ours:.2f} s against {time_naive:.2f} s "
            f"({time_ours / time_naive:.2f}); values {value_ours:.8g} and {value_naive:.8g}",
            flush=True,
        )


def bench_start() -> None:
    """Print the seconds from the command to the end of the first step, with a cold page cache and a warm one."""
    roots = [Path(sys.prefix), REPOSITORY / "kdschemes"]
    forgotten = sum(_forget(root) for root in roots)
    print(f"from `python run.py scheme=online` to its first step ({forgotten} files dropped from the cache before):")
    for label in ("cold disk", "warm disk", "warm disk"):
        print(f"{label}: {_until_first_step():.1f} s", flush=True)


def _forget(root: Path) -> int:
    count = 0
    for path in root.rglob("*"):
        with contextlib.suppress(OSError):
            if path.is_file() and not path.is_symlink():
                file = os.open(path, os.O_RDONLY)
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(file)
                count += 1
    return count


def _until_first_step() -> float:
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        command = [sys.executable, "run.py", "scheme=online", "train.log_every_steps=1", f"output_dir={folder}"]
        process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL)
        try:
            while not any(path.stat().st_size for path in Path(folder).glob("*/timing.jsonl")):
                if process.poll() is not None:
                    raise SystemExit(f"the run ended with {process.returncode} before its first step")
                time.sleep(0.01)
            return time.perf_counter() - start
        finally:
            process.kill()
            process.wait()


def bench_views(batch_size: int, rounds: int) -> None:
    """Print images/s of the view of a batch on one thread, without and with each augmentation of its bytes."""
    torch.set_num_threads(1)
    batches = list(torch.arange(batch_size * 16).chunk(16))
    for name, augment in {
        "": Augmentation(),
        "randaugment, ": Augmentation("randaugment"),
        "trivialaugment, ": Augmentation("trivialaugment"),
        "color_jitter, ": Augmentation(jitter=(0.4, 0.4, 0.4)),
    }.items():
        source = RandomImages(batch_size * 16, torch.device("cpu"), augment)
        seconds = [timed(partial(deque, source.views(epoch, batches), 0)) for epoch in range(rounds + 1)]
        speed = batch_size * 16 / statistics.median(seconds[1:])
        print(f"crop, flip, {name}normalize, one thread, batch {batch_size}: {speed:.0f} images/s")


def main() -> None:
    """Read the command line and run one benchmark."""
    parser = argparse.ArgumentParser(prog="python -m experiments.bench", description=__doc__)
    parser.add_argument("what", choices=("step", "schemes", "start", "views", "pairwise"))
    parser.add_argument("--model", default="convnet", help="schemes: the network of a peer")
    parser.add_argument("--batch-size", type=int, default=128, help="samples of a step")
    parser.add_argument("--steps", type=int, default=8, help="steps of a round")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds, after one that is not counted")
    options = parser.parse_args()
    if options.what == "step":
        bench_step(options.batch_size, options.steps, options.rounds)
    elif options.what == "schemes":
        bench_schemes(options.model, options.batch_size, options.steps, options.rounds)
    elif options.what == "start":
        bench_start()
    elif options.what == "pairwise":
        bench_pairwise()
    else:
        bench_views(options.batch_size, options.rounds)


if __name__ == "__main__":
    main()
