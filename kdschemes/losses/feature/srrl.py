"""Softmax regression representation learning: SRRL (Yang et al. 2021)."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from kdschemes.config.losses import feature as config
from kdschemes.core.loss import Endpoint, Gather, embedding, keywords
from kdschemes.core.precision import full_precision
from kdschemes.core.types import Batch, DataSpec, Output
from kdschemes.errors import UserError
from kdschemes.losses.stages import LastStageLoss, linear_classifier
from kdschemes.models.recombined import as_map


@full_precision
def srrl(
    student: Float[Tensor, "n d"],
    teacher: Float[Tensor, "n d"],
    *,
    classifier: Float[Tensor, "classes d"],
    alpha: float = 1.0,
    beta: float = 1.0,
) -> Float[Tensor, ""]:
    r"""Return $\frac\alpha{ND} \sum_n \|s_n - t_n\|^2 + \frac\beta{NC} \sum_n \|W s_n - W t_n\|^2$, W the classifier.

    Yang et al. 2021, "Knowledge Distillation via Softmax Regression Representation Learning": feature matching, plus
    matching the logits that the teacher's classifier gives for both features. Both are squared differences, averaged
    over the batch and the dimensions or classes, as in the authors' code. The classifier's bias cancels, and the second
    part is computed as W (s - t), which is accurate near equality. Gradients flow to all three.
    """
    gap = student - teacher
    return alpha * gap.square().mean() + beta * (gap @ classifier.mT).square().mean()


class SRRL(LastStageLoss[config.SRRL]):
    """`srrl` of the last features averaged over positions, the student's after a learned connector.

    The connector is a 1x1 convolution, batch norm and ReLU, before averaging. The teacher's classifier is frozen.
    """

    def __init__(self, options: config.SRRL, *, student: Endpoint, teacher: Endpoint, data_spec: DataSpec) -> None:
        super().__init__(options, student=student, teacher=teacher, data_spec=data_spec)
        if options.alpha == options.beta == 0:
            raise UserError("srrl with alpha=0 and beta=0 compares nothing: give one of them a positive weight")
        self._classifier = [linear_classifier("srrl", "teacher", teacher)]
        ours, theirs = self.match_last(student, teacher)
        self.connector = nn.Sequential(
            nn.Conv2d(ours[0], theirs[0], 1, bias=False), nn.BatchNorm2d(theirs[0]), nn.ReLU(inplace=True)
        )

    def forward(self, student: Output, teacher: Output, batch: Batch, gather: Gather) -> Float[Tensor, ""]:
        a, b = self.pair
        return srrl(
            embedding(self.connector(as_map(student.features[a]))),
            embedding(teacher.features[b]),
            classifier=self._classifier[0].weight.detach(),
            **keywords(srrl, self.options),
        )
