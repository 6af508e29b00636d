"""Networks whose parts run in sequence, and their split into a shared trunk and a branch."""

from __future__ import annotations

from collections.abc import Collection, Generator, Mapping

from jaxtyping import Float
from torch import Tensor, nn

from kdschemes.config.models import MODEL_NAMES
from kdschemes.errors import UserError, unknown
from kdschemes.models.base import StagedNetwork

Named = list[tuple[str, nn.Module]]


class ActivatedStage(nn.Sequential):
    """Layers in sequence, ending in a ReLU or in a block that ends in one and can run without it.

    Such a block has `before_activation(x)`, its output before that ReLU, and `last_norm()`, the batch norm before the
    ReLU (a shortcut may be added in between).
    """

    def before_activation(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h2 w2"]:
        """Return the input of the last ReLU."""
        *first, last = self
        for layer in first:
            x = layer(x)
        return x if isinstance(last, nn.ReLU) else last.before_activation(x)  # type: ignore[operator]

    def last_norm(self) -> nn.BatchNorm2d:
        """Return the batch norm before the last ReLU."""
        last = self[-1]
        norm = self[-2] if isinstance(last, nn.ReLU) else last.last_norm()  # type: ignore[operator]
        assert isinstance(norm, nn.BatchNorm2d)
        return norm


class SequentialNetwork(StagedNetwork):
    """Parts in sequence, then global average pooling (of maps) and the linear classifier `fc`.

    The parts in `stage_names` are the stages; their outputs are the stages' features.
    """

    classifiers = ("fc",)

    def __init__(
        self, parts: Mapping[str, nn.Module], stage_names: tuple[str, ...], width: int, num_classes: int
    ) -> None:
        super().__init__()
        assert set(stage_names) <= set(parts)
        for name, part in parts.items():
            self.add_module(name, part)
        self.fc = nn.Linear(width, num_classes)
        self.part_names = tuple(parts)
        self.stage_names = stage_names

    @property
    def activated(self) -> dict[str, nn.BatchNorm2d]:  # type: ignore[override]
        """Stages that end in a ReLU, with the batch norm before it."""
        stages = {name: self.get_submodule(name) for name in self.stage_names}
        return {name: stage.last_norm() for name, stage in stages.items() if isinstance(stage, ActivatedStage)}

    def linear_classifier(self) -> nn.Linear | None:
        """Return `fc`."""
        return self.fc

    def blocks(self) -> Named:
        """Return the parts before the classifier, in execution order."""
        return [(name, self.get_submodule(name)) for name in self.part_names]

    def classify(self, last_features: Float[Tensor, "n d ..."]) -> Float[Tensor, "n classes"]:
        """Return the logits of the last part's output."""
        return _classify(self.fc, last_features)

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        """Return the logits."""
        return self.forward_stages(images)[0]

    def forward_stages(
        self, images: Float[Tensor, "n c h w"]
    ) -> tuple[Float[Tensor, "n classes"], dict[str, Float[Tensor, "n ..."]]]:
        """Return the logits and the features of every stage."""
        last, features = _run(self.blocks(), self.adapt_input(images), self.stage_names)
        return self.classify(last), features

    def forward_preactivations(
        self, images: Float[Tensor, "n c h w"]
    ) -> tuple[
        Float[Tensor, "n classes"],
        dict[str, Float[Tensor, "n ..."]],
        dict[str, Float[Tensor, "n ..."]],
    ]:
        """Return logits, features, and the maps before the last ReLU of every stage that ends in one."""
        before: dict[str, Tensor] = {}
        last, features = _run(self.blocks(), self.adapt_input(images), self.stage_names, before)
        return self.classify(last), features, before

    def forward_until(self, images: Float[Tensor, "n c h w"], stage: str) -> Float[Tensor, "n ..."]:
        """Return the features of one stage without computing deeper ones."""
        parts = self.blocks()[: self.part_names.index(stage) + 1]
        return _run(parts, self.adapt_input(images), self.stage_names)[0]

    def forward_by_stage(
        self, images: Float[Tensor, "n c h w"], stages: Collection[str]
    ) -> Generator[Tensor, Tensor | None, None]:
        """Yield the features of `stages`, then the logits; only rows sent back continue, and nothing is recomputed."""
        x = self.adapt_input(images)
        for name, part in self.blocks():
            x = part(x)
            if name in stages:
                rows = yield x
                x = x if rows is None else x[rows]
        yield self.classify(x)


class Trunk(nn.Module):
    """The first parts of a network, under their original names, after its `adapt_input`; with its `notes`."""

    def __init__(
        self, parts: Named, stage_names: tuple[str, ...], notes: tuple[str, ...], adapt_input: nn.Module
    ) -> None:
        super().__init__()
        self.notes, self.adapt_input = notes, adapt_input
        for name, part in parts:
            self.add_module(name, part)
        self.part_names = tuple(name for name, _ in parts)
        self.stage_names = stage_names

    def forward(
        self, images: Float[Tensor, "n c h w"]
    ) -> tuple[Float[Tensor, "n d2 ..."], dict[str, Float[Tensor, "n ..."]]]:
        """Return the input of the branches, and the features of the trunk's stages."""
        parts = [(name, self.get_submodule(name)) for name in self.part_names]
        return _run(parts, self.adapt_input(images), self.stage_names)


class Branch(nn.Module):
    """The parts after the trunk and the classifier, under their original names."""

    def __init__(self, parts: Named, stage_names: tuple[str, ...], fc: nn.Linear) -> None:
        super().__init__()
        for name, part in parts:
            self.add_module(name, part)
        self.fc = fc
        self.part_names = tuple(name for name, _ in parts)
        self.stage_names = stage_names

    def forward(
        self, tensor: Float[Tensor, "n d ..."]
    ) -> tuple[Float[Tensor, "n classes"], dict[str, Float[Tensor, "n ..."]]]:
        """Return the logits and the features of the branch's stages, given the trunk's output."""
        last, features = _run([(name, self.get_submodule(name)) for name in self.part_names], tensor, self.stage_names)
        return _classify(self.fc, last), features


def split(network: StagedNetwork, stage: str) -> tuple[Trunk, Branch]:
    """Split a network before `stage` into a trunk (everything before) and a branch (the rest).

    Both contain the network's own modules, not copies, and `trunk.state_dict() | branch.state_dict()` is its plain
    state. Raises `UserError` for an unknown stage, a first stage with nothing before it, or a network that cannot be
    split.
    """
    if not isinstance(network, SequentialNetwork):
        raise UserError(
            f"{network.spec.name} cannot be split into trunk and branches; use one of {', '.join(MODEL_NAMES[:-2])}"
        )
    if stage not in network.stage_names:
        raise unknown(f"stage of {network.spec.name}", stage, network.stage_names)
    blocks, cut = network.blocks(), network.part_names.index(stage)
    if cut == 0:
        raise UserError(
            f"nothing comes before {stage} of {network.spec.name}, so nothing would be shared; "
            f"split before one of {', '.join(network.stage_names[1:])}"
        )
    first = network.stage_names.index(stage)
    trunk = Trunk(blocks[:cut], network.stage_names[:first], network.notes, network.adapt_input)
    return trunk, Branch(blocks[cut:], network.stage_names[first:], network.fc)


def _run(
    parts: Named, x: Tensor, stage_names: tuple[str, ...], before: dict[str, Tensor] | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    features = {}
    for name, part in parts:
        if before is not None and name in stage_names and isinstance(part, ActivatedStage):
            before[name] = part.before_activation(x)
            x = before[name].relu()
        else:
            x = part(x)
        if name in stage_names:
            features[name] = x
    return x, features


def _classify(fc: nn.Linear, last: Tensor) -> Tensor:
    logits: Tensor = fc(last.mean((2, 3)) if last.ndim == 4 else last)
    return logits
