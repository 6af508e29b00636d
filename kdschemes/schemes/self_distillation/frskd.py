"""FRSKD: a self-teacher refines the network's maps, learns from the labels, and teaches the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from kdschemes.config import Config
from kdschemes.config.schemes.self_distillation import SelfFRSKD
from kdschemes.core.distillation import Distillation
from kdschemes.core.nodes import Network, Node
from kdschemes.core.types import Batch, DataSpec, Output, Outputs
from kdschemes.errors import UserError
from kdschemes.models.recombined import as_map
from kdschemes.schemes.distill import Edge, distill, probe
from kdschemes.schemes.networks import student_network
from kdschemes.schemes.self_distillation.stage_maps import stage_maps
from kdschemes.seeding import seeded

Size = tuple[int, int]


class SelfTeacher(Node):
    """Refined maps of another output's stages, and a linear classifier on the spatial mean of the deepest one.

    Args:
        name: of the output; its features have the names of the stages.
        source: the output whose maps are refined.
        maps: (C, H, W) of the stages, shallow to deep.
        num_classes: of the classifier.
        options: width and depth of the pyramid, and whether the maps are detached.
    """

    def __init__(
        self, name: str, source: str, maps: Mapping[str, tuple[int, int, int]], num_classes: int, options: SelfFRSKD
    ) -> None:
        super().__init__([name], reads=[source])
        channels = [shape[0] for shape in maps.values()]
        self.stages = tuple(maps)
        self.detach = options.detach
        self.pyramid = BiFPN(channels, width=options.width, depth=options.depth)
        self.fc = nn.Linear(options.width * channels[-1], num_classes)

    def forward(self, batch: Batch, outputs: Mapping[str, Output]) -> Outputs:
        features = outputs[self.reads[0]].features
        maps = [as_map(features[stage].detach() if self.detach else features[stage]) for stage in self.stages]
        refined = self.pyramid(maps)
        logits = self.fc(refined[-1].mean((2, 3)))
        return {self.provides[0]: Output(logits, dict(zip(self.stages, refined, strict=True)))}


def frskd(config: Config, data_spec: DataSpec) -> Distillation:
    """Return CE of the network and of the self-teacher, whose logits and refined maps teach the network.

    The self-teacher only learns from its CE, which also trains the network through the maps, unless `scheme.detach`.
    Tokens are reshaped into a square map.

    Raises:
        UserError: the network's stages have no maps, or it has only one stage.
    """
    options = config.scheme
    assert isinstance(options, SelfFRSKD)
    student = Network("student", student_network(config, data_spec, "student"))
    maps = stage_maps("frskd", probe([student], data_spec)["student"])
    if len(maps) < 2:
        raise UserError(f"frskd needs two or more stages, {config.model.name} has {len(maps)}: choose another model")
    with seeded(config.seed, "init", "self_teacher"):
        teacher = SelfTeacher("self_teacher", "student", maps, data_spec.num_classes, options)
    return distill(
        {"student": student, "self_teacher": teacher},
        supervised={"student": 1.0, "self_teacher": 1.0},
        edges=[Edge("self_teacher", "student")],
        losses=config.losses,
        heads=["student", "self_teacher"],
        data_spec=data_spec,
    )


class Fuse(nn.Module):
    r"""The weighted mean of maps of one shape; the weights are learned, nonnegative, and initially equal.

    $w_k = relu(v_k) / (\sum_j relu(v_j) + 10^{-6})$, the fast normalized fusion of Tan et al. 2020, EfficientDet.
    """

    def __init__(self, maps: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.ones(maps))

    def forward(self, *maps: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        weights = self.weights.relu()
        weights = weights / (weights.sum() + 1e-6)
        mean: Tensor = sum(weight * m for weight, m in zip(weights, maps, strict=True))
        return mean


class BiFPN(nn.Module):
    """Refine maps of several stages: from the deepest to the shallowest, and back.

    With $L_i$, $L'_i$ two 1x1 convolutions of the stage's map, $P_n = L_n$, and going up
    $P_i = B(w_0 L_i + w_1 U(P_{i+1}))$; then $O_1 = P_1$, and going down
    $O_i = B'(w_0 L'_i + w_1 P_i + w_2 D(O_{i-1}))$, the deepest without its $P_n$. U is nearest-neighbor upsampling to
    the neighbor's size, D a 3x3 max pooling of stride 2, repeated as often as the neighbor's size allows; both end with
    a 1x1 convolution to the neighbor's channels. 1x1 convolutions are followed by batch norm and ReLU; B is `depth`
    blocks of a depthwise 3x3 convolution, a 1x1 convolution, and batch norm, with ReLU between blocks. Convolutions
    have no bias; a ReLU is applied to every map before it is read.
    Ji et al. 2021, "Refine Myself by Teaching Myself", class BiFPNc of the authors' code.

    Args:
        channels: of the stages' maps, shallow to deep, two or more.
        width: channels of the refined maps relative to the stages'.
        depth: number of blocks in B.
    """

    def __init__(self, channels: Sequence[int], *, width: int, depth: int) -> None:
        super().__init__()
        assert len(channels) > 1, channels
        widths = [width * c for c in channels]
        inner = len(widths) - 2
        self.lateral_up = nn.ModuleList(_pointwise(c, d) for c, d in zip(channels, widths, strict=True))
        self.lateral_down = nn.ModuleList(_pointwise(c, d) for c, d in zip(channels[1:], widths[1:], strict=True))
        self.up = nn.ModuleList(_pointwise(d, e) for e, d in pairwise(widths))
        self.down = nn.ModuleList(_pointwise(d, e) for d, e in pairwise(widths))
        self.fuse_up = nn.ModuleList(Fuse(2) for _ in widths[:-1])
        self.fuse_down = nn.ModuleList(Fuse(3 if k < inner else 2) for k in range(len(widths) - 1))
        self.block_up = nn.ModuleList(_block(d, depth) for d in widths[:-1])
        self.block_down = nn.ModuleList(_block(d, depth) for d in widths[1:])

    def forward(self, maps: Sequence[Float[Tensor, "n _ _ _"]]) -> list[Float[Tensor, "n _ _ _"]]:
        """Return the refined maps, each of its stage's size, after a final ReLU."""
        maps = [m.relu() for m in maps]
        sizes: list[Size] = [(m.shape[2], m.shape[3]) for m in maps]
        path = [lateral(m) for lateral, m in zip(self.lateral_up, maps, strict=True)]
        for i in reversed(range(len(maps) - 1)):
            deeper = self.up[i](functional.interpolate(path[i + 1], sizes[i], mode="nearest"))
            path[i] = self.block_up[i](self.fuse_up[i](path[i], deeper)).relu()
        refined = path[:1]
        for k, lateral in enumerate(self.lateral_down):
            i = k + 1
            inner = path[i : i + 1] if i < len(maps) - 1 else []
            shallower = self.down[k](shrunk(refined[k], sizes[i]))
            refined.append(self.block_down[k](self.fuse_down[k](lateral(maps[i]), *inner, shallower)).relu())
        return refined


def shrunk(maps: Float[Tensor, "n c h w"], size: Size) -> Float[Tensor, "n c h2 w2"]:
    """Resize maps: 3x3 max pooling of stride 2 while both sides stay large enough, then nearest-neighbor.

    As in EfficientDet, pooling pads with zeros to ceil(side / 2), with the odd row at the end.
    """
    while maps.shape[2:] != size and all(
        (side + 1) // 2 >= goal for side, goal in zip(maps.shape[2:], size, strict=True)
    ):
        pads = [(0, 1) if side % 2 == 0 else (1, 1) for side in maps.shape[:1:-1]]
        maps = functional.max_pool2d(functional.pad(maps, [p for pad in pads for p in pad]), 3, 2)
    return maps if maps.shape[2:] == size else functional.interpolate(maps, size, mode="nearest")


def _pointwise(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU())


def _block(width: int, depth: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(depth):
        depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        layers += [nn.ReLU(), depthwise, nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width)]
    return nn.Sequential(*layers[1:])
