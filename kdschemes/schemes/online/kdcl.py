"""KDCL: a combination of the peers, chosen with the labels or a held-out split, teaches each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kdschemes.config import Config
from kdschemes.core.distillation import Distillation
from kdschemes.core.nodes import Ensemble, Node, Predict
from kdschemes.core.precision import full_precision
from kdschemes.core.types import Batch, DataSpec, Output, Outputs
from kdschemes.distributed.collectives import gather, sum_over_processes
from kdschemes.errors import UserError
from kdschemes.schemes.online.convex import convex_weights
from kdschemes.schemes.online.peers import build_peers, distill_peers, edges_from


def kdcl(config: Config, data_spec: DataSpec) -> Distillation:
    """Return, for each peer k, CE_k + response(teacher -> peer k), the teacher a combination of the peers' logits.

    The combination (`scheme.ensemble`) is detached; by default each peer sees its own view, so it combines outputs on
    different views of a sample. Feature and relation terms, if any, come from each other peer.

    Raises:
        UserError: `general` without a validation split, or the peers cannot be built as configured.
    """
    kind = config.scheme.ensemble
    if kind == "general" and config.data.val_fraction == 0:
        raise UserError("scheme.ensemble=general weights peers on the validation split: set data.val_fraction above 0")
    peers = build_peers(config, data_spec)
    teacher = HeldOutMix("teacher", peers.names) if kind == "general" else Mix("teacher", peers.names, kind)
    nodes: dict[str, Node] = {"teacher": teacher, "ensemble": Ensemble("ensemble", peers.names)}
    return distill_peers(peers, nodes, edges_from(dict.fromkeys(peers.names, "teacher")), config, data_spec)


class Mix(Node):
    """The logits `name`, combined from the members' logits and the labels; no features.

    `linear` computes one set of weights on the micro-batch of all processes; the others work per sample.
    """

    def __init__(self, name: str, members: list[str], kind: Literal["naive", "linear", "minlogit"]) -> None:
        super().__init__([name], reads=members)
        self.kind = kind

    def forward(self, batch: Batch, outputs: Mapping[str, Output]) -> Outputs:
        logits = torch.stack([outputs[member].logits for member in self.reads])
        if self.kind == "linear":
            return {self.provides[0]: Output(weighed(logits, self._convex(logits.detach(), batch)))}
        mix = naive if self.kind == "naive" else minlogit
        return {self.provides[0]: Output(mix(logits, batch.labels))}

    def _convex(self, logits: Tensor, batch: Batch) -> Tensor:
        if not self.training:
            return convex_weights(logits, batch.labels)
        everyone = gather(logits.transpose(0, 1), batch.micro_size).transpose(0, 1)
        return convex_weights(everyone, gather(batch.labels[:, None], batch.micro_size).squeeze(1))


class HeldOutMix(Node):
    """The logits `name`, the sum of the members' logits weighted by their errors on the validation split.

    The weights are equal in the first epoch and recomputed before each later one (`covariance_weights`).
    """

    replicated_buffers = ("weights",)
    weights: Tensor

    def __init__(self, name: str, members: list[str]) -> None:
        super().__init__([name], reads=members)
        self.register_buffer("weights", torch.full((len(members),), 1.0 / len(members)))

    def forward(self, batch: Batch, outputs: Mapping[str, Output]) -> Outputs:
        logits = torch.stack([outputs[member].logits for member in self.reads])
        return {self.provides[0]: Output(weighed(logits, self.weights))}

    @torch.no_grad()
    def before_epoch(self, epoch: int, predict: Predict, held_out: Callable[[], Iterable[Batch]]) -> None:
        if epoch == 0:
            return
        members = len(self.reads)
        sums = torch.zeros(members, members, dtype=torch.float64, device=self.weights.device)
        for batch in held_out():
            outputs = predict(batch, self.reads)
            sums += error_products(torch.stack([outputs[member].logits for member in self.reads]), batch.labels)
        self.weights.copy_(covariance_weights(sum_over_processes(sums)))


@full_precision
def naive(logits: Float[Tensor, "k n c"], labels: Int[Tensor, " n"]) -> Float[Tensor, "n c"]:
    r"""Return for each sample the logits of the one of K outputs with the lowest cross-entropy (ties: the first).

    Guo et al. 2020, KDCL-Naive.
    """
    at_label = logits.log_softmax(2).gather(2, labels.expand(len(logits), -1)[:, :, None]).squeeze(2)
    return logits[at_label.argmax(0), torch.arange(logits.shape[1], device=logits.device)]


@full_precision
def minlogit(logits: Float[Tensor, "k n c"], labels: Int[Tensor, " n"]) -> Float[Tensor, "n c"]:
    r"""Return $\min_k (z_{kc} - z_{ky})$ of K outputs for each class c; the label's entry is 0.

    Guo et al. 2020, KDCL-MinLogit: its cross-entropy is at most that of each output. Gradients flow to the minimum.
    """
    own = logits.gather(2, labels.expand(len(logits), -1)[:, :, None])
    return (logits - own).amin(0)


@full_precision
def weighed(logits: Float[Tensor, "k n c"], weights: Float[Tensor, " k"]) -> Float[Tensor, "n c"]:
    r"""Return $\sum_k w_k z_k$ of K outputs."""
    return torch.einsum("k,knc->nc", weights.to(logits.dtype), logits)


def error_products(logits: Float[Tensor, "k n c"], labels: Int[Tensor, " n"]) -> Float[Tensor, "k k"]:
    r"""Return $\sum_n \langle p_{in} - y_n, p_{jn} - y_n \rangle$ of K outputs, p their softmax, y one-hot; float64."""
    errors = logits.double().softmax(2)
    errors = errors.scatter_add(2, labels.expand(len(logits), -1)[:, :, None], -torch.ones_like(errors[:, :, :1]))
    return torch.einsum("inc,jnc->ij", errors, errors)


def covariance_weights(products: Float[Tensor, "k k"]) -> Float[Tensor, " k"]:
    r"""Return $w_i = \sum_j (C^{-1})_{ij} / \sum_{ij} (C^{-1})_{ij}$, which minimize $w^T C w$ with sum 1.

    Guo et al. 2020, KDCL-General. Weights may be negative. $10^{-6}$ times the mean of C's diagonal is added to the
    diagonal, so that outputs with the same errors get the same weight; if C is 0, all weights are equal.

    Args:
        products: C of K outputs, or any multiple of it.
    """
    scale = products.diagonal().mean()
    if scale == 0.0:
        return torch.full_like(products[0], 1.0 / len(products))
    ridged = products / scale + 1e-6 * torch.eye(len(products), dtype=products.dtype, device=products.device)
    rows: Tensor = torch.linalg.solve(ridged, torch.ones_like(products[0]))
    return rows / rows.sum()
