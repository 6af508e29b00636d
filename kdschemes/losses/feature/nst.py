"""Neuron selectivity transfer: NST (Huang and Wang 2017)."""

from __future__ import annotations

import math

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from kdschemes.config.losses import feature as config
from kdschemes.core.loss import Gather
from kdschemes.core.precision import full_precision
from kdschemes.core.types import StageShapes
from kdschemes.losses.rows import unit_rows
from kdschemes.losses.stages import StageLoss, match_size, pairs_of_positions, to_map


@full_precision
def nst(student: Float[Tensor, "n cs hs ws"], teacher: Float[Tensor, "n ct ht wt"]) -> Float[Tensor, ""]:
    r"""Return the mean over samples of the squared maximum mean discrepancy between the two sets of channels.

    Huang & Wang 2017, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer", with the polynomial
    kernel $k(a, b) = (a \cdot b)^2$ (degree 2, no constant) of channels L2-normalized over positions:
    $\overline{k(s, s)} + \overline{k(t, t)} - 2 \overline{k(s, t)}$. A zero channel stays 0 with zero gradient. Maps of
    different size are first average-pooled to the smaller height and width. Gradients flow to both.

    This equals $\|M_s - M_t\|_F^2$ with the position-by-position matrix $M = \frac1C \sum_c a_c a_c^\top$, which is
    used if there are fewer positions than channels. Otherwise, with $\delta$ and $\pi$ the difference and sum of the
    channels divided by $\sqrt C$ (padded with zeros to equal number), it is
    $\frac12 (\langle \delta\delta^\top, \pi\pi^\top \rangle + \langle \pi\delta^\top, (\pi\delta^\top)^\top \rangle)$.
    Either way memory use stays close to that of the maps, and close maps suffer far less cancellation than with three
    means of the kernel. Channels are normalized at any scale; the references clamp the norm at 1e-12.
    """
    student, teacher = match_size(student, teacher)
    s, t = _unit_channels(student), _unit_channels(teacher)
    if s.shape[2] <= s.shape[1] + t.shape[1]:
        return (s.mT @ s - t.mT @ t).square().sum(dim=(1, 2)).mean()
    missing = s.shape[1] - t.shape[1]
    s, t = functional.pad(s, (0, 0, 0, max(-missing, 0))), functional.pad(t, (0, 0, 0, max(missing, 0)))
    difference, total = s - t, s + t
    crossed = total @ difference.mT
    straight = (difference @ difference.mT) * (total @ total.mT)
    return 0.5 * (straight + crossed * crossed.mT).sum(dim=(1, 2)).clamp(min=0.0).mean()


def _unit_channels(features: Tensor) -> Tensor:
    """Return `[n, c, positions]`: every channel L2-normalized and divided by sqrt(c)."""
    rows = unit_rows(features.flatten(2).flatten(0, 1)) / math.sqrt(features.shape[1])
    return rows.reshape(*features.shape[:2], -1)


class NST(StageLoss[config.NST]):
    """Sum over stage pairs of `nst`. Square tokens count as a map.

    Channels with a single position are all equal (the term would be 0): such pairs are treated as in `AT`.
    """

    def match(self, student: StageShapes, teacher: StageShapes) -> list[tuple[str, str]]:
        return pairs_of_positions("nst", self.options.stages, student, teacher)

    def pair_loss(self, number: int, student: Tensor, teacher: Tensor, gather: Gather) -> Float[Tensor, ""]:
        return nst(to_map(student), to_map(teacher))
