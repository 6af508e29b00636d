"""The convex combination of several outputs that fits the labels best."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

ROUNDS = 25

TRIALS = 25


@torch.no_grad()
def convex_weights(logits: Float[Tensor, "k n c"], labels: Int[Tensor, " n"]) -> Float[Tensor, " k"]:
    r"""Return $\arg\min_{a \ge 0, \sum_k a_k = 1} \frac1N \sum_n CE(\sum_k a_k z_{kn}, y_n)$, in float64.

    The problem is convex. Active-set Newton method: it starts from equal weights and steps on the nonzero weights and
    the one with the smallest gradient; the step length is limited where a weight reaches 0 and found by bisection on
    the slope. It stops when no exchange of weight lowers the loss, up to rounding. It is deterministic; the k x k
    system is solved on the CPU. If a logit is not finite, neither are the weights.

    Args:
        logits: z, of each of K outputs.
        labels: class indices y.
    """
    z = logits.double()
    if not z.isfinite().all():
        return z.new_full((len(z),), torch.nan)
    gaps = z - z.gather(2, labels.expand(len(z), -1)[:, :, None])
    weights = torch.full((len(z),), 1.0 / len(z), dtype=torch.float64)
    for _ in range(ROUNDS):
        gradient, curvature = _derivatives(weights, gaps)
        noise = 1e-13 * gradient.abs().max()
        if gradient[weights > 0].max() - gradient.min() <= noise:
            break
        direction = _direction(weights, gradient, curvature)
        start = _slope(gradient, direction)
        if start >= 0.0:
            break
        shrinking = direction < 0
        limit = float((weights[shrinking] / -direction[shrinking]).min())
        low, high, length = 0.0, limit, min(1.0, limit)
        for _ in range(TRIALS):
            slope = _slope(_derivatives(weights + length * direction, gaps)[0], direction)
            if abs(slope) <= -0.1 * start or (slope < 0.0 and length == limit):
                break
            low, high = (length, high) if slope < 0.0 else (low, length)
            length = (low + high) / 2.0
        weights = weights + length * direction
        weights = torch.where(weights > 1e-14, weights, 0.0)
        weights = weights / weights.sum()
    return weights.to(logits.device)


def _derivatives(weights: Tensor, gaps: Tensor) -> tuple[Tensor, Tensor]:
    """Return gradient [k] and Hessian [k, k] of mean_n log sum_c exp(sum_k weights_k gaps_knc)."""
    p = torch.softmax(torch.einsum("k,knc->nc", weights.to(gaps.device), gaps), dim=1)
    means = (gaps * p).sum(2, keepdim=True)
    deviations = gaps - means
    hessian = torch.einsum("inc,nc,jnc->ij", deviations, p, deviations) / gaps.shape[1]
    return means.mean(dim=(1, 2)).cpu(), hessian.cpu()


def _slope(gradient: Tensor, direction: Tensor) -> float:
    """Return the derivative along a direction that sums to 0, avoiding cancellation."""
    return float((gradient - gradient.min()) @ direction)


def _direction(weights: Tensor, gradient: Tensor, curvature: Tensor) -> Tensor:
    """Return the Newton step of the free weights, which sums to 0; if it leaves the simplex, an exchange of two."""
    k, best = len(weights), int(gradient.argmin())
    free = weights > 0
    free[best] = True
    ridge = 1e-10 * (curvature.diagonal().mean() + gradient.abs().max())
    system = torch.zeros(k + 1, k + 1, dtype=torch.float64)
    system[:k, :k] = torch.where(free[:, None] & free, curvature, 0.0) + ridge * torch.eye(k, dtype=torch.float64)
    system[:k, k] = system[k, :k] = free.double()
    wanted = torch.cat([torch.where(free, -gradient, 0.0), torch.zeros(1, dtype=torch.float64)])
    direction: Tensor = torch.linalg.solve(system, wanted)[:k]
    if weights[best] > 0 or direction[best] >= 0:
        return direction
    worst = int(torch.where(weights > 0, gradient, -torch.inf).argmax())
    exchange = torch.zeros(k, dtype=torch.float64)
    exchange[best], exchange[worst] = weights[worst], -weights[worst]
    return exchange
