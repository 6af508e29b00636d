"""The data of a training step: a batch in, one `Output` per network or exit, one `StepResult` out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from jaxtyping import Bool, Float, Int, Num
from torch import Tensor

from kdschemes.errors import UserError
from kdschemes.models.inputs import InputSpec
from kdschemes.models.recombined import as_map as as_map


@dataclass(frozen=True)
class Batch:
    """The samples of one micro-batch on one process, augmented and on the device.

    A label of -1 means that the sample has none; with several labels per image, `labels` has a row of 0 and 1 for each
    sample, one per class. `index` is each sample's position in the training set (the key of
    memory banks and caches). With mixup, an image is
    `mix * view(index) + (1 - mix) * view(partner)`, and `partner_labels` are the partners' labels. `micro_size` is the
    number of samples of this micro-batch over all processes, `step_size` that of the whole optimizer step (all
    processes, all accumulated micro-batches); None: this batch is the whole.

    `aux_batches` are additional batches that a scheme trains on, by name: `view1`, `view2`, ... (other views of these
    samples), `plain` (these samples without augmentation), `same_class` (another sample of the same class for each
    sample), `previous` (the samples of the previous optimizer step in a new view; empty at the first step). There are
    none in evaluation.

    `epoch` is the epoch of the samples' views; None in evaluation and in auxiliary batches.
    """

    images: Float[Tensor, "n c h w"]
    labels: Int[Tensor, " n"] | Num[Tensor, "n classes"]
    index: Int[Tensor, " n"]
    partner_labels: Int[Tensor, " n"] | Num[Tensor, "n classes"] | None = None
    mix: Float[Tensor, " n"] | None = None
    micro_size: int | None = None
    step_size: int | None = None
    aux_batches: Mapping[str, Batch] = field(default_factory=dict)
    epoch: int | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def aux_batch(self, name: str | None) -> Batch:
        """Return an auxiliary batch by name; for None, and in evaluation, this batch itself."""
        return self if name is None or not self.aux_batches else self.aux_batches[name]


@dataclass(frozen=True)
class Output:
    """The output of one network (or one of its exits) for a batch.

    `logits` are `[N, C]`; `features` maps stage names, shallow to deep, to a map `[N, C_s, H, W]`, tokens `[N, L, D]`,
    or a vector `[N, D]`. `preactivations` are the maps before the last ReLU of the stages that have one, if a loss
    requested them. `known` marks the samples that have an output (a prediction bank has none for a sample never seen);
    None: all.
    """

    logits: Float[Tensor, "n classes"]
    features: Mapping[str, Tensor] = field(default_factory=dict)
    preactivations: Mapping[str, Tensor] = field(default_factory=dict)
    known: Bool[Tensor, " n"] | None = None

    def detach(self) -> Output:
        return Output(
            self.logits.detach(),
            {name: f.detach() for name, f in self.features.items()},
            {name: f.detach() for name, f in self.preactivations.items()},
            self.known,
        )

    def float(self) -> Output:
        return Output(
            self.logits.float(),
            {name: f.float() for name, f in self.features.items()},
            {name: f.float() for name, f in self.preactivations.items()},
            self.known,
        )


Outputs = dict[str, Output]


@dataclass(frozen=True)
class Progress:
    """Training progress: `step` of `total_steps` optimizer steps done, with `steps_per_epoch` steps per epoch."""

    step: int
    total_steps: int
    steps_per_epoch: int

    @property
    def epoch(self) -> float:
        """Epochs done, including the fraction of the current one."""
        return self.step / self.steps_per_epoch

    @property
    def fraction(self) -> float:
        """Fraction of training done, from 0 to 1."""
        return self.step / self.total_steps


@dataclass(frozen=True)
class StepResult:
    """The result of one forward pass: the weighted `total` to differentiate, and each term's value and weight by name.

    `losses` are unweighted; `losses` and `outputs` are detached.
    """

    total: Float[Tensor, ""]
    losses: dict[str, Tensor]
    weights: dict[str, float]
    outputs: Outputs


StageShapes = Mapping[str, tuple[int, ...]]
"""The shape of one sample's feature by stage, shallow to deep: map (C, H, W), tokens (L, D), or vector (D,)."""


@dataclass(frozen=True)
class DataSpec:
    """What a scheme is built for: the number of classes and channels, and the side of a batch's images in pixels.

    `train_labels` has one entry per value of `Batch.index`: the label of a training sample, -1 if it is held out. Only
    losses with a memory bank and prediction banks need it. `classes` are the names of the classes in the order of the
    labels, if known. `mean` and `std` are those by which the images were normalized, per channel (None: unknown). For
    evaluation, they were resized to `round(image_size / kept)`, then cropped to their center. `multi_label`: an image
    has any number of labels. Without `initial_weights`, networks to train do not load any: a checkpoint will follow.
    """

    num_classes: int
    channels: int
    image_size: int
    train_labels: Int[Tensor, " positions"] | None = field(default=None, compare=False)
    classes: tuple[str, ...] = ()
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    kept: float = 1.0
    multi_label: bool = False
    initial_weights: bool = True

    @property
    def input(self) -> InputSpec:
        """What the images of a batch look like."""
        return InputSpec(self.image_size, self.mean, self.std)

    def labels_of_all(self) -> Int[Tensor, " positions"]:
        """Return `train_labels`.

        Raises:
            UserError: there are none.
        """
        if self.train_labels is None:
            raise UserError("predictions of each training sample are stored: pass train_labels, the labels of all")
        return self.train_labels
