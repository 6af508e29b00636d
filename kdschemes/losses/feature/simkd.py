"""The teacher's classifier on the student's projected features: SimKD (Chen et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor

from kdschemes.config.losses import feature as config
from kdschemes.core.loss import Endpoint, Gather
from kdschemes.core.precision import full_precision
from kdschemes.core.types import Batch, DataSpec, Output
from kdschemes.errors import UserError
from kdschemes.losses.feature.hint import hint
from kdschemes.losses.stages import LastStageLoss, linear_classifier, match_size
from kdschemes.models import StagedNetwork
from kdschemes.models.recombined import Projector, Recombined, as_map, classify


@full_precision
def simkd(student: Float[Tensor, "n c hs ws"], teacher: Float[Tensor, "n c ht wt"]) -> Float[Tensor, ""]:
    r"""Return the mean over all elements of $(s - t)^2$: the loss of SimKD, after its projector.

    Chen et al. 2022, "Knowledge Distillation with the Reused Teacher Classifier". Maps of different size are first
    average-pooled to the smaller height and width. Gradients flow to both.
    """
    return hint(*match_size(student, teacher))


class SimKD(LastStageLoss[config.SimKD]):
    """`simkd` of the last maps, the student's after a projector.

    It adds an output `simkd` to the student: the teacher's classifier on the projected map. That classifier is neither
    trained nor registered here.
    """

    head = "simkd"

    def __init__(self, options: config.SimKD, *, student: Endpoint, teacher: Endpoint, data_spec: DataSpec) -> None:
        super().__init__(options, student=student, teacher=teacher, data_spec=data_spec)
        if student.network is None:
            raise UserError(
                "simkd gives its student another classifier, but the student is not a whole network "
                "(an exit, or a peer with a shared trunk): choose another loss"
            )
        self._classifier = [linear_classifier("simkd", "teacher", teacher)]
        if any(p.requires_grad for p in self._classifier[0].parameters()):
            raise UserError("simkd reuses a frozen teacher's classifier, but this one is trained: use scheme=offline")
        ours, theirs = self.match_last(student, teacher)
        size = (min(ours[1], theirs[1]), min(ours[2], theirs[2]))
        self.projector = Projector(ours[0], max(1, theirs[0] // options.factor), theirs[0], size)

    def forward(self, student: Output, teacher: Output, batch: Batch, gather: Gather) -> Float[Tensor, ""]:
        a, b = self.pair
        return simkd(self.projector(student.features[a]), as_map(teacher.features[b]))

    def classify(self, features: Mapping[str, Tensor]) -> Float[Tensor, "n classes"]:
        return classify(self._classifier[0], self.projector(features[self.pair[0]]))

    def recombined(self, network: StagedNetwork) -> Recombined:
        return Recombined(network, self.projector, self._classifier[0])
