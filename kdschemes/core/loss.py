"""The interface of every loss between two outputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from inspect import signature
from typing import Any, ClassVar, Generic, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kdschemes.config.losses import Ramp
from kdschemes.core.types import Batch, DataSpec, Output, Progress, StageShapes
from kdschemes.models import StagedNetwork

Gather = Callable[[Tensor], Tensor]
"""Gathers this process's `[n, ...]` into the micro-batch of all processes, `[micro_size, ...]`."""

Options = TypeVar("Options", bound=Ramp)


@dataclass(frozen=True)
class Endpoint:
    """What a loss knows about one of its two outputs when it is built.

    `features` are the shapes by stage, shallow to deep. `network` is the network that produces the output, if it is a
    single one: for its classifier (`network.linear_classifier`) and the batch norm before a stage's last activation
    (`network.norm_before`). A loss must neither train it nor hold it as a submodule.
    """

    features: StageShapes = field(default_factory=dict)
    network: StagedNetwork | None = None


class Loss(nn.Module, ABC, Generic[Options]):
    """A scalar function of the student's and the teacher's output, averaged over the batch.

    Incompatible pairs of networks are rejected when the loss is built.

    `needs_global_batch`: the value depends on pairs of samples, so the loss applies `gather` to every tensor that it
    compares and computes the same value on each process; no other loss gathers. `has_memory_bank`: the loss stores
    samples for later steps. `reads_preactivations`: the networks must return the maps before each stage's last ReLU
    (`Output.preactivations`). `head` names an additional output that the loss provides (`classify`), evaluated before
    the student's own. Parameters are trained with the student.

    Args:
        options: the loss's dataclass in `kdschemes.config.losses`.
        student: the output that learns.
        teacher: the output that teaches.
        data_spec: the data's classes, and the labels of the training samples.

    Raises:
        UserError: the loss cannot be defined for these outputs.
    """

    needs_global_batch: bool = False
    has_memory_bank: ClassVar[bool] = False
    reads_preactivations: ClassVar[bool] = False
    head: ClassVar[str | None] = None

    def __init__(self, options: Options, *, student: Endpoint, teacher: Endpoint, data_spec: DataSpec) -> None:
        super().__init__()
        self.options = options

    @abstractmethod
    def forward(self, student: Output, teacher: Output, batch: Batch, gather: Gather) -> Float[Tensor, ""]:
        """Return the unweighted value. Gradients flow to both outputs; the caller detaches the teacher."""

    def teacher_stages(self) -> list[str] | None:
        """Return the teacher's stages whose features the loss reads; None if unknown."""
        return None

    def set_progress(self, progress: Progress) -> None:
        """Receive the training progress before each forward pass."""

    def classify(self, features: Mapping[str, Tensor]) -> Float[Tensor, "n classes"]:
        """Return the logits of `head` from the student's features."""
        raise NotImplementedError

    def recombined(self, network: StagedNetwork) -> StagedNetwork:
        """Return the inference network of `head`, made from the student's network and this loss's modules."""
        raise NotImplementedError


def embedding_width(shape: tuple[int, ...]) -> int:
    """Return the dimension of a feature's `embedding`, given one sample's `shape`: map, tokens, or vector."""
    return shape[0] if len(shape) == 3 else shape[-1]


def embedding(features: Float[Tensor, "n ..."]) -> Float[Tensor, "n d"]:
    """Average a map or tokens over positions, in float32 or higher; a vector is returned unchanged."""
    dtype = torch.promote_types(features.dtype, torch.float32)
    if features.dim() == 2:
        return features.to(dtype)
    return features.mean(dim=(2, 3) if features.dim() == 4 else 1, dtype=dtype)


def keywords(function: Callable[..., Tensor], options: Any) -> dict[str, Any]:
    """Return the fields of a loss's options that its function takes as keyword arguments, by name."""
    return {name: getattr(options, name) for name in _keyword_names(function) if hasattr(options, name)}


@cache
def _keyword_names(function: Callable[..., Tensor]) -> list[str]:
    return [p.name for p in signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
