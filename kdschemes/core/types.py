"""What flows through a step: a batch in, one `Output` a network or exit, one `StepResult` out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from jaxtyping import Bool, Float, Int
from torch import Tensor

from kdschemes.models.recombined import as_map as as_map


@dataclass(frozen=True)
class Batch:
    """Samples of one micro-batch on one process, already on the device, their view already applied.

    `index` is each sample's position in the training set (a memory bank's or a cache's key). With mixup a view is
    `mix * view(index) + (1 - mix) * view(partner)` and `partner_labels` are the labels of the partners.
    `micro_size` counts the samples of this micro-batch over all processes, `step_size` those of the whole optimizer
    step (all processes, all accumulated micro-batches); None means that this batch is all there is.

    `aux_batches` are further batches that a scheme trains on beside this one, by name: `view1`, `view2`, ... (the same
    samples in other views), `classmate` (for each sample another one of its class), `previous` (the samples of the
    optimizer step before, in another view than they had; none at the first step). Evaluation has none.

    `epoch` is the one whose view of the samples this is; None: not that view, as in evaluation and in auxiliary
    batches.
    """

    images: Float[Tensor, "n c h w"]
    labels: Int[Tensor, " n"]
    index: Int[Tensor, " n"]
    partner_labels: Int[Tensor, " n"] | None = None
    mix: Float[Tensor, " n"] | None = None
    micro_size: int | None = None
    step_size: int | None = None
    aux_batches: Mapping[str, Batch] = field(default_factory=dict)
    epoch: int | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def aux_batch(self, name: str | None) -> Batch:
        """Return the auxiliary batch of that name; this batch for None, and in evaluation, where there are none."""
        return self if name is None or not self.aux_batches else self.aux_batches[name]


@dataclass(frozen=True)
class Output:
    """What one network (or one exit of it) says of a batch.

    `logits` are `[N, C]`; `features` maps a stage's name, shallow to deep, to a map `[N, C_s, H, W]`, tokens
    `[N, L, D]` or a vector `[N, D]`. `preactivations` are the maps before the last ReLU of the stages that have one,
    where a loss asked for them. `known` says for which samples there is an answer at all (a bank of earlier
    predictions has none for a sample never seen); None: for all.
    """

    logits: Float[Tensor, "n classes"]
    features: Mapping[str, Tensor] = field(default_factory=dict)
    preactivations: Mapping[str, Tensor] = field(default_factory=dict)
    known: Bool[Tensor, " n"] | None = None

    def detach(self) -> Output:
        """Return the same values as constants: no gradient flows back through them."""
        return Output(
            self.logits.detach(),
            {name: f.detach() for name, f in self.features.items()},
            {name: f.detach() for name, f in self.preactivations.items()},
            self.known,
        )

    def float(self) -> Output:
        """Return the same values in float32."""
        return Output(
            self.logits.float(),
            {name: f.float() for name, f in self.features.items()},
            {name: f.float() for name, f in self.preactivations.items()},
            self.known,
        )


Outputs = dict[str, Output]


@dataclass(frozen=True)
class Progress:
    """Where training is: `step` optimizer steps done of `total_steps`, `steps_per_epoch` of them an epoch."""

    step: int
    total_steps: int
    steps_per_epoch: int

    @property
    def epoch(self) -> float:
        """Epochs done, with the fraction of the current one."""
        return self.step / self.steps_per_epoch

    @property
    def fraction(self) -> float:
        """Share of the whole training that is done, from 0 to 1."""
        return self.step / self.total_steps


@dataclass(frozen=True)
class StepResult:
    """One forward pass: the weighted `total` to differentiate, and each term's own value and weight by name.

    `losses` are unweighted and detached, `outputs` detached.
    """

    total: Float[Tensor, ""]
    losses: dict[str, Tensor]
    weights: dict[str, float]
    outputs: Outputs


StageShapes = Mapping[str, tuple[int, ...]]
"""By stage, shallow to deep, the shape of one sample's feature: map (C, H, W), tokens (L, D) or vector (D,)."""


@dataclass(frozen=True)
class DataSpec:
    """Classes, channels and the side of an image in pixels.

    `train_labels` has an entry for every position that `Batch.index` can name: the label where the sample is trained
    on, -1 where it is held out. Only losses that remember samples need it.
    """

    num_classes: int
    channels: int
    image_size: int
    train_labels: Int[Tensor, " positions"] | None = field(default=None, compare=False)
