"""Data-distortion guided self-distillation: DDGSD (Xu and Liu 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from kdschemes.config import Config
from kdschemes.core.distillation import Distillation
from kdschemes.core.loss import embedding
from kdschemes.core.precision import full_precision
from kdschemes.core.schedules import Schedule, constant
from kdschemes.core.terms import Term
from kdschemes.core.types import Batch, DataSpec, Output
from kdschemes.distributed.collectives import gather
from kdschemes.schemes.distill import Edge, distill
from kdschemes.schemes.networks import student_network
from kdschemes.schemes.self_distillation.two_views import NetworkTwice

Gap = Literal["channels", "scalar"]


class MeanGap(Term):
    """`mean_gap` of two outputs' last features, averaged over positions; both outputs learn from it."""

    needs_global_batch = True

    def __init__(self, target: str, other: str, weight: Schedule, form: Gap) -> None:
        super().__init__(f"gap/{target}-{other}", target, weight)
        self.other, self.form = other, form

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.target, self.other)

    def forward(self, outputs: Mapping[str, Output], batch: Batch) -> Tensor:
        last = [list(outputs[name].features.values())[-1] for name in self.reads]
        first, second = (gather(embedding(features), batch.micro_size) for features in last)
        return mean_gap(first, second, form=self.form)


@full_precision
def mean_gap(first: Float[Tensor, "n d"], second: Float[Tensor, "n d"], *, form: Gap) -> Float[Tensor, ""]:
    r"""Return the squared distance between the mean features of two views of a batch.

    Xu & Liu 2019, "Data-Distortion Guided Self-Distillation for Deep Neural Networks": the maximum mean discrepancy
    with a linear kernel. 'channels' is $\| \frac1N \sum_n (a_n - b_n) \|^2$, summed over channels; 'scalar', from a
    public reimplementation, is $(\bar a - \bar b)^2$ of the means over samples and channels. The value depends on the
    whole batch; gradients flow to both.

    Args:
        first: features a of one view.
        second: features b of the other.
        form: 'channels' or 'scalar'.
    """
    gap = (first - second).mean(dim=0)
    return gap.square().sum() if form == "channels" else gap.mean().square()


def ddgsd(config: Config, data_spec: DataSpec) -> Distillation:
    """Return CE of both views, response in both directions, and the distance between their mean features.

    Both views share one forward pass; targets are detached, but not in the distance. Feature and relation terms, if
    any, also go in both directions.
    """
    student = NetworkTwice("student", student_network(config, data_spec, "student"), "view1", joint_forward=True)
    first, second = student.provides
    options = config.scheme
    return distill(
        {"student": student},
        supervised={first: 1.0, second: 1.0},
        edges=[Edge(second, first), Edge(first, second)],
        losses=config.losses,
        heads=["student"],
        data_spec=data_spec,
        terms=[MeanGap(first, second, constant(options.mean_distance_weight), options.mean_distance)],
    )
