"""Hints: squared distance between features (FitNets, Romero et al. 2015)."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from kdschemes.config.losses import feature as config
from kdschemes.core.loss import Endpoint, Gather
from kdschemes.core.precision import full_precision
from kdschemes.core.types import DataSpec
from kdschemes.losses.stages import StageLoss, map_shape, match_size, to_map


@full_precision
def hint(student: Float[Tensor, "*shape"], teacher: Float[Tensor, "*shape"]) -> Float[Tensor, ""]:
    r"""Return the mean over all elements of $(f_s - f_t)^2$.

    Romero et al. 2015, "FitNets", without the paper's factor 1/2 (RepDistiller's convention). Gradients flow to both.
    """
    assert student.shape == teacher.shape, f"{tuple(student.shape)} vs. {tuple(teacher.shape)}"
    return (student - teacher).square().mean()


class Hint(StageLoss[config.Hint]):
    """Sum over stage pairs of `hint`, after a learned regressor on the student's features.

    A pair with equal shapes has no regressor. Otherwise it is affine and trained with the student: a linear layer for
    two vectors (or equal numbers of tokens), a 1x1 convolution with bias for maps, after average-pooling the larger to
    the smaller size. Square tokens count as a map. (FitNets' regressor is a larger convolution; RepDistiller always has
    one, followed by batch norm and ReLU.)
    """

    def __init__(self, options: config.Hint, *, student: Endpoint, teacher: Endpoint, data_spec: DataSpec) -> None:
        super().__init__(options, student=student, teacher=teacher, data_spec=data_spec)
        self.regressors = nn.ModuleList(
            _regressor(a, student.features[a], b, teacher.features[b]) for a, b in self.pairs
        )

    def pair_loss(self, number: int, student: Tensor, teacher: Tensor, gather: Gather) -> Float[Tensor, ""]:
        regressor = self.regressors[number]
        if isinstance(regressor, nn.Conv2d):
            student, teacher = match_size(to_map(student), to_map(teacher))
        return hint(regressor(student), teacher)


def _regressor(a: str, ours: tuple[int, ...], b: str, theirs: tuple[int, ...]) -> nn.Module:
    if ours == theirs:
        return nn.Identity()
    if len(ours) == len(theirs) and len(ours) < 3 and ours[:-1] == theirs[:-1]:
        return nn.Linear(ours[-1], theirs[-1])
    return nn.Conv2d(map_shape("hint", a, ours)[0], map_shape("hint", b, theirs)[0], 1)
