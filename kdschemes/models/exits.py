"""Exits (additional classifiers on a network's stages), and early-exit inference."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from kdschemes.errors import UserError, unknown
from kdschemes.models.base import Stage, StagedNetwork


def pool(feature: Float[Tensor, "n ..."]) -> Float[Tensor, "n d"]:
    """Average maps [N, C, H, W] over positions, tokens [N, L, D] over tokens; return vectors unchanged."""
    if feature.ndim == 4:
        return feature.mean((2, 3))
    return feature.mean(1) if feature.ndim == 3 else feature


class LinearExit(nn.Module):
    """Average pooling and a linear classifier; its feature is the stage's."""

    def __init__(self, shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(shape[0] if len(shape) == 3 else shape[-1], num_classes)

    def forward(self, feature: Float[Tensor, "n ..."]) -> tuple[Float[Tensor, "n classes"], Float[Tensor, "n ..."]]:
        """Return the exit's logits and feature."""
        return self.fc(pool(feature)), feature


class BottleneckExit(nn.Module):
    """Depthwise-separable convolutions down to the last stage's shape, then pooling and a linear classifier.

    Each step is a depthwise 3x3 convolution (stride 2 while the map is too large), batch norm, ReLU, a 1x1
    convolution, batch norm, ReLU; channels double per step up to the last stage's. If halving cannot reach the target
    size (7 to 3), one more depthwise convolution without padding trims the rest. Similar to Zhang et al. 2019,
    section 3. The exit's feature is the map before pooling.
    """

    def __init__(self, shape: tuple[int, int, int], last: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        steps = [_step(shape[1:], last[1:])]
        while steps[-1][1] != last[1:]:
            steps.append(_step(steps[-1][1], last[1:]))
        widths = [shape[0], *(min(shape[0] * 2**k, last[0]) for k in range(1, len(steps))), last[0]]
        layers: list[nn.Module] = []
        for (convolution, _), (before, width) in zip(steps, pairwise(widths), strict=True):
            kernel, stride, padding = zip(*convolution, strict=True)
            layers += [
                nn.Conv2d(before, before, kernel, stride, padding, groups=before, bias=False),
                nn.BatchNorm2d(before),
                nn.ReLU(inplace=True),
                nn.Conv2d(before, width, 1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            ]
        self.body = nn.Sequential(*layers)
        self.fc = nn.Linear(last[0], num_classes)

    def forward(
        self, feature: Float[Tensor, "n c h w"]
    ) -> tuple[Float[Tensor, "n classes"], Float[Tensor, "n c2 h2 w2"]]:
        """Return the exit's logits and feature."""
        feature = self.body(feature)
        return self.fc(pool(feature)), feature


def _step(size: tuple[int, ...], wanted: tuple[int, ...]) -> tuple[list[tuple[int, int, int]], tuple[int, ...]]:
    """Return (kernel, stride, padding) per axis of the next convolution towards `wanted`, and the resulting size."""
    convolution, after = [], []
    for side, goal in zip(size, wanted, strict=True):
        half = (side + 1) // 2
        if side == goal:
            convolution.append((3, 1, 1))
            after.append(side)
        elif half >= goal:
            convolution.append((3, 2, 1))
            after.append(half)
        else:
            convolution.append((side - goal + 1, 1, 0))
            after.append(goal)
    return convolution, tuple(after)


class ExitNetwork(nn.Module):
    """A staged network with exits `exit1` to `exitK`, shallow to deep; `exit_stages` maps exits to stages.

    `exits` is "all" (every stage but the last) or a list of stage names; `stages` are the network's, from
    `kdschemes.models.stages`. Raises `UserError` for an unknown or repeated stage, the last stage, an empty list, or a
    bottleneck on a stage whose features are not maps or are smaller than the last stage's.
    """

    def __init__(
        self,
        network: StagedNetwork,
        exits: Literal["all"] | list[str],
        head: Literal["linear", "bottleneck"],
        *,
        num_classes: int,
        stages: Sequence[Stage],
    ) -> None:
        super().__init__()
        self.network = network
        self.head = head
        chosen = _choose(network.spec.name, exits, stages)
        self.exit_stages = {f"exit{number}": stage.name for number, stage in enumerate(chosen, start=1)}
        heads = [_head(stage, stages[-1], head, num_classes) for stage in chosen]
        self.exits = nn.ModuleDict(dict(zip(self.exit_stages, heads, strict=True)))

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        """Return the network's own logits."""
        logits: Tensor = self.network(images)
        return logits

    def forward_exits(
        self, images: Float[Tensor, "n c h w"]
    ) -> tuple[
        Float[Tensor, "n classes"],
        dict[str, Float[Tensor, "n ..."]],
        dict[str, tuple[Float[Tensor, "n classes"], Float[Tensor, "n ..."]]],
    ]:
        """Return the network's logits, its features by stage, and each exit's logits and feature."""
        logits, features = self.network.forward_stages(images)
        return logits, features, self.classify_exits(features)

    def classify_exits(
        self, features: Mapping[str, Float[Tensor, "n ..."]]
    ) -> dict[str, tuple[Float[Tensor, "n classes"], Float[Tensor, "n ..."]]]:
        """Return each exit's logits and feature, given the network's features by stage."""
        return {name: self.exits[name](features[stage]) for name, stage in self.exit_stages.items()}

    def forward_until_exit(self, images: Float[Tensor, "n c h w"], name: str) -> Float[Tensor, "n classes"]:
        """Return one exit's logits without computing deeper stages."""
        logits: Tensor = self.exits[name](self.network.forward_until(images, self.exit_stages[name]))[0]
        return logits

    def forward_by_exit(self, images: Float[Tensor, "n c h w"]) -> Generator[Tensor, Tensor | None, None]:
        """Lazily yield the logits of exit1 to exitK, then the network's own.

        The caller sends back the rows that continue (indices into what was yielded; None: all).
        """
        running = self.network.forward_by_stage(images, list(self.exit_stages.values()))
        feature = next(running)
        for exit_ in self.exits.values():
            rows = yield exit_(feature)[0]
            feature = running.send(rows)
        yield feature

    def config(self) -> dict[str, Any]:
        """Return what is needed to rebuild the exits: their stages and head type."""
        return {"stages": list(self.exit_stages.values()), "head": self.head}


def confidence(logits: Float[Tensor, "*n classes"]) -> Float[Tensor, "*n"]:
    """Return the highest softmax probability, in float64; 0 for NaN."""
    return logits.double().softmax(-1).amax(-1).nan_to_num(0.0)


class EarlyExit(nn.Module):
    """Inference that stops, for each sample, at the first exit whose confidence reaches its threshold.

    `thresholds` are for exit1 to exitK; samples that reach none get the network's own logits. Samples that have exited
    are not processed further, and nothing is computed twice.
    """

    def __init__(self, network: ExitNetwork, thresholds: Sequence[float]) -> None:
        super().__init__()
        assert len(thresholds) == len(network.exit_stages), f"{len(thresholds)} thresholds: {network.exit_stages}"
        self.network = network
        self.thresholds = tuple(thresholds)

    def forward(self, images: Float[Tensor, "n c h w"]) -> tuple[Float[Tensor, "n classes"], Int[Tensor, " n"]]:
        """Return the logits of each sample's exit, and its number: 0 for exit1, K for the network's own classifier."""
        answering = self.network.forward_by_exit(images)
        logits = next(answering)
        predictions = torch.empty_like(logits)
        taken = torch.full((len(images),), len(self.thresholds), device=logits.device)
        here = torch.arange(len(images), device=logits.device)
        for number, threshold in enumerate(self.thresholds):
            leaves = confidence(logits) >= threshold
            leaving, going = leaves.nonzero().squeeze(1), (~leaves).nonzero().squeeze(1)
            predictions[here[leaving]] = logits[leaving]
            taken[here[leaving]] = number
            if not len(going):
                return predictions, taken
            here = here[going]
            logits = answering.send(going if len(leaving) else None)
        predictions[here] = logits
        return predictions, taken


def _choose(network: str, exits: Literal["all"] | list[str], stages: Sequence[Stage]) -> list[Stage]:
    *inner, last = stages
    names = [stage.name for stage in inner] if exits == "all" else exits
    if not names or len(set(names)) < len(names):
        raise UserError(f"exits need one or more distinct stages of {network} before the last, {last.name}: {names}")
    for name in names:
        if name == last.name:
            raise UserError(f"no exit can be on {name}, the last stage of {network}: it already has the classifier")
        if name not in [stage.name for stage in inner]:
            raise unknown(f"stage of {network}", name, [stage.name for stage in inner])
    return [stage for stage in inner if stage.name in names]


def _head(stage: Stage, last: Stage, head: Literal["linear", "bottleneck"], num_classes: int) -> nn.Module:
    if head == "linear":
        return LinearExit(stage.shape, num_classes)
    if len(stage.shape) != 3 or len(last.shape) != 3:
        raise UserError(f"a bottleneck exit needs maps; stage {stage.name} has none: use exit_head=linear")
    (c, h, w), (c_last, h_last, w_last) = stage.shape, last.shape
    if h < h_last or w < w_last:
        raise UserError(f"a bottleneck exit cannot enlarge the maps of stage {stage.name}: use exit_head=linear")
    return BottleneckExit((c, h, w), (c_last, h_last, w_last), num_classes)


def stop_at(number: int, exits: int) -> list[float]:
    """Return thresholds that make every sample leave at exit `number`, counted from 0."""
    return [math.inf] * number + [0.0] * (exits - 1 - number)
