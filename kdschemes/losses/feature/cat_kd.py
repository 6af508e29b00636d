"""Class activation maps: CAT-KD (Guo et al. 2023)."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from kdschemes.config.losses import feature as config
from kdschemes.core.loss import Endpoint, Gather, keywords
from kdschemes.core.precision import full_precision
from kdschemes.core.types import Batch, DataSpec, Output
from kdschemes.errors import UserError
from kdschemes.losses.feature.hint import hint
from kdschemes.losses.rows import unit
from kdschemes.losses.stages import LastStageLoss, linear_classifier
from kdschemes.models.recombined import as_map


@full_precision
def class_activation(
    features: Float[Tensor, "n d h w"], classifier: Float[Tensor, "classes d"]
) -> Float[Tensor, "n classes h w"]:
    r"""Return the class activation maps $M_c(h, w) = \sum_d W_{cd} f_d(h, w)$: each position's logits without bias.

    Zhou et al. 2016, "Learning Deep Features for Discriminative Localization". Gradients flow to both.
    """
    n, _, h, w = features.shape
    return (classifier @ features.flatten(2)).reshape(n, len(classifier), h, w)


@full_precision
def cat_kd(
    student: Float[Tensor, "n classes hs ws"],
    teacher: Float[Tensor, "n classes ht wt"],
    *,
    resolution: int = 2,
    normalize: bool = False,
) -> Float[Tensor, ""]:
    r"""Return the mean over samples, classes and positions of $(\bar M^s - \bar M^t)^2$ of class activation maps.

    Guo et al. 2023, "Class Attention Transfer Based Knowledge Distillation". $\bar M$ is a sample's map of a class,
    average-pooled to resolution x resolution positions and, if `normalize`, divided by its norm $\|M_{nc}\|_2$. A zero
    map stays 0 with zero gradient. Gradients flow to both.
    """
    assert resolution > 0, resolution
    ours, theirs = (functional.adaptive_avg_pool2d(maps, resolution).flatten(2) for maps in (student, teacher))
    return hint(unit(ours), unit(theirs)) if normalize else hint(ours, theirs)


class CATKD(LastStageLoss[config.CATKD]):
    """`cat_kd` of the class activation maps of the last stages. Square tokens count as a map.

    The student's classifier is trained through its maps, the teacher's is detached. `normalize` is rejected for 1x1
    maps, which would retain only the sign and have no gradient.
    """

    def __init__(self, options: config.CATKD, *, student: Endpoint, teacher: Endpoint, data_spec: DataSpec) -> None:
        super().__init__(options, student=student, teacher=teacher, data_spec=data_spec)
        self._classifiers = [
            linear_classifier("cat_kd", "student", student),
            linear_classifier("cat_kd", "teacher", teacher),
        ]
        shapes = self.match_last(student, teacher)
        for stage, (_, height, width) in zip(self.pair, shapes, strict=True):
            if options.normalize and height * width == 1:
                raise UserError(
                    f"cat_kd with normalize=true needs more than one position, but the map of '{stage}' is 1x1: "
                    "set losses.feature.normalize=false or choose another model"
                )
        if options.normalize and options.resolution == 1:
            raise UserError("cat_kd with resolution=1 would keep only signs: set losses.feature.normalize=false")

    def forward(self, student: Output, teacher: Output, batch: Batch, gather: Gather) -> Float[Tensor, ""]:
        (a, b), (ours, theirs) = self.pair, self._classifiers
        return cat_kd(
            class_activation(as_map(student.features[a]), ours.weight),
            class_activation(as_map(teacher.features[b]), theirs.weight.detach()),
            **keywords(cat_kd, self.options),
        )
