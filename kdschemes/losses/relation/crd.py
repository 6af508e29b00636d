"""Contrastive representation distillation: CRD (Tian et al. 2020)."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from kdschemes.config.losses import relation as config
from kdschemes.core.loss import Endpoint, Gather, embedding, embedding_width
from kdschemes.core.precision import full_precision
from kdschemes.core.types import Batch, DataSpec, Output
from kdschemes.errors import UserError
from kdschemes.losses.rows import unit_rows
from kdschemes.losses.stages import Embedding, StageLoss
from kdschemes.seeding import random_bits

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

    Products with the whole memory bank are cheaper than a copy of the drawn rows, `[n, drawn, d]`; they are computed
    for a few embeddings at a time.

    Args:
        embeddings: L2-normalized.
        memory: one row per position; must not change before the backward pass.
        samples: positions in the memory bank.
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
def log_normalizer(similarities: Float[Tensor, "n drawn"], *, population: int) -> Float[Tensor, ""]:
    r"""Return $\log Z$, $Z = M \cdot mean_{nk} e^{s_{nk}}$: the sum over M samples, estimated from one batch.

    Args:
        similarities: of every sample to its own entry in the memory bank and the drawn ones.
        population: M, the number of samples to draw from.
    """
    return similarities.flatten().logsumexp(dim=0) + math.log(population / similarities.numel())


@full_precision
def noise_contrastive(
    similarities: Float[Tensor, "n drawn"], normalizer: Float[Tensor, ""], *, population: int, eps: float = 1e-7
) -> Float[Tensor, ""]:
    r"""Return $-\frac1N \sum_n [\log \frac{p_{n0}}{p_{n0} + c} + \sum_{k=1}^{K} \log \frac{K/M}{p_{nk} + c}]$.

    Tian, Krishnan, Isola 2020, "Contrastive Representation Distillation": $p = e^{s} / Z$, $c = K/M + \epsilon$, with
    the positive pair in column 0, followed by K negatives (RepDistiller's convention). Computed in log space, so no
    similarity overflows. Mean over the batch. Gradients flow to the similarities, and to $\log Z$ unless the caller
    detaches it (as the reference does).

    Args:
        similarities: s.
        normalizer: $\log Z$.
        population: M, the number of samples to draw from.
        eps: epsilon.
    """
    share = (similarities.shape[1] - 1) / population
    assert share > 0, "there are no negatives"
    log_share, log_c = math.log(share), math.log(share + eps)
    odds = similarities - normalizer - log_c
    positive = functional.logsigmoid(odds[:, 0])
    negatives = log_share - log_c + functional.logsigmoid(-odds[:, 1:])
    return -(positive.mean() + negatives.sum(dim=1).mean())


@full_precision
def refreshed_memory(
    rows: Float[Tensor, "n d"], embeddings: Float[Tensor, "n d"], *, momentum: float
) -> Float[Tensor, "n d"]:
    r"""Return $m' / \|m'\|$ with $m' = \mu m + (1 - \mu) e$, or 0 where m' is 0.

    Args:
        rows: the batch's entries in the memory bank, m.
        embeddings: their L2-normalized embeddings, e.
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
    """Return `count` entries of `pool` for each sample, drawn uniformly with replacement from the allowed ones.

    A pure function of (seed, draw, index), independent of the other samples, the device and the process.

    Args:
        seed: seed of the whole training.
        draw: number of the draw.
        index: the samples to draw for.
        count: number of entries per sample.
        pool: the entries to draw from.
        first: for each sample, the position in the pool where its excluded entries begin.
        left_out: number of excluded entries, fewer than the whole pool.
    """
    key = random_bits(0, random_bits(0, seed.reshape(1)) + draw)
    streams = random_bits(0, key + index)
    counter = torch.arange(count, device=index.device)
    bits = random_bits(0, (streams[:, None] + counter).flatten()).reshape(len(index), count)
    fraction = ((bits >> (64 - _FRACTION_BITS)) & (2**_FRACTION_BITS - 1)).double() * 2.0**-_FRACTION_BITS
    place = (fraction * (len(pool) - left_out)[:, None]).long()
    return pool[place + (place >= first[:, None]) * left_out[:, None]]


class CRD(StageLoss[config.CRD]):
    """Sum over stage pairs of the student's and the teacher's `noise_contrastive`.

    Both sides' features, averaged over positions, go through a linear layer each, trained with the student, and are
    L2-normalized. Each is compared with the *other* side's memory bank, at its own sample and `options.negatives`
    others. Embeddings and indices are gathered over all processes, which draw the same negatives and, in training mode,
    update the whole batch's entries identically after the loss is computed. Samples in a batch must be distinct.

    Memory banks, normalizers, the seed and the number of the draw are buffers, so resuming is exact.
    """

    needs_global_batch = True
    has_memory_bank = True

    def __init__(self, options: config.CRD, *, student: Endpoint, teacher: Endpoint, data_spec: DataSpec) -> None:
        super().__init__(options, student=student, teacher=teacher, data_spec=data_spec)
        if data_spec.train_labels is None:
            raise UserError("crd needs the labels of the training samples: build it with a DataSpec with train_labels")
        self.others = _Others(data_spec.train_labels.cpu(), exclude_class=options.exclude_class)
        self.contrasts = nn.ModuleList(
            _Contrast(
                embedding_width(student.features[a]),
                embedding_width(teacher.features[b]),
                options,
                positions=len(data_spec.train_labels),
                population=len(self.others.pool),
            )
            for a, b in self.pairs
        )

    def forward(self, student: Output, teacher: Output, batch: Batch, gather: Gather) -> Float[Tensor, ""]:
        index = gather(batch.index)
        samples = torch.cat([index[:, None], self.others(index, self.options.negatives)], dim=1)
        first = self.others.draw == 0
        values = []
        for (a, b), contrast in zip(self.pairs, self.contrasts, strict=True):
            values.append(contrast(student.features[a], teacher.features[b], samples, first, gather))
        if self.training:
            self.others.draw.add_(1)
        return torch.stack(values).sum()


class _Contrast(nn.Module):
    """The embeddings, memory banks and normalizers of one stage pair."""

    student_memory: Tensor
    teacher_memory: Tensor
    log_normalizers: Tensor

    def __init__(self, student: int, teacher: int, options: config.CRD, *, positions: int, population: int) -> None:
        super().__init__()
        self.options = options
        self.population = population
        self.embed_student = Embedding(student, options.dimension)
        self.embed_teacher = Embedding(teacher, options.dimension)
        bound = 1.0 / math.sqrt(options.dimension / 3)
        for side in ("student", "teacher"):
            self.register_buffer(f"{side}_memory", torch.empty(positions, options.dimension).uniform_(-bound, bound))
        self.register_buffer("log_normalizers", torch.zeros(2))

    def forward(
        self,
        student: Float[Tensor, "n ..."],
        teacher: Float[Tensor, "n ..."],
        samples: Int[Tensor, "all drawn"],
        first: Bool[Tensor, ""],
        gather: Gather,
    ) -> Float[Tensor, ""]:
        ours = unit_rows(gather(self.embed_student(embedding(student))))
        theirs = unit_rows(gather(self.embed_teacher(embedding(teacher))))
        sides = [
            memory_similarities(e, memory.clone(), samples, temperature=self.options.temperature)
            for e, memory in ((ours, self.teacher_memory), (theirs, self.student_memory))
        ]
        fresh = torch.stack([log_normalizer(s.detach(), population=self.population) for s in sides])
        normalizers = torch.where(first, fresh.to(self.log_normalizers.dtype), self.log_normalizers)
        values = [noise_contrastive(s, z, population=self.population) for s, z in zip(sides, normalizers, strict=True)]
        if self.training:
            self._remember(samples[:, 0], ours.detach(), theirs.detach(), normalizers)
        return torch.stack(values).sum()

    @torch.no_grad()
    def _remember(self, index: Tensor, ours: Tensor, theirs: Tensor, normalizers: Tensor) -> None:
        self.log_normalizers.copy_(normalizers)
        for memory, embeddings in ((self.student_memory, ours), (self.teacher_memory, theirs)):
            rows = refreshed_memory(memory[index], embeddings, momentum=self.options.momentum)
            memory[index] = rows.to(memory.dtype)


class _Others(nn.Module):
    """Draws other training samples for each sample of a batch, with replacement, the same in every process."""

    seed: Tensor
    draw: Tensor
    pool: Tensor
    first: Tensor
    left_out: Tensor

    def __init__(self, labels: Int[Tensor, " positions"], *, exclude_class: bool) -> None:
        super().__init__()
        trained = (labels >= 0).nonzero().squeeze(1)
        if len(trained) == 0:
            raise UserError("crd keeps a memory bank of training samples, but there are none")
        of_class = labels[trained].bincount()
        if exclude_class and int(of_class.max()) == len(trained):
            raise UserError("crd draws negatives from other classes, but there is only one: set exclude_class=false")
        ends = of_class.cumsum(0)
        block = labels.clamp(min=0)
        first = (ends - of_class)[block]
        self.register_buffer("pool", trained[torch.argsort(labels[trained], stable=True)], persistent=False)
        self.register_buffer("first", first, persistent=False)
        self.register_buffer("left_out", of_class[block] * exclude_class, persistent=False)
        self.register_buffer("seed", torch.randint(2**63 - 1, ()))
        self.register_buffer("draw", torch.zeros((), dtype=torch.long))

    def forward(self, index: Int[Tensor, " n"], count: int) -> Int[Tensor, "n {count}"]:
        return draw_others(
            self.seed,
            self.draw,
            index,
            count=count,
            pool=self.pool,
            first=self.first[index],
            left_out=self.left_out[index],
        )
