"""The comparison of an exported network with the run's own, on held-out images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from kdschemes.deployment.formats import Predictor
from kdschemes.errors import UserError
from kdschemes.models import ExitNetwork, confidence

TOLERANCE = 1e-4
"""How far a logit may be from the run's own, as a fraction of the largest logit of its batch (at least 1)."""

MOST_LOST = 5.0
"""Points of accuracy from which on a quantized network is refused."""


@dataclass(frozen=True)
class Checked:
    """A comparison over `images` images of `split`: accuracies in percent, and the largest difference of a logit.

    With `several` labels per image, an accuracy is the share of decisions, one for each class, that are right.
    `largest` is a fraction of the largest logit of its batch.
    """

    split: str
    images: int
    own: float
    exported: float
    largest: float
    several: bool = False

    @property
    def lost(self) -> float:
        """Points of accuracy that the exported network has less."""
        return self.own - self.exported

    def line(self, *, int8: bool) -> str:
        """Return the comparison in a sentence."""
        where = f"{self.images:,} {self.split} images"
        where = f"the decisions for {where}" if self.several else where
        if int8:
            return (
                f"int8 has {self.exported:.2f} % on {where}, float32 {self.own:.2f} %: it costs {self.lost:.2f} points"
            )
        return (
            f"{self.exported:.2f} % on {where}, as the run's own network ({self.own:.2f} %); logits differ by at most "
            f"{self.largest:.1e} of the largest ({TOLERANCE:g} allowed)"
        )


@torch.no_grad()
def compare(
    batches: Iterable[tuple[Tensor, Tensor, Tensor]],
    own: Predictor,
    exported: Predictor,
    split: str,
    *,
    near: Iterator[Tensor] | None = None,
    int8: bool = False,
) -> Checked:
    """Compare two predictors on batches of (images of the first, images of the second, labels).

    For early exit, `near` marks the samples of each batch whose confidence is so close to a threshold that rounding
    may change their exit: they are not compared.

    Raises:
        UserError: logits or accuracy differ by more than is allowed.
    """
    total = decisions = own_hits = hits = ties = 0
    largest = 0.0
    for images, given, labels in batches:
        expected, *taken = own(images)
        found, *found_taken = exported(given)
        compared = torch.ones(len(labels), dtype=torch.bool) if near is None else ~next(near)
        if taken and not torch.equal(taken[0][compared], found_taken[0][compared]):
            raise UserError("samples stop at other exits than in the run")
        scale = max(1.0, float(expected.abs().max()))
        apart = float((expected - found)[compared].abs().max()) / scale if compared.any() else 0.0
        largest = max(largest, apart if apart == apart else float("inf"))
        first, second = expected.topk(2, dim=1).values.T
        ties += int((~compared | (first - second <= 2 * TOLERANCE * scale)).sum())
        if labels.dim() == 2:  # each class is a decision of its own
            ties += int((expected.abs() <= TOLERANCE * scale).sum())
        own_hits, hits = own_hits + _hits(expected, labels), hits + _hits(found, labels)
        total += len(labels)
        decisions += labels.numel()
    shares = 100 * own_hits / decisions, 100 * hits / decisions
    checked = Checked(split, total, *shares, largest, several=decisions > total)
    if int8 and checked.lost > MOST_LOST:
        raise UserError(f"{checked.line(int8=True)}, more than the {MOST_LOST:g} allowed")
    if not int8 and (largest > TOLERANCE or abs(own_hits - hits) > ties):
        raise UserError(f"the exported network differs from the run's: {checked.line(int8=False)}")
    return checked


def _hits(logits: Tensor, labels: Tensor) -> int:
    """Return how many samples are right, or with several labels per image, how many decisions."""
    return int(((logits > 0) == labels if labels.dim() == 2 else logits.argmax(1) == labels).sum())


def near_threshold(network: ExitNetwork, thresholds: tuple[float, ...], batches: Iterable[Tensor]) -> Iterator[Tensor]:
    """Yield, for each batch, which samples have an exit with a confidence within `TOLERANCE` of its threshold."""
    for images in batches:
        with torch.no_grad():
            logits = [logits for logits, _ in network.forward_exits(images)[2].values()]
        pairs = zip(logits, thresholds, strict=True)
        yield torch.stack([(confidence(each) - threshold).abs() < TOLERANCE for each, threshold in pairs]).any(0)
