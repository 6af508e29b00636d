"""Self: one network answers two batches of one step, and one answer teaches the other."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from kdschemes.config import Config
from kdschemes.distillation import Distillation, Edge, Task, distill
from kdschemes.distributed import gather
from kdschemes.losses.modules import embedding
from kdschemes.losses.precision import full_precision
from kdschemes.models import StagedNetwork
from kdschemes.nodes import Network
from kdschemes.outputs import Batch, Output, Outputs
from kdschemes.schedules import Schedule, constant
from kdschemes.schemes.networks import student_network
from kdschemes.terms import Term

Gap = Literal["channels", "scalar"]


class NetworkTwice(Network):
    """A trained network that answers, beside the batch, one of its companions.

    Outputs are `name` and, in training, `NAME/COMPANION`. `together` runs both in one forward pass, with one set of
    batch norm's statistics; else the companion follows the batch in a pass of its own, from which, without `learns`,
    no gradient comes. Of a companion without samples the answer is empty.
    """

    def __init__(
        self, name: str, network: StagedNetwork, companion: str, *, together: bool = False, learns: bool = True
    ) -> None:
        super().__init__(name, network)
        self.provides = (name, f"{name}/{companion}")
        self.companions = (companion,)
        self.samples = {self.provides[1]: companion}
        self.together, self.learns = together, learns

    def forward(self, batch: Batch, outputs: Mapping[str, Output]) -> Outputs:
        if not batch.companions:
            return self._answers(batch)
        name, again = self.provides
        other = batch.companion(self.companions[0])
        if self.together:
            pair = (batch, other)
            images, labels, index = (
                torch.cat([getattr(b, key) for b in pair]) for key in ("images", "labels", "index")
            )
            both = self._answers(Batch(images, labels, index))[name]
            return {name: _rows(both, slice(0, len(batch))), again: _rows(both, slice(len(batch), None))}
        answer = self._answers(batch)[name]
        if len(other) == 0:
            return {name: answer, again: _rows(answer, slice(0, 0))}
        with nullcontext() if self.learns else torch.no_grad():
            return {name: answer, again: self._answers(other)[name]}

    def _answers(self, batch: Batch) -> Outputs:
        return super().forward(batch, {})


class MeanGap(Term):
    """`mean_gap` of the last stage's features, averaged over positions, of two outputs; both learn from it."""

    spans_batch = True

    def __init__(self, target: str, other: str, weight: Schedule, form: Gap) -> None:
        super().__init__(f"gap/{target}-{other}", target, weight)
        self.other, self.form = other, form

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.target, self.other)

    def forward(self, outputs: Mapping[str, Output], batch: Batch) -> Tensor:
        last = [list(outputs[name].features.values())[-1] for name in self.reads]
        first, second = (gather(embedding(features), batch) for features in last)
        return mean_gap(first, second, form=self.form)


@full_precision
def mean_gap(first: Float[Tensor, "n d"], second: Float[Tensor, "n d"], *, form: Gap) -> Float[Tensor, ""]:
    r"""Return the squared distance of the mean features of two views of a batch.

    Xu & Liu 2019, "Data-Distortion Guided Self-Distillation for Deep Neural Networks": the maximum mean discrepancy
    with a linear kernel. 'channels' is $\| \frac1N \sum_n (a_n - b_n) \|^2$, summed over channels; 'scalar', of a
    public re-implementation, $(\bar a - \bar b)^2$ of the means over samples and channels. The value depends on the
    whole batch; gradients flow to both.

    Args:
        first: features a of one view.
        second: features b of the other.
        form: 'channels' or 'scalar'.
    """
    gap = (first - second).mean(dim=0)
    return gap.square().sum() if form == "channels" else gap.mean().square()


def ddgsd(config: Config, task: Task) -> Distillation:
    """Return CE of both views, response each from the other, and the distance of their mean features.

    One forward pass runs both views; targets are constants, the distance is none. Feature and relation terms run both
    ways, too.
    """
    student = NetworkTwice("student", student_network(config, task, "student"), "view1", together=True)
    first, second = student.provides
    options = config.scheme
    return distill(
        {"student": student},
        supervised={first: 1.0, second: 1.0},
        edges=[Edge(second, first), Edge(first, second)],
        losses=config.losses,
        heads=["student"],
        task=task,
        terms=[MeanGap(first, second, constant(options.gap_weight), options.gap)],
    )


def cskd(config: Config, task: Task) -> Distillation:
    """Return CE + response(another sample of the class -> the sample).

    The other sample is answered without gradient, by the network in training mode, after the batch.
    """
    student = NetworkTwice("student", student_network(config, task, "student"), "classmate", learns=False)
    name, classmate = student.provides
    return distill(
        {"student": student},
        supervised={name: 1.0},
        edges=[Edge(classmate, name)],
        losses=config.losses,
        heads=["student"],
        task=task,
    )


def _rows(output: Output, part: slice) -> Output:
    return Output(
        output.logits[part],
        {name: f[part] for name, f in output.features.items()},
        {name: f[part] for name, f in output.preactivations.items()},
    )
