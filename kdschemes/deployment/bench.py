"""`kdschemes bench`: teachers, students, exits and int8 side by side: size, speed, memory, accuracy."""

from __future__ import annotations

import dataclasses
import json
import math
import multiprocessing
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdschemes.core.frozen import Frozen
from kdschemes.data import DataModule
from kdschemes.deployment.bench_chart import chart_png
from kdschemes.deployment.export import MOST_IMAGES, held_out, write_checked
from kdschemes.deployment.formats import ONNX, Form
from kdschemes.deployment.opened import CPU, Trained, open_network, open_run
from kdschemes.deployment.variants import Variant, memory_of
from kdschemes.errors import UserError
from kdschemes.evaluation.early_exit import dynamic_macs
from kdschemes.models import count_macs, count_parameters, save_exits, save_weights
from kdschemes.models.exits import stop_at
from kdschemes.models.weights import EXITS
from kdschemes.storage.atomic import atomic_write
from kdschemes.storage.naming import WEIGHTS
from kdschemes.storage.results import plain
from kdschemes.tracking.tables import count_text, text_table

BLOCKS, ROUNDS = 4, 15
"""Each variant is timed `BLOCKS * ROUNDS` times per place, in turns with all others."""

BATCHES, CUDA_BATCHES = (1, 8, 32, 128), (1, 8, 32, 128, 512)

CHECKED = 1_000
"""Images on which an ONNX form is compared with its network before it is measured."""

PASSES = 3
"""Times that each batch size is timed; the fastest counts."""

LONGEST = 4.0
"""Seconds of a batch after which larger ones are not tried."""

COLUMNS = (
    *("network", "on", "parameters", "MACs", "file MB", "top-1 %"),
    *("fastest ms", "p50 ms", "p95 ms", "images/s (batch)", "memory MB"),
)


@dataclass(frozen=True)
class Place:
    """Where variants run: a device and, on the CPU, the number of threads."""

    name: str
    device: torch.device
    threads: int | None


def bench(
    runs: Sequence[Path], overrides: Sequence[str] = (), *, output: Path | None = None, images: int = MOST_IMAGES
) -> str:
    """Measure finished runs side by side; return the table, and write it with a picture into `output`.

    Everything is measured in turns: each variant is timed on one image after the others, on one thread, then on all,
    then on the GPU, several times over. Ratios hold for a machine that is busy all the while; times do not.

    Raises:
        UserError: a run has not finished, its data are missing, or runs are of different data.
    """
    with tempfile.TemporaryDirectory() as folder:
        trained = [open_network(run, overrides) for run in runs]
        for one in trained:
            if one.results is None and one.config is not None:
                raise UserError(f"{one.source} has not finished: bench needs finished runs")
        opened = [held_out(one, overrides) for one in trained]
        data = opened[0]
        for one, own in zip(trained, opened, strict=True):
            if own.multi_label:
                raise UserError(f"{one.source} has several labels per image: bench compares the top-1 of one label")
            if own.digest != data.digest:
                raise UserError(f"{one.source} and {trained[0].source} have different images: compare runs on the same")
        variants, notes = _variants(trained, data, overrides, Path(folder))
        rows = _measured(variants, data, images)
    threads = torch.get_num_threads()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    about = (
        f"{data.options.name}, {min(images, data.sizes['test']):,} test images; {platform.machine()}, {threads} "
        f"threads, load {load:.1f}; latency of one image over {BLOCKS * ROUNDS} turns in which all others follow"
    )
    busy = load > (os.cpu_count() or 1)
    if busy:
        notes.append("other programs were running: p50 and p95 are not those of a quiet machine, `fastest` is nearer")
    table = _table(rows)
    text = "\n".join([about, text_table(COLUMNS, table, left=COLUMNS[:2]), *notes])
    if output is None:
        return text
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{output} cannot be written ({error.strerror}): choose another folder") from error
    lines = ["| " + " | ".join(row) + " |" for row in [COLUMNS, ["---"] * len(COLUMNS), *table]]
    page = "\n".join([about + ".", "", *lines, "", *notes, "", "![](bench.png)", ""])
    numbers = json.dumps(plain({"about": about, "notes": notes, "rows": rows}), indent=2)
    atomic_write(output / "bench.json", numbers.encode())
    atomic_write(output / "bench.md", page.encode())
    atomic_write(output / "bench.png", chart_png(rows, fastest=busy))
    return f"{text}\n{output}/bench.json, bench.md, bench.png"


# ------------------------------------------------------------------------------------------------------------ variants


def _variants(
    trained: Sequence[Trained], data: DataModule, overrides: Sequence[str], folder: Path
) -> tuple[list[Variant], list[str]]:
    """Return what is compared, each in files, and lines about what is not."""
    found: list[Variant] = []
    notes: list[str] = []
    seen: set[bytes] = set()
    several = len(trained) > 1
    for number, one in enumerate(trained, start=1):
        networks, why = _networks(one, overrides)
        notes += why
        for role, network in networks:
            path = folder / f"{number}-{role}"
            save_weights(network.network, path, metadata=network.metadata)
            content = (path / WEIGHTS).read_bytes()
            if content in seen:
                continue
            seen.add(content)
            own = network.network.spec.name
            label = own if network.config is None else f"{role} {own}"
            label += f" (run {number})" if several and network.config is not None and role != "teacher" else ""
            found += _forms(network, label, data, path, notes)
    if several:
        notes += [f"run {number}: {one.source}" for number, one in enumerate(trained, start=1)]
    return found, notes


def _networks(trained: Trained, overrides: Sequence[str]) -> tuple[list[tuple[str, Trained]], list[str]]:
    """Return the teacher's network, if there is one, and the reported one by their roles."""
    own = [(trained.head, trained)]
    teacher = (trained.results or {}).get("teacher")
    if teacher is None:
        return own, []
    try:
        node = open_run(trained.source, overrides).scheme.node_of(teacher)
    except UserError as error:
        return own, [f"the teacher is not measured: {error}"]
    if not isinstance(node, Frozen):
        return own, [f"the teacher of {trained.source} is not one network: it is not measured"]
    found = dataclasses.replace(trained, head=str(teacher), network=node.network, exits=None)
    return [(str(teacher), found), *own], []


def _forms(trained: Trained, label: str, data: DataModule, path: Path, notes: list[str]) -> list[Variant]:
    """Return the forms of a network: in torch, its exits, as ONNX and in 8 bits."""
    images = data.spec.input
    trained.network.accept(images)
    parameters, macs = count_parameters(trained.network), count_macs(trained.network, data.channels, data.image_size)
    size = (path / WEIGHTS).stat().st_size
    found = [Variant(label, label, "torch", path, images, parameters, macs, size)]
    if trained.exits is not None:
        found += _exits(trained, label, data, path)
    if any(find_spec(name) is None for name in ("onnx", "onnxruntime", "onnxscript")):
        line = 'ONNX and int8 are not measured: pip install "kdschemes[export]"'
        notes += [line] if line not in notes else []
        return found
    for int8 in (False, True):
        name, place = f"{label}, {'int8' if int8 else 'onnx'}", path.with_name(f"{path.name}-{int8}")
        form = Form("onnx", inside=False, int8=int8)
        try:
            place.mkdir()
            write_checked(dataclasses.replace(trained, exits=None), form, data, place, images=CHECKED, adapted=True)
        except UserError as error:
            notes.append(f"{name} is not measured: {error}")
            continue
        size = (place / ONNX).stat().st_size
        found.append(Variant(name, label, "int8" if int8 else "onnx", place / ONNX, images, parameters, macs, size))
    return found


def _exits(trained: Trained, label: str, data: DataModule, path: Path) -> list[Variant]:
    assert trained.exits is not None
    save_exits(trained.exits, path)
    results = trained.results or {}
    images, costs = data.spec.input, results.get("cost", {})
    size = sum((path / name).stat().st_size for name in (WEIGHTS, EXITS))
    names = list(trained.exits.exit_stages)
    macs = dynamic_macs(trained.exits, data.channels, data.image_size)
    found = []
    for number, name in enumerate(names):
        parameters = costs.get(f"{trained.head}/{name}", {}).get("parameters")
        stop = tuple(stop_at(number, len(names) + 1))
        variant = f"{label}, {name}"
        found.append(Variant(variant, label, "torch", path, images, parameters, macs[number], size, stop))
    budgets = (results.get("early_exit") or {}).get("budgets")
    if budgets and trained.which == "last":
        middle = budgets["middle"]
        limits = tuple(float(value) for value in middle["thresholds"].values())
        name, parameters = f"{label}, early exit", sum(p.numel() for p in trained.exits.parameters())
        found.append(Variant(name, label, "torch", path, images, parameters, middle["macs"], size, limits))
    return found


# --------------------------------------------------------------------------------------------------------- measurement


def _measured(variants: Sequence[Variant], data: DataModule, images: int) -> list[dict[str, Any]]:
    places = _places()
    accuracy = _accuracies(variants, data, images)
    latency = _latencies(variants, places, data)
    speed = _throughput(variants, places, data)
    memory = _memory(variants, places, speed, data)
    rows = []
    for variant in variants:
        for place in places:
            key = variant.name, place.name
            if key not in latency:
                continue
            times, (rate, batch) = latency[key], speed[key]
            about = {"network": variant.name, "hue": variant.hue, "form": variant.form, "on": place.name}
            size = {"parameters": variant.parameters, "macs": variant.macs, "file_bytes": variant.size}
            fastest, p50, p95 = (float(np.percentile(times, q)) for q in (0, 50, 95))
            timed = {
                "fastest_ms": fastest,
                "p50_ms": p50,
                "p95_ms": p95,
                "images_per_second": rate,
                "best_batch": batch,
            }
            rows.append(about | size | {"top1": accuracy[variant.name]} | timed | {"memory_bytes": memory[key]})
    return rows


def _places() -> list[Place]:
    threads = torch.get_num_threads()
    counts = [1, *([threads] if threads > 1 else [])]
    found = [Place(f"CPU, {n} thread{'s' * (n > 1)}", CPU, n) for n in counts]
    if torch.cuda.is_available():
        found.append(Place("CUDA", torch.device("cuda"), None))
    return found


@contextmanager
def _threads(place: Place) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(place.threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _on(place: Place, variants: Sequence[Variant]) -> dict[str, Callable[[Tensor], Any]]:
    """Return the variants that run in a place, loaded; onnxruntime is measured on the CPU only."""
    return {
        variant.name: variant.load(place.threads, place.device)
        for variant in variants
        if place.device.type == "cpu" or variant.runtime == "torch"
    }


def _batches(data: DataModule, size: int, at_most: int | None) -> Iterator[tuple[Tensor, Tensor]]:
    for batch in data.eval_batches("test", batch_size=size, rank=0, world=1, at_most=at_most):
        yield batch.images.contiguous(), batch.labels


@torch.no_grad()
def _accuracies(variants: Sequence[Variant], data: DataModule, images: int) -> dict[str, float]:
    loaded = {variant.name: variant.load(None, CPU) for variant in variants}
    hits, total = dict.fromkeys(loaded, 0), 0
    for batch, labels in _batches(data, 100, images):
        total += len(labels)
        for name, network in loaded.items():
            hits[name] += int((_logits(network(batch)).argmax(1) == labels).sum())
    return {name: 100 * count / total for name, count in hits.items()}


def _logits(found: Any) -> Tensor:
    logits: Tensor = found[0] if isinstance(found, tuple) else found
    return logits


@torch.no_grad()
def _latencies(
    variants: Sequence[Variant], places: Sequence[Place], data: DataModule
) -> dict[tuple[str, str], list[float]]:
    """Return the milliseconds per single image by variant and place, without each block's first turn."""
    singles = [images for images, _ in _batches(data, 1, ROUNDS + 1)]
    loaded = {place.name: _on(place, variants) for place in places}
    times: dict[tuple[str, str], list[float]] = {}
    for _ in range(BLOCKS):
        for place in places:
            with _threads(place):
                for turn in range(ROUNDS + 1):
                    image = singles[turn % len(singles)].to(place.device)
                    for name, network in loaded[place.name].items():
                        seconds = _seconds(network, image)
                        if turn:
                            times.setdefault((name, place.name), []).append(1000 * seconds)
    return times


@torch.no_grad()
def _throughput(
    variants: Sequence[Variant], places: Sequence[Place], data: DataModule
) -> dict[tuple[str, str], tuple[float, int]]:
    """Return the images per second with the best batch size, and that size, by variant and place."""
    best: dict[tuple[str, str], tuple[float, int]] = {}
    pool = torch.cat([images for images, _ in _batches(data, 128, max(CUDA_BATCHES))])
    for place in places:
        cuda = place.device.type == "cuda"
        with _threads(place):
            loaded = _on(place, variants)
            for size in CUDA_BATCHES if cuda else BATCHES:
                batch = pool.repeat(math.ceil(size / len(pool)), 1, 1, 1)[:size].to(place.device)
                times: dict[str, list[float]] = {name: [] for name in loaded}
                for _ in range(PASSES):
                    for name, network in loaded.items():
                        times[name].append(_seconds(network, batch))
                for name, seconds in times.items():
                    rate = size / min(seconds), size
                    best[name, place.name] = max(best.get((name, place.name), (0.0, 0)), rate)
                    if min(seconds) > LONGEST:
                        del loaded[name]
    return best


def _memory(
    variants: Sequence[Variant],
    places: Sequence[Place],
    speed: Mapping[tuple[str, str], tuple[float, int]],
    data: DataModule,
) -> dict[tuple[str, str], int | None]:
    """Return the peak memory of each variant at its best batch size: on the CPU that of one thread."""
    found: dict[tuple[str, str], int | None] = {}
    side, channels = data.image_size, data.channels
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["kdschemes.deployment.variants", "onnxruntime"])
    for variant in variants:
        for place in (place for place in places if (variant.name, place.name) in speed):
            key = variant.name, place.name
            batch = torch.zeros(speed[key][1], channels, side, side)
            if place.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
                with torch.no_grad():
                    variant.load(None, place.device)(batch.to(place.device))
                found[key] = torch.cuda.max_memory_allocated()
            elif place.threads == 1:
                with context.Pool(1) as pool:
                    found[key] = pool.apply(memory_of, (variant, batch))
            else:
                found[key] = found.get((variant.name, places[0].name))
    return found


def _seconds(network: Callable[[Tensor], Any], images: Tensor) -> float:
    cuda = images.device.type == "cuda"
    if cuda:
        torch.cuda.synchronize()
    started = time.perf_counter()
    network(images)
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _table(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    return [
        [
            *(row["network"], row["on"], count_text(row["parameters"]), count_text(row["macs"])),
            *(f"{row['file_bytes'] / 1e6:.2f}", f"{row['top1']:.2f}"),
            *(f"{row[key]:.2f}" for key in ("fastest_ms", "p50_ms", "p95_ms")),
            f"{row['images_per_second']:,.0f} ({row['best_batch']})",
            "-" if row["memory_bytes"] is None else f"{row['memory_bytes'] / 1e6:.0f}",
        ]
        for row in rows
    ]
