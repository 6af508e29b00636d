"""ONE: a gate on the trunk weighs the branches, and the ensemble that it makes teaches each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from kdschemes.config import Config
from kdschemes.core.distillation import Distillation
from kdschemes.core.loss import embedding
from kdschemes.core.nodes import SharedTrunk
from kdschemes.core.precision import full_precision
from kdschemes.core.types import Batch, DataSpec, Output, Outputs
from kdschemes.models import StagedNetwork
from kdschemes.models.cost import probing
from kdschemes.schemes.distill import Edge, distill
from kdschemes.schemes.online.peers import Branches, build_branches, peer_views


class Gate(nn.Module):
    """Weighs m branches for each sample: softmax(ReLU(BN(fc(x)))) over branches, x the averaged trunk's map.

    Its batch norm is over the samples of all processes where batch norms are. A batch of one sample has no statistics
    of its own and is normalized by the running ones.
    """

    def __init__(self, width: int, branches: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, branches)
        self.norm = nn.BatchNorm1d(branches)

    def forward(self, seen: Float[Tensor, "n m d"]) -> Float[Tensor, "n m"]:
        """Return the weights, positive and of sum 1, from what each branch reads: the same, or that of its view."""
        scores = torch.einsum("nmd,md->nm", seen, self.fc.weight) + self.fc.bias
        alone = len(scores) == 1 and type(self.norm) is nn.BatchNorm1d
        scores = _by_running_statistics(self.norm, scores) if alone else self.norm(scores)
        return functional.softmax(scores.to(torch.promote_types(scores.dtype, torch.float32)).relu(), dim=1)


@full_precision
def gated_mean(logits: Float[Tensor, "n m c"], weights: Float[Tensor, "n m"]) -> Float[Tensor, "n c"]:
    r"""Return $\sum_m g_{nm} z_{nm}$, the logits of an ensemble of m members weighed by sample, in float32 at least.

    Lan, Zhu, Gong 2018, "Knowledge Distillation by On-the-Fly Native Ensemble". Gradients flow to both.
    """
    return (weights[:, :, None] * logits).sum(1)


class GatedEnsemble(SharedTrunk):
    """A trunk with a branch a peer, and their `ensemble`: the branches' logits weighed by a gate that reads the trunk.

    The gate's gradient reaches the trunk, and the ensemble's every branch.
    """

    def __init__(
        self,
        names: Sequence[str],
        stem: Branches,
        gate: Gate,
        *,
        views: Sequence[str | None],
        ensemble: str = "ensemble",
    ) -> None:
        super().__init__(names, stem.trunk, stem.branches, stem.template, views=views)
        self.gate = gate
        self.provides = (*names, ensemble)

    def forward(self, batch: Batch, outputs: Mapping[str, Output]) -> Outputs:
        *names, ensemble = self.provides
        stems = self.trunk_outputs(batch)
        produced = self.branch_outputs(stems)
        weights = self.gate(torch.stack([embedding(stem) for stem, _ in stems], dim=1))
        logits = torch.stack([produced[name].logits for name in names], dim=1)
        return {**produced, ensemble: Output(gated_mean(logits, weights))}

    def inference_network(self, head: str) -> StagedNetwork | None:
        return None if head == self.provides[-1] else super().inference_network(head)


def one(config: Config, data_spec: DataSpec) -> Distillation:
    """Return sum_i CE_i + CE(ensemble) + sum_i response(ensemble -> i) over the branches i.

    Lan, Zhu, Gong 2018. The ensemble is a constant where it teaches; branches, gate and trunk learn from its own CE.

    Raises:
        UserError: a network that cannot be cut, a list of another length than the number of branches, a feature or
            relation loss (the ensemble has logits alone).
    """
    names, stem = build_branches(config, data_spec)
    with probing(stem.trunk, data_spec.channels, data_spec.image_size, batch=1) as image:
        width = embedding(stem.trunk(image)[0]).shape[1]
    views = peer_views(config.scheme.views, len(names))
    return distill(
        {"peers": GatedEnsemble(names, stem, Gate(width, len(names)), views=views)},
        supervised=dict.fromkeys([*names, "ensemble"], 1.0),
        edges=[Edge("ensemble", name) for name in names],
        losses=config.losses,
        heads=[*names, "ensemble"],
        data_spec=data_spec,
        peers=names,
    )


def _by_running_statistics(norm: nn.BatchNorm1d, x: Tensor) -> Tensor:
    return functional.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
