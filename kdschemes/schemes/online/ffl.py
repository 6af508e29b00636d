"""FFL: the peers' last maps are fused; the fused classifier and the peers teach each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kdschemes.config import Config
from kdschemes.core.distillation import Distillation
from kdschemes.core.nodes import Ensemble, Node
from kdschemes.core.types import Batch, DataSpec, Output, Outputs
from kdschemes.errors import UserError
from kdschemes.losses.stages import as_map_shape
from kdschemes.models.init import he_normal
from kdschemes.models.recombined import as_map
from kdschemes.schemes.distill import Edge, probe
from kdschemes.schemes.online.peers import build_peers, distill_peers, last_stage


class FusionModule(nn.Module):
    """Depthwise 3x3 and pointwise 1x1 convolution of the peers' maps, then pooling and a linear classifier.

    Kim et al. 2021, "Feature Fusion for Online Mutual Knowledge Distillation". Convolutions have no bias and He
    initialization; each is followed by batch norm and ReLU.
    """

    def __init__(self, channels: int, width: int, num_classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        )
        self.fc = nn.Linear(width, num_classes)
        he_normal(self.body)

    def forward(
        self, maps: Sequence[Float[Tensor, "n _ h w"]]
    ) -> tuple[Float[Tensor, "n classes"], Float[Tensor, "n d h w"]]:
        """Return the logits and the fused map of maps of one size, concatenated along channels."""
        fused = self.body(torch.cat(list(maps), dim=1))
        return self.fc(fused.mean((2, 3))), fused


class Fusion(Node):
    """The output `fused`, classified from the peers' last maps, with the fused map as its only feature.

    Its gradients flow to the peers.
    """

    def __init__(self, peers: Sequence[str], module: FusionModule) -> None:
        super().__init__(["fused"], reads=peers)
        self.module = module

    def forward(self, batch: Batch, outputs: Mapping[str, Output]) -> Outputs:
        maps = [as_map(list(outputs[name].features.values())[-1]) for name in self.reads]
        logits, fused = self.module(maps)
        return {"fused": Output(logits, {"fused": fused})}


def ffl(config: Config, data_spec: DataSpec) -> Distillation:
    """Return CE of peers and fused classifier + sum_k response(fused -> k) + response(mean of peers -> fused).

    Kim et al. 2021. Targets are detached. Both terms of the fused classifier also train the peers, as their maps are
    not detached. Feature and relation terms, if any, go from the fused map to each peer's.

    Raises:
        UserError: the peers' last maps differ in size, or are not maps; a network cannot be split.
    """
    peers = build_peers(config, data_spec)
    shapes = probe(peers.nodes.values(), data_spec)
    found = {name: as_map_shape("ffl", *last_stage("ffl", name, shapes)) for name in peers.names}
    sizes = {name: "x".join(map(str, shape[1:])) for name, shape in found.items()}
    if len(set(sizes.values())) > 1:
        different = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise UserError(f"ffl joins the peers' last maps, whose sizes differ: {different}; choose other models")
    width = found[peers.names[0]][0]
    fusion = Fusion(peers.names, FusionModule(sum(shape[0] for shape in found.values()), width, data_spec.num_classes))
    nodes: dict[str, Node] = {"fused": fusion, "ensemble": Ensemble("ensemble", peers.names)}
    edges = [Edge("fused", name) for name in peers.names]
    edges.append(Edge("ensemble", "fused", feature=None, relation=None))
    taught = [*peers.names, "fused"]
    return distill_peers(peers, nodes, edges, config, data_spec, supervised=taught, heads=[*taught, "ensemble"])
