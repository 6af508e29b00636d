"""What two processes compute with weights that are split over them: one a process.

Started as `worker` is; `test_fsdp` starts them and calls the same functions in its own process.
"""

from __future__ import annotations

import copy
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from kdschemes.config import Optim
from kdschemes.core.placement import place_frozen, split_trained
from kdschemes.core.types import Batch
from kdschemes.data.batches import evenly
from kdschemes.distributed.collectives import broadcast_from_main, rank, world_size
from kdschemes.distributed.fsdp import (
    blocks,
    full_state,
    load_full_optimizer_state,
    load_full_state,
    split_over_processes,
    to_local,
    unsharded,
)
from kdschemes.distributed.launch import start_processes
from kdschemes.models import create_model
from kdschemes.training.optim import build_optimizer, clip_gradients
from tests.distributed.worker import CASES, CPU, run_case
from tests.schemes.cases import DEFAULTS, START, build, configure, random_batch, trained
from tests.schemes.table import VARIANTS

SPLIT = ["offline-kd", "even", "average", "accumulated-in-turn", "held-out-mix", "feature-simkd", "feature-ofd"]
TEACHERS = {"fp32": [], "bf16": ["teacher.precision=bf16"]}
EXPORTED = ["online-dml-shared-trunk", "offline-partial_teacher-layer2-hint", "self-byot-ema"]
NETWORKS = ("resnet8x4", "vgg8", "timm/test_vit")


def run_clipped(accelerator: Accelerator | None) -> dict[str, Any]:
    """Take two steps of AdamW on two peers, with clipped gradients and everything put back from its state in between.

    Return the clipped gradients, the weights, what the optimizer remembers and the share of the weights that is here.
    """
    scheme = build(*DEFAULTS["online-dml"], "losses.feature=hint").eval()
    if accelerator is not None:
        split_trained(scheme, CPU)
    groups = scheme.parameter_groups()
    optimizer = build_optimizer(Optim(name="adamw", lr=1e-3), groups)
    gradients = []
    for seed in range(2):
        batch = random_batch(seed=seed)
        scheme(replace(batch, step_size=len(batch) * world_size()), START).total.backward()
        clip_gradients(groups, 0.1)
        gradients.append(full_state({name: p.grad for name, p in scheme.named_parameters()}))
        optimizer.step()
        weights, remembered = (
            copy.deepcopy(broadcast_from_main(full_state(part.state_dict()))) for part in (scheme, optimizer)
        )
        for p in trained(scheme):
            p.grad = None
            to_local(p.data).fill_(7.0)
            optimizer.state[p] = {}
        load_full_state(scheme, weights)
        load_full_optimizer_state(optimizer, remembered)
    here = sum(to_local(p).numel() for p in trained(scheme)) / sum(p.numel() for p in trained(scheme))
    state = full_state(optimizer.state_dict())["state"]
    return {"gradients": gradients, "weights": full_state(scheme.state_dict()), "state": state, "here": here}


def run_teachers(options: list[str], accelerator: Accelerator | None) -> dict[str, Tensor]:
    """Return what two teachers, their mean and the readings of their classifiers (CAMKD) say of the same images."""
    overrides = [*VARIANTS["offline-camkd"], *options]
    scheme = build(*overrides, dtype=torch.float32)
    if accelerator is not None:
        overrides += ["teacher.placement=sharded"]
    place_frozen(scheme, configure(*overrides).teacher, CPU)
    outputs = scheme.predict(random_batch(dtype=torch.float32), ["teacher", *scheme.heads, "student/teacher0"])
    features = {f"{name}/{stage}": f for name, out in outputs.items() for stage, f in out.features.items()}
    return {name: out.logits.detach() for name, out in outputs.items()} | {k: f.detach() for k, f in features.items()}


def run_network(name: str, accelerator: Accelerator | None) -> dict[str, Tensor]:
    """Return a network's logits, the gradient of a function of them, and logits asked of one process alone."""
    torch.manual_seed(0)
    network = create_model(name, num_classes=10, channels=3, image_size=32).double().eval()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    if accelerator is not None:
        split_over_processes(network, blocks(network), CPU, "forward_stages")
    network(images).square().sum().backward()
    gradients = full_state({key: p.grad for key, p in network.named_parameters() if p.grad is not None})
    with torch.no_grad():
        logits = network.forward_stages(images)[0]
        with unsharded(network):
            alone = network(images) if rank() == 0 else logits
            state = {key: value.clone() for key, value in network.state_dict().items()} if rank() == 0 else {}
    again = full_state(network.state_dict())
    assert rank() or all(torch.equal(state[key], again[key]) for key in again)
    return {"logits": logits, "alone": alone, **gradients}


def run_export(name: str, accelerator: Accelerator | None) -> dict[str, Tensor]:
    """Return the weights that the first process would write of a scheme's heads."""
    scheme = build(*VARIANTS[name])
    if accelerator is not None:
        split_trained(scheme, CPU)
    with unsharded(scheme):
        plain = {head: scheme.node_of(head).inference_network(head) for head in scheme.heads if rank() == 0}
        states = {head: network.plain_state() for head, network in plain.items() if network is not None}
        return {f"{head}/{key}": value.clone() for head, state in states.items() for key, value in state.items()}


def run_evenly(accelerator: Accelerator) -> list[list[int]]:
    """Return the samples of each batch here, of 9 samples (5 and 4) at 4 and at 5 a batch."""
    here = [range(5), range(5, 9)][accelerator.process_index]
    cut = []
    for size in (4, 5):
        parts = [torch.tensor(here[i : i + size]) for i in range(0, len(here), size)]
        batches = (Batch(torch.zeros(len(part), 1, 1, 1), part, part) for part in parts)
        cut += [batch.index.tolist() for batch in evenly(batches, 9, size)]
    return cut


def main() -> None:
    accelerator = start_processes(configure("device=cpu", "train.num_threads=1"))
    results = {
        "cases": {name: run_case(CASES[name], accelerator, split=True) for name in SPLIT},
        "clipped": run_clipped(accelerator),
        "teachers": {name: run_teachers(options, accelerator) for name, options in TEACHERS.items()},
        "networks": {name: run_network(name, accelerator) for name in NETWORKS},
        "exports": {name: run_export(name, accelerator) for name in EXPORTED},
        "evenly": run_evenly(accelerator),
    }
    torch.save(results, Path(sys.argv[1]) / f"{accelerator.process_index}.pt")
    accelerator.end_training()


if __name__ == "__main__":
    main()
