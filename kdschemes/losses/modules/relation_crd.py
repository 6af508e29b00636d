"""Contrastive representation distillation, with its memories and the draw of its negatives."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from kdschemes.config.losses import relation as config
from kdschemes.errors import UserError
from kdschemes.losses import relation
from kdschemes.losses.modules.base import Gather, Loss, Side, embedding
from kdschemes.losses.precision import full_precision
from kdschemes.losses.stages import match_stages
from kdschemes.outputs import Batch, Output
from kdschemes.task import Task


class CRD(Loss[config.CRD]):
    """Sum over stage pairs of the student's and the teacher's `relation.noise_contrastive`.

    Both sides' features, averaged over positions, pass a linear layer each, trained with the student, and are brought
    to length 1. Each is compared with the *other* side's memory of its own sample and of `options.negatives` others.
    Embeddings and indices are gathered over all processes: each draws the same negatives and, in training mode,
    refreshes the memories of the whole batch alike once the value is found. A sample must not be twice in a batch.

    Memories, normalisers, the seed and the number of the draw are buffers: a checkpoint continues exactly.
    """

    spans_batch = True
    remembers = True

    def __init__(self, options: config.CRD, *, student: Side, teacher: Side, task: Task) -> None:
        super().__init__(options, student=student, teacher=teacher, task=task)
        self.pairs = match_stages(options.stages, student.features, teacher.features)
        if task.train_labels is None:
            raise UserError("crd needs the labels of the training samples: build it with a task that has train_labels")
        self.others = _Others(task.train_labels.cpu(), exclude_class=options.exclude_class)
        self.contrasts = nn.ModuleList(
            _Contrast(
                embedding_width(student.features[a]),
                embedding_width(teacher.features[b]),
                options,
                positions=len(task.train_labels),
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


class Embedding(nn.Linear):
    """A linear layer that computes in float32 at least."""

    @full_precision
    def forward(self, input: Float[Tensor, "n width"]) -> Float[Tensor, "n dimension"]:
        """Return the embeddings."""
        return super().forward(input)


def embedding_width(shape: tuple[int, ...]) -> int:
    """Return the dimension of `embedding` of a feature of one sample's `shape`: map, tokens or vector."""
    return shape[0] if len(shape) == 3 else shape[-1]


class _Contrast(nn.Module):
    """The embeddings, memories and normalisers of one stage pair."""

    student_memory: Tensor
    teacher_memory: Tensor
    log_normalisers: Tensor

    def __init__(self, student: int, teacher: int, options: config.CRD, *, positions: int, population: int) -> None:
        super().__init__()
        self.options = options
        self.population = population
        self.embed_student = Embedding(student, options.dimension)
        self.embed_teacher = Embedding(teacher, options.dimension)
        bound = 1.0 / math.sqrt(options.dimension / 3)
        for side in ("student", "teacher"):
            self.register_buffer(f"{side}_memory", torch.empty(positions, options.dimension).uniform_(-bound, bound))
        self.register_buffer("log_normalisers", torch.zeros(2))

    def forward(
        self,
        student: Float[Tensor, "n ..."],
        teacher: Float[Tensor, "n ..."],
        samples: Int[Tensor, "all drawn"],
        first: Bool[Tensor, ""],
        gather: Gather,
    ) -> Float[Tensor, ""]:
        ours = relation.unit_rows(gather(self.embed_student(embedding(student))))
        theirs = relation.unit_rows(gather(self.embed_teacher(embedding(teacher))))
        sides = [
            relation.memory_similarities(e, memory.clone(), samples, temperature=self.options.temperature)
            for e, memory in ((ours, self.teacher_memory), (theirs, self.student_memory))
        ]
        fresh = torch.stack([relation.log_normaliser(s.detach(), population=self.population) for s in sides])
        normalisers = torch.where(first, fresh.to(self.log_normalisers.dtype), self.log_normalisers)
        values = [
            relation.noise_contrastive(s, z, population=self.population)
            for s, z in zip(sides, normalisers, strict=True)
        ]
        if self.training:
            self._remember(samples[:, 0], ours.detach(), theirs.detach(), normalisers)
        return torch.stack(values).sum()

    @torch.no_grad()
    def _remember(self, index: Tensor, ours: Tensor, theirs: Tensor, normalisers: Tensor) -> None:
        self.log_normalisers.copy_(normalisers)
        for memory, embeddings in ((self.student_memory, ours), (self.teacher_memory, theirs)):
            rows = relation.refreshed_memory(memory[index], embeddings, momentum=self.options.momentum)
            memory[index] = rows.to(memory.dtype)


class _Others(nn.Module):
    """Draws other training samples for each of a batch: with replacement, the same in every process."""

    seed: Tensor
    draw: Tensor
    pool: Tensor
    first: Tensor
    left_out: Tensor

    def __init__(self, labels: Int[Tensor, " positions"], *, exclude_class: bool) -> None:
        super().__init__()
        trained = (labels >= 0).nonzero().squeeze(1)
        if len(trained) == 0:
            raise UserError("crd remembers training samples, but there are none")
        of_class = labels[trained].bincount()
        if exclude_class and int(of_class.max()) == len(trained):
            raise UserError("crd draws negatives of other classes, but all samples are of one: set exclude_class=false")
        ends = of_class.cumsum(0)
        block = labels.clamp(min=0)
        first = (ends - of_class)[block]
        self.register_buffer("pool", trained[torch.argsort(labels[trained], stable=True)], persistent=False)
        self.register_buffer("first", first, persistent=False)
        self.register_buffer("left_out", of_class[block] * exclude_class, persistent=False)
        self.register_buffer("seed", torch.randint(2**63 - 1, ()))
        self.register_buffer("draw", torch.zeros((), dtype=torch.long))

    def forward(self, index: Int[Tensor, " n"], count: int) -> Int[Tensor, "n {count}"]:
        return relation.draw_others(
            self.seed,
            self.draw,
            index,
            count=count,
            pool=self.pool,
            first=self.first[index],
            left_out=self.left_out[index],
        )
