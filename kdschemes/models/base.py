"""The interface of every network: logits, features by stage, and a state with the plain network's tensor names."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from kdschemes.errors import UserError
from kdschemes.models.inputs import AdaptInput, InputSpec


@dataclass(frozen=True)
class Stage:
    """One stage of a network: its name, depth (fraction of the network's MACs up to its end) and feature shape.

    `shape` is per sample: (C, H, W) for a map, (L, D) for tokens, (D,) for a vector.
    """

    name: str
    depth: float
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ModelSpec:
    """The arguments of `create_model`, enough to rebuild the network, and what its images and classes are.

    `mean` and `std` normalize pixels scaled to 0..1, per channel (None: unknown). `crop_pct` is the side of the center
    crop as a fraction of the resized image's shorter side. `label_names` are the classes in the order of the logits.
    `kwargs` are the further arguments of a timm model or a network of the user's, and `code` the names and digests of
    the Python that makes it.
    """

    name: str
    num_classes: int
    channels: int
    image_size: int
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    crop_pct: float = 1.0
    label_names: tuple[str, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    code: Mapping[str, str] = field(default_factory=dict)

    @property
    def input(self) -> InputSpec:
        """The images that the network was trained on."""
        return InputSpec(self.image_size, self.mean, self.std)


class StagedNetwork(nn.Module, ABC):
    """An image classifier that also returns its features by stage, shallow to deep.

    `classifiers` names the layers whose first dimension is the number of classes. `adapt_input` is the first step of
    every forward pass; it changes nothing unless `accept` was called with images that differ from the network's own.
    """

    spec: ModelSpec
    stage_names: tuple[str, ...]
    classifiers: tuple[str, ...]
    activated: Mapping[str, nn.BatchNorm2d] = {}
    """Stages that end in a ReLU, with the batch norm before it (a shortcut may be added in between)."""
    notes: tuple[str, ...] = ()
    """What was adapted or left out when its weights were loaded, a line per file, for the log."""

    def __init__(self) -> None:
        super().__init__()
        self.adapt_input: nn.Module = nn.Identity()

    def forward_preactivations(
        self, images: Float[Tensor, "n c h w"]
    ) -> tuple[
        Float[Tensor, "n classes"],
        dict[str, Float[Tensor, "n ..."]],
        dict[str, Float[Tensor, "n ..."]],
    ]:
        """Return what `forward_stages` returns, plus the maps before the last ReLU of the stages in `activated`."""
        return (*self.forward_stages(images), {})

    def linear_classifier(self) -> nn.Linear | None:
        """Return the layer that maps the last stage's features, averaged over positions, to the logits.

        None if the network classifies in another way (a norm or a class token before the classifier).
        """
        return None

    def accept(self, images: InputSpec) -> None:
        """Adapt the network to images that look like this: from now on, they are resized and re-normalized for it."""
        adapt = AdaptInput(images, self.spec.input)
        self.adapt_input = adapt if adapt.resizes or adapt.affine is not None else nn.Identity()

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """How images are prepared for the network, in timm's keys.

        `timm.data.create_transform(**timm.data.resolve_model_data_config(network))` prepares them.
        """
        spec = self.spec
        normalization = {key: list(value) for key in ("mean", "std") if (value := getattr(spec, key)) is not None}
        return normalization | {
            "input_size": [spec.channels, spec.image_size, spec.image_size],
            "interpolation": "bilinear",
            "crop_pct": spec.crop_pct,
            "crop_mode": "center",
            "num_classes": spec.num_classes,
            "classifier": self.classifiers[0] if len(self.classifiers) == 1 else list(self.classifiers),
        }

    @abstractmethod
    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        """Return the logits."""

    @abstractmethod
    def forward_stages(
        self, images: Float[Tensor, "n c h w"]
    ) -> tuple[Float[Tensor, "n classes"], dict[str, Float[Tensor, "n ..."]]]:
        """Return the same logits as `forward`, and the features by stage name, shallow to deep."""

    @abstractmethod
    def forward_until(self, images: Float[Tensor, "n c h w"], stage: str) -> Float[Tensor, "n ..."]:
        """Return the features of one stage without computing deeper ones."""

    def forward_by_stage(
        self, images: Float[Tensor, "n c h w"], stages: Collection[str]
    ) -> Generator[Tensor, Tensor | None, None]:
        """Lazily yield the features of `stages`, shallow to deep, then the logits.

        The caller sends back the rows that continue (indices into what was yielded; None: all). This default recomputes
        everything before each stage; networks that can continue from a stage override it.
        """
        for stage in [name for name in self.stage_names if name in stages]:
            rows = yield self.forward_until(images, stage)
            images = images if rows is None else images[rows]
        yield self(images)

    def lr_scales(self, decay: float) -> dict[nn.Parameter, float]:
        """Return `decay`^k for each parameter, k being the number of stages from it to the classifier.

        Raises:
            UserError: the network has no stages.
        """
        if not self.stage_names:
            raise UserError(f"optim.layer_decay={decay:g} goes by stages, and {self.spec.name} has none: remove it")
        return scales_by_stage(self, self.stage_names, self.classifiers, decay)

    def plain_state(self) -> dict[str, Tensor]:
        """Return the parameters and buffers under the plain network's names (not copied)."""
        return self.state_dict()

    def load_plain_state(self, state: Mapping[str, Tensor]) -> None:
        """Load a state as returned by `plain_state`; every name and shape must match."""
        self.load_state_dict(state, strict=True)

    def config(self) -> dict[str, Any]:
        """Return the description of the network for `config.json`."""
        spec = self.spec
        config: dict[str, Any] = {key: getattr(spec, key) for key in ("name", "num_classes", "channels", "image_size")}
        config["pretrained_cfg"] = self.pretrained_cfg
        config |= {key: dict(value) for key in ("kwargs", "code") if (value := getattr(spec, key))}
        return config | ({"label_names": list(spec.label_names)} if spec.label_names else {})


def scales_by_stage(
    module: nn.Module, stages: Sequence[str], classifiers: Sequence[str], decay: float, *, below: int = 0
) -> dict[nn.Parameter, float]:
    """Return `decay`^k for each parameter of a module, in the order in which it defines them.

    k is the number of `stages` (submodules) that end at or after the parameter, plus `below`; 0 in `classifiers`.
    """
    named = list(module.named_parameters())
    ends = [max((k for k, (name, _) in enumerate(named) if name.startswith(f"{s}.")), default=-1) for s in stages]
    heads = tuple(f"{name}." for name in classifiers)
    return {
        parameter: 1.0 if name.startswith(heads) else decay ** (below + sum(end >= position for end in ends))
        for position, (name, parameter) in enumerate(named)
    }
