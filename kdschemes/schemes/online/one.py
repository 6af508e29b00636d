"""ONE: a gate on the trunk weights the branches, and the resulting ensemble teaches each of them."""

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
    """Weights of m branches per sample: softmax(ReLU(BN(fc(x)))) over branches, x the spatially averaged trunk output.

    Its batch norm is synchronized if the others are. A batch of one sample is normalized by the running statistics.
    """

    def __init__(self, width: int, branches: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, branches)
        self.norm = nn.BatchNorm1d(branches)

    def forward(self, seen: Float[Tensor, "n m d"]) -> Float[Tensor, "n m"]:
        """Return the weights, positive and summing to 1, from each branch's input (per view, if views differ)."""
        scores = torch.einsum("nmd,md->nm", seen, self.fc.weight) + self.fc.bias
        alone = len(scores) == 1 and type(self.norm) is nn.BatchNorm1d
        scores = _by_running_statistics(self.norm, scores) if alone else self.norm(scores)
        return functional.softmax(scores.to(torch.promote_types(scores.dtype, torch.float32)).relu(), dim=1)


@full_precision
def gated_mean(logits: Float[Tensor, "n m c"], weights: Float[Tensor, "n m"]) -> Float[Tensor, "n c"]:
    r"""Return $\sum_m g_{nm} z_{nm}$, the logits of an ensemble with per-sample weights, in float32 or higher.

    Lan, Zhu, Gong 2018, "Knowledge Distillation by On-the-Fly Native Ensemble". Gradients flow to both.
    """
    return (weights[:, :, None] * logits).sum(1)


class GatedEnsemble(SharedTrunk):
    """A trunk with one branch per peer, and their `ensemble`: the branches' logits weighted by a gate on the trunk.

    Gradients flow from the gate to the trunk, and from the ensemble to every branch.
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

    Lan, Zhu, Gong 2018. The ensemble is detached as a teacher; branches, gate, and trunk learn from its CE.

    Raises:
        UserError: a network that cannot be split, a list whose length is not the number of branches, or a feature or
            relation loss (the ensemble only has logits).
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
