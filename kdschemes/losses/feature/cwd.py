"""Channel-wise distillation: CWD (Shu et al. 2021)."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from kdschemes.config.losses import feature as config
from kdschemes.core.loss import Endpoint, Gather
from kdschemes.core.precision import full_precision
from kdschemes.core.types import DataSpec, StageShapes
from kdschemes.losses.response.kd import kd
from kdschemes.losses.stages import StageLoss, map_shapes, match_size, pairs_of_positions, projection, to_map


@full_precision
def cwd(
    student: Float[Tensor, "n c hs ws"], teacher: Float[Tensor, "n c ht wt"], *, temperature: float
) -> Float[Tensor, ""]:
    r"""Return $\frac{\tau^2}{NC} \sum_{n,c} KL(\phi(t_{nc}) \| \phi(s_{nc}))$, $\phi(x) = softmax_{hw}(x / \tau)$.

    Shu et al. 2021, "Channel-wise Knowledge Distillation for Dense Prediction": every channel of every sample is a
    distribution over positions. Sum over positions, mean over channels and the batch. Maps of different size are first
    average-pooled to the smaller height and width. Gradients flow to both. Computed as `kd` of N C rows.
    """
    student, teacher = match_size(student, teacher)
    return kd(student.flatten(2).flatten(0, 1), teacher.flatten(2).flatten(0, 1), temperature=temperature)


class CWD(StageLoss[config.CWD]):
    """Sum over stage pairs of `cwd`. Square tokens count as a map.

    If channels differ, the student's map first goes through a learned 1x1 convolution. For maps with a single position
    the term would always be 0: `stages=all` omits such pairs, other choices of them are rejected.
    """

    def __init__(self, options: config.CWD, *, student: Endpoint, teacher: Endpoint, data_spec: DataSpec) -> None:
        super().__init__(options, student=student, teacher=teacher, data_spec=data_spec)
        shapes = [map_shapes("cwd", pair, student, teacher) for pair in self.pairs]
        self.projections = nn.ModuleList(projection(ours[0], theirs[0]) for ours, theirs in shapes)

    def match(self, student: StageShapes, teacher: StageShapes) -> list[tuple[str, str]]:
        return pairs_of_positions("cwd", self.options.stages, student, teacher)

    def pair_loss(self, number: int, student: Tensor, teacher: Tensor, gather: Gather) -> Float[Tensor, ""]:
        ours = self.projections[number](to_map(student))
        return cwd(ours, to_map(teacher), temperature=self.options.temperature)
