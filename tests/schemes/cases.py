"""Small schemes to test: every method of the table by its defaults, and what their options open."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from kdschemes.config import Config
from kdschemes.config.load import allow_typed, load_config
from kdschemes.config.losses import KINDS
from kdschemes.config.schemes import SCHEMES
from kdschemes.core.distillation import Distillation
from kdschemes.core.types import Batch, DataSpec, Progress
from kdschemes.errors import UserError
from kdschemes.models import StagedNetwork
from kdschemes.schemes import build_scheme
from kdschemes.schemes.self_distillation.dlb import LastStep
from tests import REPOSITORY

RECIPES = REPOSITORY / "experiments"
DATA_SPEC = DataSpec(num_classes=10, channels=1, image_size=8, train_labels=torch.arange(60) % 10)
ARCHITECTURES = {
    "convnet": DATA_SPEC,
    "resnet20": DATA_SPEC,
    "timm/mobilenetv3_small_050": DataSpec(7, 3, 32, torch.arange(60) % 7),
    "timm/test_vit": DataSpec(7, 3, 32, torch.arange(60) % 7),
}
START = Progress(step=0, total_steps=100, steps_per_epoch=10)


TEACHERS = {"camkd": "[resnet20,convnet]"}
"""Methods that need other teachers than one resnet20."""


def base(scheme: str, method: str, model: str = "resnet20") -> list[str]:
    """Return the overrides of a method by its defaults, on small networks."""
    teacher = [f"teacher={TEACHERS.get(method, 'resnet20')}"] if SCHEMES[scheme][method].uses_teacher else []
    return [f"scheme={scheme}", f"method={method}", f"model={model}", *teacher]


LOSSES = [(kind, name) for kind, table in KINDS.items() for name in table if name != "none"]
"""Every loss with its kind."""

METHODS = {f"{scheme}-{method}": (scheme, method) for scheme, methods in SCHEMES.items() for method in methods}
DEFAULTS = {name: base(*method) for name, method in METHODS.items()}
OFFLINE, ONLINE, SELF = base("offline", "kd"), base("online", "dml"), base("self", "byot")


def configure(*overrides: str) -> Config:
    allow_typed(overrides, recipes=RECIPES)
    return load_config(overrides, recipes=RECIPES)


def build(*overrides: str, data_spec: DataSpec = DATA_SPEC, dtype: torch.dtype = torch.float64) -> Distillation:
    return copy.deepcopy(_build(overrides, data_spec)).to(dtype)


@cache
def _build(overrides: tuple[str, ...], data_spec: DataSpec) -> Distillation:
    return build_scheme(configure(*overrides), data_spec)


def batch_for(
    scheme: Distillation,
    data_spec: DataSpec = DATA_SPEC,
    *,
    n: int = 6,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> Batch:
    """Return a random batch with the auxiliary batches that a scheme wants; `same_class` has other samples of the
    labels.

    A scheme that remembers the step before comes to remember answers to the samples of `previous`.
    """
    batch = random_batch(data_spec, n=n, seed=seed, dtype=dtype)
    aux_batches = {}
    for number, name in enumerate(scheme.aux_batches, start=1):
        other = random_batch(data_spec, n=n, seed=seed + 1000 * number, dtype=dtype)
        if name == "previous":
            other = dataclasses.replace(
                other, labels=(other.labels + 3) % data_spec.num_classes, index=other.index + 20
            )
        if name == "same_class":
            other = dataclasses.replace(other, index=other.index + 10)
        aux_batches[name] = other
    for node in scheme.nodes.values():
        if isinstance(node, LastStep):
            node.index[:n] = aux_batches["previous"].index
            node.logits[:n] = torch.randn(n, data_spec.num_classes, generator=torch.Generator().manual_seed(seed))
    return dataclasses.replace(batch, aux_batches=aux_batches)


def random_batch(
    data_spec: DataSpec = DATA_SPEC, *, n: int = 6, seed: int = 0, dtype: torch.dtype = torch.float64
) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(n, data_spec.channels, data_spec.image_size, data_spec.image_size, generator=generator)
    return Batch(images.to(dtype), torch.arange(n) % data_spec.num_classes, torch.arange(n))


def in_double(batch: Batch) -> Batch:
    return dataclasses.replace(
        batch,
        images=batch.images.double(),
        mix=None if batch.mix is None else batch.mix.double(),
        aux_batches={name: in_double(aux_batch) for name, aux_batch in batch.aux_batches.items()},
    )


def trained(module: nn.Module) -> list[nn.Parameter]:
    return [p for p in module.parameters() if p.requires_grad]


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def network_of(scheme: Distillation, head: str) -> StagedNetwork:
    network = scheme.node_of(head).inference_network(head)
    assert network is not None
    return network


def same_state(a: nn.Module | dict[str, Tensor], b: nn.Module | dict[str, Tensor]) -> bool:
    """Return whether two states are the same to the last bit."""
    first, second = (x.state_dict() if isinstance(x, nn.Module) else x for x in (a, b))
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def check_refused(overrides: Sequence[str], message: str, data_spec: DataSpec = DATA_SPEC) -> None:
    """Check that overrides are refused in one line with these words, a regular expression."""
    with pytest.raises(UserError, match=message) as caught:
        build(*overrides, data_spec=data_spec)
    assert "\n" not in str(caught.value)
