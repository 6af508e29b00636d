"""Contrastive representation distillation: one's own memory among many others' by noise-contrastive estimation."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from kdschemes.data.views import random_bits
from kdschemes.losses.precision import full_precision
from kdschemes.losses.relation.rows import unit_rows

_CHUNK_ELEMENTS = 2**25
_FRACTION_BITS = 53


@full_precision
def memory_similarities(
    embeddings: Float[Tensor, "n d"],
    memory: Float[Tensor, "positions d"],
    samples: Int[Tensor, "n drawn"],
    *,
    temperature: float,
) -> Float[Tensor, "n drawn"]:
    r"""Return $e_n \cdot m_{samples[n, k]} / \tau$.

    Products with the whole memory are cheaper than a copy of the drawn rows, `[n, drawn, d]`; they are made for a few
    embeddings at a time.

    Args:
        embeddings: of unit length.
        memory: one row a position; must not change before the backward pass.
        samples: positions in the memory.
        temperature: tau > 0.
    """
    assert temperature > 0, temperature
    chunk = max(1, _CHUNK_ELEMENTS // len(memory))
    parts = [
        (e @ memory.mT / temperature).gather(1, s)
        for e, s in zip(torch.split(embeddings, chunk), torch.split(samples, chunk), strict=True)
    ]
    return torch.cat(parts)


@full_precision
def log_normaliser(similarities: Float[Tensor, "n drawn"], *, population: int) -> Float[Tensor, ""]:
    r"""Return $\log Z$, $Z = M \cdot mean_{nk} e^{s_{nk}}$: an estimate from one batch of the sum over M samples.

    Args:
        similarities: of every sample to its own memory and the drawn ones.
        population: M, how many samples are drawn from.
    """
    return similarities.flatten().logsumexp(dim=0) + math.log(population / similarities.numel())


@full_precision
def noise_contrastive(
    similarities: Float[Tensor, "n drawn"], normaliser: Float[Tensor, ""], *, population: int, eps: float = 1e-7
) -> Float[Tensor, ""]:
    r"""Return $-\frac1N \sum_n [\log \frac{p_{n0}}{p_{n0} + c} + \sum_{k=1}^{K} \log \frac{K/M}{p_{nk} + c}]$.

    Tian, Krishnan, Isola 2020, "Contrastive Representation Distillation": $p = e^{s} / Z$, $c = K/M + \epsilon$, where
    column 0 holds the pair that belongs together and K others follow, in RepDistiller's convention. Both logarithms
    are taken of s itself, so that no similarity is too large. Mean over the batch. The gradient flows to the
    similarities, and to $\log Z$ unless the caller gives a constant (the reference does).

    Args:
        similarities: s.
        normaliser: $\log Z$.
        population: M, how many samples are drawn from.
        eps: epsilon.
    """
    share = (similarities.shape[1] - 1) / population
    assert share > 0, "nothing to tell the positive from"
    log_share, log_c = math.log(share), math.log(share + eps)
    odds = similarities - normaliser - log_c
    positive = functional.logsigmoid(odds[:, 0])
    negatives = log_share - log_c + functional.logsigmoid(-odds[:, 1:])
    return -(positive.mean() + negatives.sum(dim=1).mean())


@full_precision
def refreshed_memory(
    rows: Float[Tensor, "n d"], embeddings: Float[Tensor, "n d"], *, momentum: float
) -> Float[Tensor, "n d"]:
    r"""Return $m' / \|m'\|$ with $m' = \mu m + (1 - \mu) e$, or 0 where m' is 0.

    Args:
        rows: the memory of the batch's samples, m.
        embeddings: their embeddings of unit length, e.
        momentum: mu, from 0 to 1.
    """
    return unit_rows(momentum * rows + (1.0 - momentum) * embeddings)


def draw_others(
    seed: Int[Tensor, ""],
    draw: Int[Tensor, ""],
    index: Int[Tensor, " n"],
    *,
    count: int,
    pool: Int[Tensor, " pool"],
    first: Int[Tensor, " n"],
    left_out: Int[Tensor, " n"],
) -> Int[Tensor, "n {count}"]:
    """Return `count` entries of `pool` for each sample, with replacement, all that may be drawn with equal chance.

    A pure function of (seed, draw, index): whatever the other samples are, on every device and in every process.

    Args:
        seed: of the whole training.
        draw: number of the draw.
        index: the samples that others are drawn for.
        count: how many for each.
        pool: what is drawn from.
        first: where in the pool the entries begin that a sample must not draw.
        left_out: how many these are, fewer than the whole pool.
    """
    key = random_bits(0, random_bits(0, seed.reshape(1)) + draw)
    streams = random_bits(0, key + index)
    counter = torch.arange(count, device=index.device)
    bits = random_bits(0, (streams[:, None] + counter).flatten()).reshape(len(index), count)
    fraction = ((bits >> (64 - _FRACTION_BITS)) & (2**_FRACTION_BITS - 1)).double() * 2.0**-_FRACTION_BITS
    place = (fraction * (len(pool) - left_out)[:, None]).long()
    return pool[place + (place >= first[:, None]) * left_out[:, None]]
