"""Losses between relations."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kdschemes.config.losses import relation as config
from kdschemes.errors import UserError
from kdschemes.losses import feature, relation
from kdschemes.losses.modules.base import Gather, LogitLoss, Loss, Side, embedding
from kdschemes.losses.modules.relation_crd import CRD, Embedding, embedding_width
from kdschemes.losses.stages import map_shape, match_stages, to_map
from kdschemes.outputs import Batch, Output
from kdschemes.task import Task


class RKD(Loss[config.RKD]):
    """Sum over stage pairs of the weighted `relation.rkd_distance` and `relation.rkd_angle`.

    Embeddings are the stages' features averaged over positions (brought to length 1 if `options.normalise`), gathered
    over all processes.
    """

    spans_batch = True

    def __init__(self, options: config.RKD, *, student: Side, teacher: Side, task: Task) -> None:
        super().__init__(options, student=student, teacher=teacher, task=task)
        if options.distance == options.angle == 0:
            raise UserError("rkd with distance=0 and angle=0 compares nothing: give one of them a positive weight")
        self.pairs = match_stages(options.stages, student.features, teacher.features)
        self.distance = options.distance
        self.angle = options.angle
        self.normalise = options.normalise

    def forward(self, student: Output, teacher: Output, batch: Batch, gather: Gather) -> Float[Tensor, ""]:
        values = []
        for a, b in self.pairs:
            ours, theirs = gather(embedding(student.features[a])), gather(embedding(teacher.features[b]))
            if self.normalise:
                ours, theirs = relation.unit_rows(ours), relation.unit_rows(theirs)
            if self.distance:
                values.append(self.distance * relation.rkd_distance(ours, theirs))
            if self.angle:
                values.append(self.angle * relation.rkd_angle(ours, theirs))
        return torch.stack(values).sum()


class FSP(Loss[config.FSP]):
    """Sum over consecutive stage pairs of `relation.fsp`. Square tokens count as a map.

    Stages of the student with another number of channels than the teacher's pass a learned 1x1 convolution first.
    """

    def __init__(self, options: config.FSP, *, student: Side, teacher: Side, task: Task) -> None:
        super().__init__(options, student=student, teacher=teacher, task=task)
        self.pairs = match_stages(options.stages, student.features, teacher.features)
        if len(self.pairs) < 2:
            raise UserError(
                f"fsp needs at least two stage pairs, got {', '.join(f'{a}:{b}' for a, b in self.pairs)}: "
                "set losses.relation.stages=all or list two pairs"
            )
        shapes = [
            (map_shape("fsp", a, student.features[a]), map_shape("fsp", b, teacher.features[b])) for a, b in self.pairs
        ]
        self.adapters = nn.ModuleList(
            nn.Identity() if ours[0] == theirs[0] else nn.Conv2d(ours[0], theirs[0], 1) for ours, theirs in shapes
        )

    def forward(self, student: Output, teacher: Output, batch: Batch, gather: Gather) -> Float[Tensor, ""]:
        ours = [adapt(to_map(student.features[a])) for (a, _), adapt in zip(self.pairs, self.adapters, strict=True)]
        theirs = [to_map(teacher.features[b]) for _, b in self.pairs]
        return torch.stack(
            [
                relation.fsp(s, t, pooling=self.options.pooling, distance=self.options.distance)
                for s, t in zip(pairwise(ours), pairwise(theirs), strict=True)
            ],
        ).sum()


class SP(Loss[config.SP]):
    """Sum over stage pairs of `relation.similarity_preserving` of the whole features, gathered over all processes."""

    spans_batch = True

    def __init__(self, options: config.SP, *, student: Side, teacher: Side, task: Task) -> None:
        super().__init__(options, student=student, teacher=teacher, task=task)
        self.pairs = match_stages(options.stages, student.features, teacher.features)

    def forward(self, student: Output, teacher: Output, batch: Batch, gather: Gather) -> Float[Tensor, ""]:
        values = []
        for a, b in self.pairs:
            ours, theirs = gather(student.features[a].flatten(1)), gather(teacher.features[b].flatten(1))
            values.append(relation.similarity_preserving(ours, theirs, rows=self.options.rows))
        return torch.stack(values).sum()


class CC(Loss[config.CC]):
    """Sum over stage pairs of `relation.neighbour_congruence` or `relation.kernel_congruence`, as `options.form` says.

    The features are averaged over positions. Neighbours are compared after a linear layer on each side, trained with
    the student (which is why the teacher's is, too); the kernel compares samples within a network and has none.
    """

    spans_batch = True

    def __init__(self, options: config.CC, *, student: Side, teacher: Side, task: Task) -> None:
        super().__init__(options, student=student, teacher=teacher, task=task)
        self.pairs = match_stages(options.stages, student.features, teacher.features)
        self.embeddings = nn.ModuleList()
        if options.form == "neighbour":
            for a, b in self.pairs:
                widths = (embedding_width(student.features[a]), embedding_width(teacher.features[b]))
                self.embeddings.append(nn.ModuleList(Embedding(width, options.dimension) for width in widths))

    def forward(self, student: Output, teacher: Output, batch: Batch, gather: Gather) -> Float[Tensor, ""]:
        values = []
        for i, (a, b) in enumerate(self.pairs):
            ours, theirs = embedding(student.features[a]), embedding(teacher.features[b])
            if self.options.form == "kernel":
                gamma, order = self.options.gamma, self.options.order
                values.append(relation.kernel_congruence(gather(ours), gather(theirs), gamma=gamma, order=order))
            else:
                embed_student, embed_teacher = self.embeddings[i].children()
                values.append(relation.neighbour_congruence(gather(embed_student(ours)), gather(embed_teacher(theirs))))
        return torch.stack(values).sum()


class PKT(Loss[config.PKT]):
    """Sum over stage pairs of `relation.probabilistic_transfer` of the features averaged over positions."""

    spans_batch = True

    def __init__(self, options: config.PKT, *, student: Side, teacher: Side, task: Task) -> None:
        super().__init__(options, student=student, teacher=teacher, task=task)
        self.pairs = match_stages(options.stages, student.features, teacher.features)

    def forward(self, student: Output, teacher: Output, batch: Batch, gather: Gather) -> Float[Tensor, ""]:
        values = []
        for a, b in self.pairs:
            ours, theirs = gather(embedding(student.features[a])), gather(embedding(teacher.features[b]))
            values.append(relation.probabilistic_transfer(ours, theirs, eps=self.options.eps))
        return torch.stack(values).sum()


class IRG(Loss[config.IRG]):
    """The weighted sum of three parts, each a mean of squared differences; all tensors gathered over all processes.

    `vertices` compares the logits; `edges` is the mean over the stage pairs' features, and the last pair's averaged
    over positions, of the difference in `relation.irg_edges`; `transformations` the mean over consecutive stage pairs
    of the difference in `relation.irg_transformation`. Square tokens count as a map.
    """

    spans_batch = True

    def __init__(self, options: config.IRG, *, student: Side, teacher: Side, task: Task) -> None:
        super().__init__(options, student=student, teacher=teacher, task=task)
        if options.vertices == options.edges == options.transformations == 0:
            raise UserError("irg with vertices=0, edges=0 and transformations=0 compares nothing: weigh one of them")
        self.pairs = match_stages(options.stages, student.features, teacher.features)
        if options.transformations:
            if len(self.pairs) < 2:
                raise UserError(
                    f"irg needs at least two stage pairs, got {', '.join(f'{a}:{b}' for a, b in self.pairs)}: "
                    "list two pairs in losses.relation.stages or set losses.relation.transformations=0"
                )
            for a, b in self.pairs:
                map_shape("irg", a, student.features[a]), map_shape("irg", b, teacher.features[b])

    def forward(self, student: Output, teacher: Output, batch: Batch, gather: Gather) -> Float[Tensor, ""]:
        ours = [gather(student.features[a]) for a, _ in self.pairs]
        theirs = [gather(teacher.features[b]) for _, b in self.pairs]
        parts = []
        if self.options.vertices:
            parts.append(self.options.vertices * feature.hint(gather(student.logits), gather(teacher.logits)))
        if self.options.edges:
            graphs = zip([*ours, embedding(ours[-1])], [*theirs, embedding(theirs[-1])], strict=True)
            gaps = [feature.hint(relation.irg_edges(s), relation.irg_edges(t)) for s, t in graphs]
            parts.append(self.options.edges * torch.stack(gaps).mean())
        if self.options.transformations:
            steps = zip(pairwise(map(to_map, ours)), pairwise(map(to_map, theirs)), strict=True)
            gaps = [feature.hint(relation.irg_transformation(*s), relation.irg_transformation(*t)) for s, t in steps]
            parts.append(self.options.transformations * torch.stack(gaps).mean())
        return torch.stack(parts).sum()


class BatchCorrelation(LogitLoss[config.BatchCorrelation]):
    """`relation.batch_correlation` of the logits of all processes."""

    spans_batch = True

    def forward(self, student: Output, teacher: Output, batch: Batch, gather: Gather) -> Float[Tensor, ""]:
        z, v = self.logits(student, teacher)
        return relation.batch_correlation(gather(z), gather(v), temperature=self.options.temperature)


class ClassCorrelation(LogitLoss[config.ClassCorrelation]):
    """`relation.class_correlation` of the logits of all processes."""

    spans_batch = True

    def forward(self, student: Output, teacher: Output, batch: Batch, gather: Gather) -> Float[Tensor, ""]:
        z, v = self.logits(student, teacher)
        return relation.class_correlation(gather(z), gather(v), temperature=self.options.temperature)


RELATION: dict[type, type[Loss[Any]]] = {
    config.RKD: RKD,
    config.FSP: FSP,
    config.SP: SP,
    config.CC: CC,
    config.PKT: PKT,
    config.CRD: CRD,
    config.IRG: IRG,
    config.BatchCorrelation: BatchCorrelation,
    config.ClassCorrelation: ClassCorrelation,
}
