"""What several processes compute, to be compared with one: one process of `python -m tests.distributed.worker`.

Its arguments are FOLDER and cases; the environment gives its rank, as a launcher does; results go to `FOLDER/RANK.pt`.
`test_collectives` starts the processes and calls the same functions in its own.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from kdschemes.core.placement import split_trained
from kdschemes.core.types import Batch, Progress
from kdschemes.data import open_data
from kdschemes.data.batches import evenly
from kdschemes.distributed.batch_norm import GlooSyncBatchNorm, synchronize_batch_norm
from kdschemes.distributed.collectives import gather, rank, share, world_size
from kdschemes.distributed.fsdp import full_state
from kdschemes.distributed.launch import start_processes
from kdschemes.evaluation.evaluate import evaluate, evaluation_mode
from kdschemes.schemes import build_scheme
from tests.schemes.cases import DEFAULTS, LOSSES, OFFLINE, configure, in_double
from tests.schemes.table import VARIANTS

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Case:
    """A scheme and how its optimizer steps are split. 13 samples divide evenly by nothing."""

    overrides: list[str]
    batch_size: int = 13
    grad_accum_steps: int = 1
    steps: int = 2
    several_labels: bool = False


CASES = {name: Case(overrides) for name, overrides in DEFAULTS.items()} | {
    "two-teachers": Case(VARIANTS["offline-kd-two-teachers-hint"]),
    "per-sample-relations": Case(VARIANTS["offline-kd-at-fsp"]),
    "confident-teachers": Case(VARIANTS["offline-camkd-from-the-start"]),
    "accumulated-partial": Case(VARIANTS["offline-partial_teacher-layer2-hint"], grad_accum_steps=2, steps=1),
    "mixed-peers": Case(VARIANTS["online-dml-mixed-peers"]),
    "average": Case(VARIANTS["self-byot-ema"]),
    "several-labels": Case([*DEFAULTS["online-dml"], "losses.response=mld", "data.mixup=0.5"], several_labels=True),
    "mixup": Case([*VARIANTS["offline-kd-hint-rkd"], "data.mixup=0.5"]),
    "even": Case(VARIANTS["online-dml-hint-rkd"], batch_size=12),
    "in-turn": Case(VARIANTS["online-dml-sequential"]),
    "accumulated-in-turn": Case(VARIANTS["online-dml-sequential"], grad_accum_steps=2, steps=1),
    "linear-mix": Case(VARIANTS["online-kdcl-linear"]),
    "held-out-mix": Case(VARIANTS["online-kdcl-general"]),
    "accumulated-switch": Case(VARIANTS["online-switokd-big"], grad_accum_steps=2, steps=1),
    "accumulated-online": Case(VARIANTS["online-dml-hint-rkd"], grad_accum_steps=2, steps=1),
    "accumulated-shared-trunk": Case(VARIANTS["online-dml-shared-trunk"], grad_accum_steps=2, steps=1),
    "accumulated-views": Case(VARIANTS["online-pcl"], grad_accum_steps=2, steps=1),
    "views-cutmix": Case([*VARIANTS["self-ddgsd-hint-rkd"], "data.cutmix=1"], grad_accum_steps=2, steps=1),
    "accumulated-past": Case([*VARIANTS["self-dlb-dist"], "data.mixup=0.5"], grad_accum_steps=2, steps=3),
    "accumulated-self": Case([*VARIANTS["self-byot-at-rkd"], "data.mixup=0.5"], grad_accum_steps=2, steps=1),
    "norm-of-the-batch": Case(VARIANTS["self-byot-authors"]),
    "sum-over-the-step": Case(VARIANTS["self-byot-luanyunteng"], grad_accum_steps=2),
    "warming-exits": Case(VARIANTS["self-multi_exit-warming"], grad_accum_steps=2),
}
CASES |= {
    f"{kind}-{name}": Case(
        [*OFFLINE, "teacher=resnet8x4", "losses.response=none", f"losses.{kind}={name}"], batch_size=7
    )
    for kind, name in LOSSES
}


def two_of_ten(labels: Tensor) -> Tensor:
    """Return rows of labels: a digit, and the one after it or the one after that."""
    one_hot = torch.nn.functional.one_hot
    return one_hot(labels, 10) + one_hot((labels + 1 + torch.arange(len(labels)) % 2) % 10, 10)


def run_case(case: Case, accelerator: Accelerator | None, *, split: bool = False) -> dict[str, Any]:
    """Take optimizer steps in float64 on digits and return gradients, losses, weights and validation metrics.

    Each step counts as an epoch for nodes that look at the validation split. `split` splits the parameters.
    """
    config = configure(*case.overrides, "data.val_fraction=0.05", "data.train_fraction=1")
    data = open_data(config.data, seed=config.seed, device=CPU)
    if case.several_labels:
        data = replace(data, labels={array: two_of_ten(labels) for array, labels in data.labels.items()})
    scheme = build_scheme(config, data.spec).double()
    if accelerator is not None:
        synchronize_batch_norm(scheme, CPU)
    if split:
        split_trained(scheme, CPU)
    optimizer = torch.optim.SGD([p for p in scheme.parameters() if p.requires_grad], lr=0.02)
    groups = scheme.parameter_groups()
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(scheme, scheme.replicated_buffers())
    model: nn.Module = scheme
    if accelerator is not None and not split:
        model, optimizer = accelerator.prepare(scheme, optimizer)
    steps = data.train_steps(
        0,
        batch_size=case.batch_size,
        grad_accum_steps=case.grad_accum_steps,
        rank=rank(),
        world=world_size(),
        drop_last=True,
        aux_batches=scheme.aux_batches,
    )

    def held_out() -> Iterable[Batch]:
        batches = data.eval_batches("val", batch_size=50, rank=rank(), world=world_size())
        return map(in_double, evenly(batches, data.sizes["val"], 50) if split else batches)

    gradients: list[dict[str, Tensor]] = []
    losses = []
    scheme.train()
    for step, micro_batches in zip(range(case.steps), steps, strict=False):
        with evaluation_mode(scheme):
            scheme.before_epoch(step, held_out)
        sums: dict[str, float] = {}
        gradients.append({})
        for phase in range(max(1, len(scheme.phases))):
            for number, batch in enumerate(micro_batches):
                last = number + 1 == len(micro_batches)
                waits = contextlib.nullcontext() if last or accelerator is None else accelerator.no_sync(model)
                with waits:
                    result = model(in_double(batch), Progress(step, 10, 5), phase)
                    result.total.backward() if accelerator is None else accelerator.backward(result.total)
                for term, value in {"total": result.total.detach(), **result.losses}.items():
                    sums[term] = sums.get(term, 0.0) + value.item()
            for name in scheme.skipped_nodes(phase):
                for parameter in groups.get(name, ()):
                    parameter.grad = None
            moving = {name: p.grad.clone() for name, p in scheme.named_parameters() if p.grad is not None}
            gradients[-1] |= full_state(moving)
            optimizer.step()
            optimizer.zero_grad()
        losses.append(sums)
        scheme.after_step()
    metrics = evaluate(scheme, held_out(), CPU)
    if accelerator is not None:
        accelerator.free_memory()
    return {"gradients": gradients, "losses": losses, "state": full_state(scheme.state_dict()), "metrics": metrics}


NORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "cumulative": {"momentum": None},
    "without-scale": {"affine": False},
    "without-statistics": {"track_running_stats": False},
    "other-numbers": {"eps": 0.1, "momentum": 0.7},
}
SHAPES = {"maps": (7, 3, 4, 5), "vectors": (7, 3), "sequences": (7, 3, 6)}


def run_norm(options: Mapping[str, Any], shape: tuple[int, ...]) -> dict[str, Any]:
    """Pass this process's share of a batch twice through batch norm; return outputs, gradients and statistics."""
    kinds: dict[int, Callable[..., nn.Module]] = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}
    kind = kinds[len(shape)] if world_size() == 1 else GlooSyncBatchNorm
    norm = kind(shape[1], **options).double()
    generator = torch.Generator().manual_seed(0)
    whole = torch.randn(2, *shape, dtype=torch.float64, generator=generator) * 3 + 1
    wanted = torch.randn(shape, dtype=torch.float64, generator=generator)
    start, end = share(shape[0], world_size(), rank())
    outputs, gradients = [], []
    for number in range(2):
        x = whole[number, start:end].clone().requires_grad_()
        out = norm(x)
        (out.sin() * wanted[start:end]).sum().backward()
        assert x.grad is not None
        outputs.append(out.detach())
        gradients.append(x.grad)
    own = {name: p.grad for name, p in norm.named_parameters()}
    evaluated = norm.eval()(whole[0]) if norm.running_mean is not None else whole[0]
    return {
        "output": torch.cat(outputs, dim=1 if len(shape) == 2 else 2),
        "gradient": torch.cat(gradients, dim=1 if len(shape) == 2 else 2),
        "own": own,
        "state": dict(norm.state_dict()),
        "evaluated": evaluated.detach(),
    }


def run_gather(total: int) -> dict[str, Tensor]:
    """Return what is gathered of `total` rows, and this process's part of the gradient of one loss of all rows."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(total, 3, 2, dtype=torch.float64, generator=generator)
    start, end = share(total, world_size(), rank())
    local = rows[start:end].clone().requires_grad_()
    everything = gather(local, total)
    torch.cdist(everything.flatten(1), everything.flatten(1)).square().sin().sum().backward()
    assert local.grad is not None
    return {"rows": everything.detach(), "gradient": local.grad / world_size()}


def run_all(names: list[str], accelerator: Accelerator | None) -> dict[str, Any]:
    return {
        "cases": {name: run_case(CASES[name], accelerator) for name in names},
        "norms": {f"{a}-{b}": run_norm(NORMS[a], SHAPES[b]) for a in NORMS for b in SHAPES},
        "gather": {str(total): run_gather(total) for total in (world_size(), 7)},
    }


def main() -> None:
    accelerator = start_processes(configure("device=cpu", "train.num_threads=1"))
    torch.save(run_all(sys.argv[2:], accelerator), Path(sys.argv[1]) / f"{accelerator.process_index}.pt")
    accelerator.end_training()


if __name__ == "__main__":
    main()
