"""Part (a): what only CUDA can show, each check with the numbers it is judged by.

On a machine without a GPU a check runs as far as it can, with the CPU in the GPU's place, and says so in `not_run`.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import sys
import tempfile
from collections.abc import Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from experiments.bench import random_data
from experiments.gpu_session.images import small_data
from experiments.gpu_session.record import REPOSITORY, Item, Outcome, Task, run_part
from kdschemes.config import Config
from kdschemes.config.load import load_config
from kdschemes.config.losses import KINDS
from kdschemes.config.schemes import SCHEMES
from kdschemes.core.distillation import Distillation
from kdschemes.core.types import Batch, DataSpec, Progress
from kdschemes.distributed.batch_norm import synchronize_batch_norm
from kdschemes.models import create_model
from kdschemes.schemes import build_scheme
from kdschemes.seeding import seed_step
from kdschemes.training.precision import choose_precision
from kdschemes.training.signals import StopSignal
from kdschemes.training.train import Finished, train

RECIPES = REPOSITORY / "experiments"
SPEC = DataSpec(10, 3, 16, torch.arange(64) % 10)
SAMPLES = 16
MIDWAY = Progress(step=50, total_steps=100, steps_per_epoch=10)

LARGEST = 1e-6
"""Largest relative difference of float64 gradients: far above rounding, far below a wrong term."""

TEACHERS = {"camkd": "[resnet20,resnet32]"}
"""Methods that need other teachers than one ResNet-32."""

REHEARSED = ("ce", "kd", "dml", "byot")
"""Methods whose gradients a rehearsal compares."""

STOP_AT = 4
"""Steps after which a run is stopped, to be resumed."""

VIEWS: dict[str, list[str]] = {
    "crop and flip": [],
    "cutout": ["data.cutout=8"],
    "mixup": ["data.mixup=0.2"],
    "cutmix": ["data.cutmix=1"],
    "mixup and cutmix": ["data.mixup=0.2", "data.cutmix=1"],
    "colors and erasing": ["data.auto_augment=trivialaugment", "data.color_jitter=0.4", "data.random_erasing=0.5"],
}


def items(task: Task) -> Mapping[str, Item]:
    """Return the checks, the cheapest first."""
    methods = [(scheme, method) for scheme, table in SCHEMES.items() for method in table]
    losses = [(kind, name) for kind, table in KINDS.items() for name in table if name != "none"]
    if task.rehearse:
        methods = [each for each in methods if each[1] in REHEARSED]
        losses = [next(each for each in losses if each[0] == kind) for kind in KINDS]
    found: dict[str, Item] = {"precision=auto": automatic}
    found |= {f"bits of views: {name}": partial(views, keys=keys) for name, keys in VIEWS.items()}
    found["synchronized batch norm on one rank"] = synchronized
    precisions = ("fp32", "fp16") if task.rehearse else ("fp32", "bf16", "fp16")
    found |= {f"training and resuming in {each}": partial(resuming, precision=each) for each in precisions}
    for scheme, method in methods:
        teacher = [f"teacher={TEACHERS.get(method, 'resnet32')}"] if SCHEMES[scheme][method].uses_teacher else []
        keys = [f"scheme={scheme}", f"method={method}", *teacher]
        found[f"gradients: {scheme} {method}"] = partial(gradients, keys=keys)
    for kind, name in losses:
        off = [f"losses.{other}=none" for other in KINDS if other != kind]
        keys = ["scheme=offline", "teacher=resnet32", *off, f"losses.{kind}={name}"]
        found[f"gradients: offline kd with {kind} {name}"] = partial(gradients, keys=keys)
    return found


def gpu() -> torch.device:
    """Return the GPU; without one the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def judged(ok: bool, instead: str, **numbers: Any) -> Outcome:
    """Return an outcome; without a GPU, what was done `instead` of the check."""
    found: Outcome = {"ok": ok, **numbers}
    return found if torch.cuda.is_available() else found | {"not_run": f"no GPU: {instead}"}


def configuration(*keys: str) -> Config:
    """Return the configuration of `KEY=VALUE` words."""
    return load_config(keys, recipes=RECIPES)


def automatic(task: Task) -> Outcome:
    """Check that `precision=auto` is bf16 on a GPU that computes in it."""
    AcceleratorState._reset_state(reset_partial_state=True)
    chosen, why = choose_precision(configuration("scheme=supervised", "precision=auto", f"output_dir={task.out}"))
    wanted = "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "fp32"
    ok = chosen.precision == wanted or not torch.cuda.is_available()
    return judged(ok, "what is faster on this processor", precision=chosen.precision, why=why)


def views(task: Task, keys: list[str]) -> Outcome:
    """Check that two epochs of views have the same bits on the GPU as on the CPU."""
    if find_spec("scipy") is None and any("mix" in key for key in keys):
        return {"ok": True, "not_run": "scipy, which mixes images, is not installed"}
    config = configuration("scheme=supervised", "data=cifar100", *keys)

    def seen(device: torch.device) -> list[Tensor]:
        data = random_data(config, 64, device)
        plan = {"batch_size": 32, "grad_accum_steps": 1, "rank": 0, "world": 1, "drop_last": False}
        batches = [batch for epoch in range(2) for (batch,) in data.train_steps(epoch, **plan)]  # type: ignore[arg-type]
        found = [tensor for batch in batches for tensor in (batch.images, batch.labels, batch.mix)]
        return [tensor.cpu() for tensor in found if tensor is not None]

    here, there = seen(torch.device("cpu")), seen(gpu())
    different = sum(int((a != b).sum()) for a, b in zip(here, there, strict=True))
    largest = max(float((a.double() - b.double()).abs().max()) for a, b in zip(here, there, strict=True))
    return judged(different == 0, "the CPU twice", different_values=different, largest_difference=largest)


def gradients(task: Task, keys: list[str]) -> Outcome:
    """Compare the loss and all gradients of a scheme in float64 on the GPU with those on the CPU.

    Without a GPU, two memory formats on the CPU are compared: they round differently too.
    """
    scheme = build_scheme(configuration(*keys, "model=resnet20"), SPEC).double().train()
    batch = random_batch(0, [])
    batch = dataclasses.replace(
        batch, aux_batches={name: random_batch(n, [name]) for n, name in enumerate(scheme.aux_batches, start=1)}
    )
    other = copy.deepcopy(scheme).to(gpu()).to(memory_format=torch.channels_last)
    total, here = loss_and_gradients(scheme, batch)
    other_total, there = loss_and_gradients(other, moved(batch, gpu()))
    difference = float((here - there).norm() / here.norm())
    return judged(
        difference < LARGEST and bool(here.norm() > 0),
        "two memory formats on the CPU",
        relative_difference=difference,
        loss_difference=abs(total - other_total) / max(abs(total), 1e-30),
    )


def random_batch(seed: int, names: list[str]) -> Batch:
    """Return random images in float64; those of the step before are other samples, those of a class have its labels."""
    images = torch.randn(SAMPLES, 3, SPEC.image_size, SPEC.image_size, generator=torch.Generator().manual_seed(seed))
    shift = {"previous": 20, "same_class": 10}.get(names[0] if names else "", 0)
    index = torch.arange(SAMPLES) + shift
    return Batch(images.double(), index % SPEC.num_classes, index)


def moved(batch: Batch, device: torch.device) -> Batch:
    """Return a batch on a device, in channels_last."""
    aux = {name: moved(each, device) for name, each in batch.aux_batches.items()}
    images = batch.images.to(device).contiguous(memory_format=torch.channels_last)
    return Batch(images, batch.labels.to(device), batch.index.to(device), aux_batches=aux)


def loss_and_gradients(scheme: Distillation, batch: Batch) -> tuple[float, Tensor]:
    """Return the total loss and all gradients in one vector on the CPU."""
    seed_step(0, MIDWAY.step, 0)
    total = scheme(batch, MIDWAY).total
    torch.autograd.backward(total)
    trained = [p for p in scheme.parameters() if p.requires_grad]
    vector = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten().cpu() for p in trained]
    return float(total.detach()), torch.cat(vector)


class Exchanging(nn.SyncBatchNorm):
    """torch's synchronized batch norm, which on one rank is the plain one, made to exchange its statistics anyway."""

    def forward(self, input: Tensor) -> Tensor:
        from torch.nn.modules._functions import SyncBatchNorm

        group = torch.distributed.group.WORLD
        statistics = (self.running_mean, self.running_var, self.eps, self.momentum)
        found = SyncBatchNorm.apply(input, self.weight, self.bias, *statistics, group, 1)
        assert isinstance(found, Tensor)
        return found


def synchronized(task: Task) -> Outcome:
    """Check that synchronized batch norm on one rank is batch norm: outputs, gradients and running statistics."""
    device, backend = gpu(), "nccl" if torch.cuda.is_available() else "gloo"
    torch.manual_seed(0)
    plain = create_model("resnet20", num_classes=10, channels=3, image_size=16).double().to(device).train()
    images = torch.randn(SAMPLES, 3, 16, 16, dtype=torch.float64).to(device)
    with tempfile.TemporaryDirectory() as folder:
        torch.distributed.init_process_group(backend, init_method=f"file://{folder}/store", rank=0, world_size=1)
        try:
            twins = {"as converted": synchronize_batch_norm(copy.deepcopy(plain), device)}
            if torch.cuda.is_available():
                twins["exchanging"] = synchronize_batch_norm(copy.deepcopy(plain), device)
                for module in twins["exchanging"].modules():
                    if isinstance(module, nn.SyncBatchNorm):
                        module.__class__ = Exchanging
            expected = effects(plain, images)
            differences = {name: relative(effects(twin, images), expected) for name, twin in twins.items()}
        finally:
            torch.distributed.destroy_process_group()
    converted = sum("Sync" in type(module).__name__ for module in twins["as converted"].modules())
    ok = converted > 0 and max(differences.values()) < LARGEST
    return judged(ok, "our own over gloo on the CPU", relative_differences=differences, layers=converted)


def effects(network: nn.Module, images: Tensor) -> Tensor:
    """Return a network's logits, gradients and running statistics after one step on images, in one vector."""
    logits = network(images)
    torch.autograd.backward(logits.square().mean())
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    statistics = [b for name, b in network.named_buffers() if name.endswith(("running_mean", "running_var"))]
    return torch.cat([tensor.detach().flatten() for tensor in (logits, *gradients, *statistics)])


def relative(found: Tensor, expected: Tensor) -> float:
    """Return the relative difference of two vectors."""
    return float((found - expected).norm() / expected.norm())


class StopsAt(StopSignal):
    """Stops a run before a step, as a signal would."""

    def requested_on_any_rank(self, also: bool = False) -> bool:
        return also or self.steps >= STOP_AT


def resuming(task: Task, precision: str) -> Outcome:
    """Train two peers, once through and once stopped and resumed.

    All losses must be finite and fall, and both runs must end with the same weights and the same log, bit for bit.
    """
    if precision == "fp16" and not torch.cuda.is_available():
        return {"ok": True, "not_run": "no GPU: fp16 with its gradient scaler is for GPUs only"}
    with tempfile.TemporaryDirectory(dir=task.out) as folder:
        epochs = 2 if task.rehearse else 8
        keys = ["scheme=online", "model=resnet20", f"train.epochs={epochs}", "optim.lr=0.05"]
        small = [*small_data(task.out), *keys, "train.log_every_steps=1"]

        def run(name: str, stop: StopSignal | None = None) -> Finished:
            AcceleratorState._reset_state(reset_partial_state=True)
            return train(configuration(*small, f"precision={precision}", f"output_dir={folder}/{name}"), stop)

        through = run("through")
        with StopsAt() as stop:
            try:
                run("stopped", stop)
                raise AssertionError("the run was not stopped")
            except SystemExit:
                pass
        resumed = run("stopped")
        equal = {name: same_bytes(through.folder / name, resumed.folder / name) for name in COMPARED}
        losses = [row["loss/total"] for row in rows(through.folder) if row["kind"] == "train"]
    epoch = len(losses) // epochs
    first, last = sum(losses[:epoch]) / epoch, sum(losses[-epoch:]) / epoch
    ok = all(equal.values()) and last < first
    numbers = {"first_epoch": first, "last_epoch": last, "same_bytes": equal, "steps": len(losses)}
    return judged(ok, "the same on the CPU", **numbers)


COMPARED = ("model.safetensors", "metrics.jsonl")


def rows(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's log."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def same_bytes(first: Path, second: Path) -> bool:
    """Return whether two files have the same content."""
    return first.read_bytes() == second.read_bytes()


if __name__ == "__main__":
    sys.exit(run_part("correctness", items))
