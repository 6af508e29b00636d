"""Small schemes to test: every method of the table by its defaults, and what their options open."""

from __future__ import annotations

import copy
import dataclasses
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from kdschemes.config import Config
from kdschemes.config.load import load_config
from kdschemes.config.losses import KINDS
from kdschemes.config.schemes import SCHEMES
from kdschemes.distillation import Distillation, Task
from kdschemes.models import StagedNetwork
from kdschemes.outputs import Batch, Progress
from kdschemes.schemes import build_scheme

TASK = Task(num_classes=10, channels=1, image_size=8, train_labels=torch.arange(60) % 10)
START = Progress(step=0, total_steps=100, steps_per_epoch=10)


def base(scheme: str, method: str, model: str = "resnet20") -> list[str]:
    """Return the overrides of a method by its defaults, on small networks."""
    teacher = ["teacher=resnet20"] if scheme == "offline" else []
    return [f"scheme={scheme}", f"method={method}", f"model={model}", *teacher]


LOSSES = [(kind, name) for kind, table in KINDS.items() for name in table if name != "none"]
"""Every loss with its kind."""

METHODS = {f"{scheme}-{method}": (scheme, method) for scheme, methods in SCHEMES.items() for method in methods}
DEFAULTS = {name: base(*method) for name, method in METHODS.items()}
OFFLINE, ONLINE, SELF = base("offline", "kd"), base("online", "dml"), base("self", "byot")
VARIANTS = DEFAULTS | {
    "offline-kd-two-teachers": [*OFFLINE, "teacher.name=[resnet20,convnet]", "teacher.weights=[1,3]"],
    "offline-kd-two-teachers-hint": [*OFFLINE, "teacher.name=[resnet20,convnet]", "losses.feature=hint"],
    "offline-kd-hint-rkd": [*OFFLINE, "teacher=convnet", "losses.feature=hint", "losses.relation=rkd"],
    "offline-kd-at-fsp": [*OFFLINE, "losses.feature=at", "losses.relation=fsp", "losses.response=logit_mse"],
    "offline-kd-fsp-adapters": [*OFFLINE, "teacher=convnet", "losses.relation=fsp", "losses.response=none"],
    "online-dml-three-peers": [*ONLINE, "scheme.peers=3"],
    "online-dml-mixed-peers": [*ONLINE, "scheme.peers=[resnet20,convnet]", "losses.feature=hint"],
    "online-dml-shared-stem": [*ONLINE, "scheme.topology=shared_stem", "scheme.peers=3"],
    "online-dml-hint-rkd": [*ONLINE, "losses.feature=hint", "losses.relation=rkd"],
    "online-dml-at-fsp": [*ONLINE, "losses.feature=at", "losses.relation=fsp"],
    "self-byot-linear": [*SELF, "scheme.exit_head=linear", "losses.feature=hint"],
    "self-byot-at-rkd": [*SELF, "losses.feature=at", "losses.relation=rkd"],
    "supervised-ce-ema": [*base("supervised", "ce"), "train.ema=0.9"],
    "self-byot-ema": [*SELF, "train.ema=0.9"],
}


def configure(*overrides: str) -> Config:
    return load_config(overrides, recipes=Path())


def build(*overrides: str, task: Task = TASK, dtype: torch.dtype = torch.float64) -> Distillation:
    return copy.deepcopy(_build(overrides, task)).to(dtype)


@cache
def _build(overrides: tuple[str, ...], task: Task) -> Distillation:
    return build_scheme(configure(*overrides), task)


def random_batch(task: Task = TASK, *, n: int = 6, seed: int = 0, dtype: torch.dtype = torch.float64) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(n, task.channels, task.image_size, task.image_size, generator=generator)
    return Batch(images.to(dtype), torch.arange(n) % task.num_classes, torch.arange(n))


def in_double(batch: Batch) -> Batch:
    return dataclasses.replace(
        batch, images=batch.images.double(), mix=None if batch.mix is None else batch.mix.double()
    )


def trained(module: nn.Module) -> list[nn.Parameter]:
    return [p for p in module.parameters() if p.requires_grad]


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def network_of(scheme: Distillation, head: str) -> StagedNetwork:
    network = scheme.node_of(head).plain_network(head)
    assert network is not None
    return network


def same_state(a: nn.Module | dict[str, Tensor], b: nn.Module | dict[str, Tensor]) -> bool:
    """Return whether two states are the same to the last bit."""
    first, second = (x.state_dict() if isinstance(x, nn.Module) else x for x in (a, b))
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
