"""What the data ask of the networks."""

from __future__ import annotations

from dataclasses import dataclass, field

from jaxtyping import Int
from torch import Tensor


@dataclass(frozen=True)
class Task:
    """Classes, channels and the side of an image in pixels.

    `train_labels` has an entry for every position that `Batch.index` can name: the label where the sample is trained
    on, -1 where it is held out. Only losses that remember samples need it.
    """

    num_classes: int
    channels: int
    image_size: int
    train_labels: Int[Tensor, " positions"] | None = field(default=None, compare=False)
