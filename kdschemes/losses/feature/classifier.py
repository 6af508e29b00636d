"""Features as a linear classifier reads them."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from kdschemes.losses.feature.channels import unit
from kdschemes.losses.feature.maps import hint, match_size
from kdschemes.losses.precision import full_precision


@full_precision
def class_activation(
    features: Float[Tensor, "n d h w"], classifier: Float[Tensor, "classes d"]
) -> Float[Tensor, "n classes h w"]:
    r"""Return the class activation maps $M_c(h, w) = \sum_d W_{cd} f_d(h, w)$: the logits of each position, less bias.

    Zhou et al. 2016, "Learning Deep Features for Discriminative Localization". Gradients flow to both.

    Args:
        features: the maps whose mean over positions the classifier reads.
        classifier: its weight W.
    """
    n, _, h, w = features.shape
    return (classifier @ features.flatten(2)).reshape(n, len(classifier), h, w)


@full_precision
def cat_kd(
    student: Float[Tensor, "n classes hs ws"],
    teacher: Float[Tensor, "n classes ht wt"],
    *,
    resolution: int = 2,
    normalise: bool = False,
) -> Float[Tensor, ""]:
    r"""Return the mean over samples, classes and positions of $(\bar M^s - \bar M^t)^2$ of class activation maps.

    Guo et al. 2023, "Class Attention Transfer Based Knowledge Distillation". $\bar M$ is a sample's map of a class,
    average-pooled to resolution x resolution positions and then divided by its length $\|M_{nc}\|_2$ if `normalise`
    says so. A map of 0 stays 0 and has a gradient of 0. Gradients flow to both.

    Args:
        student: class activation maps, as from `class_activation`.
        teacher: class activation maps of as many classes; the size may differ.
        resolution: side of the maps that are compared.
        normalise: compare where classes are seen, not how strongly.
    """
    assert resolution > 0, resolution
    ours, theirs = (functional.adaptive_avg_pool2d(maps, resolution).flatten(2) for maps in (student, teacher))
    return hint(unit(ours), unit(theirs)) if normalise else hint(ours, theirs)


@full_precision
def srrl(
    student: Float[Tensor, "n d"],
    teacher: Float[Tensor, "n d"],
    *,
    classifier: Float[Tensor, "classes d"],
    alpha: float = 1.0,
    beta: float = 1.0,
) -> Float[Tensor, ""]:
    r"""Return $\frac\alpha{ND} \sum_n \|s_n - t_n\|^2 + \frac\beta{NC} \sum_n \|W s_n - W t_n\|^2$.

    Yang et al. 2021, "Knowledge Distillation via Softmax Regression Representation Learning": feature matching, and
    the teacher's classifier on the student's feature against its own logits. Both are squared differences, averaged
    over the batch and over the dimensions or the classes, as in the authors' code. The classifier's bias cancels, and
    the second part is computed as W (s - t), so near equality no digits are lost. Gradients flow to all three.

    Args:
        student: embeddings in the teacher's space.
        teacher: embeddings that the teacher's classifier reads.
        classifier: its weight W.
        alpha: weight of feature matching.
        beta: weight of softmax regression.
    """
    gap = student - teacher
    return alpha * gap.square().mean() + beta * (gap @ classifier.mT).square().mean()


@full_precision
def simkd(student: Float[Tensor, "n c hs ws"], teacher: Float[Tensor, "n c ht wt"]) -> Float[Tensor, ""]:
    r"""Return the mean over all elements of $(s - t)^2$: the loss of SimKD, after its projector.

    Chen et al. 2022, "Knowledge Distillation with the Reused Teacher Classifier". Maps of different size are
    average-pooled to the smaller height and the smaller width first. Gradients flow to both.

    Args:
        student: projected maps.
        teacher: the maps that the teacher's classifier reads; the size may differ.
    """
    return hint(*match_size(student, teacher))
