"""Whether a teacher's predictions agree with the labels, before it teaches."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from jaxtyping import Int
from torch import Tensor

SURE = 3.0
"""Standard deviations from which a difference is not taken for chance."""

MOST_CLASSES = 4096
"""With more classes, their order is not examined: the time grows with the third power."""


def doubt(predicted: Int[Tensor, " n"], labels: Int[Tensor, " n"], classes: Sequence[str]) -> str | None:
    """Return what seems to be wrong with a teacher that predicts these classes for labeled images; None if nothing.

    Its outputs seem to be in another order than `classes` if renaming them, as half of the images suggest, gets
    significantly more of the other half right. It is at chance level if its accuracy is not significantly above that of
    guessing, as often for each class as it predicts it, and significantly below the middle between that and 100 %.
    """
    samples = len(labels)
    shuffled = np.random.default_rng(0).permutation(samples)
    found, true = predicted.cpu().numpy()[shuffled], labels.cpu().numpy()[shuffled]
    half, accuracy = samples // 2, float((found == true).mean())
    name_of = _renamed(found[:half], true[:half], len(classes))
    as_renamed, as_named = found[half:] == name_of[true[half:]], found[half:] == true[half:]
    gained, lost = int((as_renamed & ~as_named).sum()), int((as_named & ~as_renamed).sum())
    if gained - lost > SURE * math.sqrt(gained + lost):
        moved = np.flatnonzero(name_of != np.arange(len(classes)))
        calls = ", ".join(f"{classes[label]!r} mostly {classes[name_of[label]]!r}" for label in moved[:3])
        return (
            f"seems to have its classes in another order: {100 * accuracy:.2f} % of {samples:,} images are right, but "
            f"it calls {calls}{', ...' if len(moved) > 3 else ''}; are these its classes, in the order of the data's?"
        )
    often = [np.bincount(values, minlength=len(classes)) for values in (found, true)]
    guessing = float(often[0] @ often[1]) / samples**2
    if accuracy > guessing + SURE * math.sqrt(guessing * (1 - guessing) / samples):
        return None
    if _at_most(accuracy, samples) > (1 + guessing) / 2:
        return None
    return (
        f"is at chance level ({100 * accuracy:.2f} % of {samples:,} images, chance is {100 * guessing:.2f} %): are "
        "these its weights, its classes and its normalization?"
    )


def _renamed(found: npt.NDArray[np.int64], true: npt.NDArray[np.int64], classes: int) -> npt.NDArray[np.int64]:
    """Return what each label is called if every label has one name and as many predictions as possible are right."""
    from scipy.optimize import linear_sum_assignment  # not where teachers are not examined

    names, seen = np.arange(classes), np.union1d(found, true)
    if len(seen) > MOST_CLASSES:
        return names
    agreement = 0.5 * np.eye(len(seen))
    np.add.at(agreement, (np.searchsorted(seen, true), np.searchsorted(seen, found)), 1.0)
    names[seen] = seen[linear_sum_assignment(agreement, maximize=True)[1]]
    return names


def _at_most(share: float, samples: int) -> float:
    """Return the upper end of Wilson's confidence interval."""
    squared = SURE**2 / samples
    spread = SURE * math.sqrt(share * (1 - share) / samples + squared / (4 * samples))
    return (share + squared / 2 + spread) / (1 + squared)
