"""A network composed of a student, a projector of its last map and a teacher's classifier."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import isqrt
from typing import Any

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from kdschemes.models.base import StagedNetwork
from kdschemes.models.inputs import InputSpec

RECOMBINED = "recombined"

PROJECTED = "projected"


class Projector(nn.Module):
    """Projects a student's last feature to a teacher's channels, after pooling it to `size` if necessary.

    A 1x1, a 3x3 and a 1x1 convolution without bias, each followed by batch norm and ReLU, as in Chen et al. 2022
    ("Knowledge Distillation with the Reused Teacher Classifier"). Tokens and vectors are treated as maps.

    Args:
        channels: channels of the student's feature.
        width: channels of the two hidden layers.
        out_channels: channels of the teacher's feature.
        size: height and width of the projected map.
    """

    def __init__(self, channels: int, width: int, out_channels: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.sizes = {"channels": channels, "width": width, "out_channels": out_channels, "size": list(size)}
        self.size = size
        self.transfer = nn.Sequential(
            *_normalized(nn.Conv2d(channels, width, 1, bias=False)),
            *_normalized(nn.Conv2d(width, width, 3, padding=1, bias=False)),
            *_normalized(nn.Conv2d(width, out_channels, 1, bias=False)),
        )

    def forward(self, feature: Float[Tensor, "n ..."]) -> Float[Tensor, "n c h w"]:
        """Return the feature in the teacher's space."""
        maps = as_map(feature)
        if maps.shape[2:] != self.size:
            maps = functional.adaptive_avg_pool2d(maps, self.size)
        projected: Tensor = self.transfer(maps)
        return projected


class Recombined(StagedNetwork):
    """The student up to its last stage, the projector, average pooling, the teacher's classifier.

    The student's own classifier is kept but not run. The modules passed in are used, not copied. The projected map is
    an additional stage, `projected`.
    """

    classifiers = ("classifier",)

    def __init__(self, network: StagedNetwork, projector: Projector, classifier: nn.Linear) -> None:
        super().__init__()
        self.network = network
        self.projector = projector
        self.classifier = classifier
        self.stage_names = (*network.stage_names, PROJECTED)
        self.spec = replace(network.spec, name=RECOMBINED, num_classes=classifier.out_features)

    def accept(self, images: InputSpec) -> None:
        """Adapt the student to images that look like this."""
        self.network.accept(images)

    def linear_classifier(self) -> nn.Linear:
        """Return the teacher's classifier."""
        return self.classifier

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        """Return the logits."""
        last = self.network.forward_until(images, self.network.stage_names[-1])
        return classify(self.classifier, self.projector(last))

    def forward_stages(
        self, images: Float[Tensor, "n c h w"]
    ) -> tuple[Float[Tensor, "n classes"], dict[str, Float[Tensor, "n ..."]]]:
        """Return the logits and the features of every stage."""
        features = self.network.forward_stages(images)[1]
        projected = self.projector(features[self.network.stage_names[-1]])
        return classify(self.classifier, projected), {**features, PROJECTED: projected}

    def forward_until(self, images: Float[Tensor, "n c h w"], stage: str) -> Float[Tensor, "n ..."]:
        """Return the features of one stage without computing deeper ones."""
        if stage != PROJECTED:
            return self.network.forward_until(images, stage)
        projected: Tensor = self.projector(self.network.forward_until(images, self.network.stage_names[-1]))
        return projected

    def config(self) -> dict[str, Any]:
        """Return what `rebuilt` needs: the descriptions of the student, the projector and the classifier."""
        classifier = {"bias": self.classifier.bias is not None}
        parts = {"student": self.network.config(), "projector": self.projector.sizes, "classifier": classifier}
        return super().config() | parts


def as_map(feature: Float[Tensor, "n ..."]) -> Float[Tensor, "n c h w"]:
    """Return a feature as a map: maps unchanged, tokens as a square map, a vector as a 1x1 map."""
    if feature.dim() == 4:
        return feature
    if feature.dim() == 2:
        return feature[:, :, None, None]
    square: Tensor = rearrange(feature, "n (h w) d -> n d h w", h=isqrt(feature.shape[1]))
    return square


def classify(classifier: nn.Linear, projected: Float[Tensor, "n d h w"]) -> Float[Tensor, "n classes"]:
    """Return the logits of a projected map."""
    logits: Tensor = classifier(projected.mean((2, 3)))
    return logits


def rebuilt(config: Mapping[str, Any], student: StagedNetwork) -> Recombined:
    """Build the network described by `Recombined.config` around a student; the other parts are newly initialized."""
    sizes = config["projector"]
    height, width = (int(side) for side in sizes["size"])
    projector = Projector(int(sizes["channels"]), int(sizes["width"]), int(sizes["out_channels"]), (height, width))
    bias = bool(config["classifier"]["bias"])
    return Recombined(student, projector, nn.Linear(int(sizes["out_channels"]), int(config["num_classes"]), bias=bias))


def _normalized(convolution: nn.Conv2d) -> tuple[nn.Module, ...]:
    return convolution, nn.BatchNorm2d(convolution.out_channels), nn.ReLU(inplace=True)
