"""What every loss between two outputs is given when it is built and when it runs."""

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
"""Turns this process's `[n, ...]` into the micro-batch of all processes, `[micro_size, ...]`."""

Options = TypeVar("Options", bound=Ramp)


@dataclass(frozen=True)
class Endpoint:
    """What a loss may know of one of its two outputs when it is built.

    `features` are the shapes by stage, shallow to deep. `network` is the network that gives the output, where it is
    one: for its classifier (`network.linear_classifier`) and for the batch norm before a stage's last activation
    (`network.norm_before`). A loss must not train it, nor hold it as a submodule.
    """

    features: StageShapes = field(default_factory=dict)
    network: StagedNetwork | None = None


class Loss(nn.Module, ABC, Generic[Options]):
    """A scalar of the student's and the teacher's output, a mean over the batch.

    Everything that can be wrong for a pair of networks is found when a loss is built.

    `needs_global_batch` says that the value depends on pairs of samples: such a loss applies `gather` to every tensor
    that it compares, then computes the same value on each process; no other loss gathers. `has_memory_bank` says that
    it keeps samples for later steps. `reads_preactivations` asks the networks to keep the maps before each stage's last
    ReLU (`Output.preactivations`). `head` names a further output that the loss gives rise to (`classify`), evaluated
    before the student's own. Parameters are trained with the student.

    Args:
        options: the loss's dataclass in `kdschemes.config.losses`.
        student: what learns.
        teacher: what teaches.
        data_spec: the data's classes, and the labels of the training samples.

    Raises:
        UserError: the loss cannot be defined for the two.
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
        """Return the stages of the teacher whose features the loss reads; None where that cannot be told."""
        return None

    def set_progress(self, progress: Progress) -> None:
        """Learn where training is, before each forward pass."""

    def classify(self, features: Mapping[str, Tensor]) -> Float[Tensor, "n classes"]:
        """Return the logits of `head` from the student's features."""
        raise NotImplementedError

    def recombined(self, network: StagedNetwork) -> StagedNetwork:
        """Return the plain network that gives `head` at inference, of the student's network and this loss's parts."""
        raise NotImplementedError


def embedding_width(shape: tuple[int, ...]) -> int:
    """Return the dimension of `embedding` of a feature of one sample's `shape`: map, tokens or vector."""
    return shape[0] if len(shape) == 3 else shape[-1]


def embedding(features: Float[Tensor, "n ..."]) -> Float[Tensor, "n d"]:
    """Average a map or tokens over positions, in float32 at least; a vector stays."""
    dtype = torch.promote_types(features.dtype, torch.float32)
    if features.dim() == 2:
        return features.to(dtype)
    return features.mean(dim=(2, 3) if features.dim() == 4 else 1, dtype=dtype)


def keywords(function: Callable[..., Tensor], options: Any) -> dict[str, Any]:
    """Return the fields of a loss's options that are keyword arguments of its function, by name."""
    return {name: getattr(options, name) for name in _keyword_names(function) if hasattr(options, name)}


@cache
def _keyword_names(function: Callable[..., Tensor]) -> list[str]:
    return [p.name for p in signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
