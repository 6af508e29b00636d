"""CA-MKD: several teachers, weighted per sample by how well each predicts the label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from kdschemes.config import Config
from kdschemes.core.distillation import Distillation
from kdschemes.core.frozen import Frozen
from kdschemes.core.loss import embedding
from kdschemes.core.nodes import Network, Node
from kdschemes.core.precision import full_precision
from kdschemes.core.schedules import Schedule, constant
from kdschemes.core.terms import Supervise, Term
from kdschemes.core.types import Batch, DataSpec, Output, Outputs, Progress
from kdschemes.errors import UserError
from kdschemes.losses.response.divergence import divergence
from kdschemes.losses.stages import as_map_shape, match_stages
from kdschemes.models.recombined import as_map
from kdschemes.schemes.distill import probe
from kdschemes.schemes.networks import student_network
from kdschemes.schemes.offline.teachers import build_teachers

EMBEDDED = "embedded"

Shape = tuple[int, int, int]


def camkd(config: Config, data_spec: DataSpec) -> Distillation:
    """Return CE + alpha `weighted_kd` + beta `weighted_hint`, the latter from epoch `scheme.feature_start_epoch` on.

    Raises:
        UserError: fewer than two teachers, `teacher.weights` is set, or a teacher's classifier does not read the mean
            of its last map.
    """
    options, teachers = config.scheme, build_teachers(config, data_spec)
    if len(teachers.names) < 2:
        raise UserError(f"camkd needs two or more teachers, not teacher.name={config.teacher.name}: give a list")
    if config.teacher.weights is not None:
        raise UserError("teacher.weights has no effect with method=camkd, which weights per sample: remove it")
    student = Network("student", student_network(config, data_spec, "student"))
    shapes = probe([student, *teachers.frozen], data_spec)
    pairs = [match_stages("last", shapes["student"], shapes[name])[0] for name in teachers.names]
    ours = as_map_shape("camkd", pairs[0][0], shapes["student"][pairs[0][0]])
    theirs = [as_map_shape("camkd", b, shapes[name][b]) for name, (_, b) in zip(teachers.names, pairs, strict=True)]
    reader = ReadByTeachers("student", teachers.frozen, ours, theirs)
    stages = [b for _, b in pairs]
    return Distillation(
        {**teachers.nodes, "student": student, "embedded": reader},
        [
            Supervise("student", constant(options.ce_weight)),
            ConfidentKD("student", teachers.names, constant(options.alpha), options.temperature),
            ConfidentHint(
                "student",
                dict(zip(teachers.names, stages, strict=True)),
                reader.provides,
                _delayed(options.beta, options.feature_start_epoch),
                grad_through_weights=options.grad_through_weights,
            ),
        ],
        ["student"],
        "teacher",
    )


class ReadByTeachers(Node):
    """The student's last map in each teacher's feature space, and that teacher's classifier's logits for it.

    There is one learned embedding per teacher: the map is resized to the teacher's (average-pooled, or interpolated if
    smaller), then a 1x1 convolution, batch norm, and ReLU. The classifiers are frozen.
    """

    def __init__(self, source: str, teachers: Sequence[Frozen], ours: Shape, theirs: Sequence[Shape]) -> None:
        super().__init__([f"{source}/{teacher.provides[0]}" for teacher in teachers], reads=[source])
        self._classifiers = [_classifier(teacher) for teacher in teachers]
        self.sizes = [shape[1:] for shape in theirs]
        self.embeddings = nn.ModuleList(
            nn.Sequential(nn.Conv2d(ours[0], shape[0], 1), nn.BatchNorm2d(shape[0]), nn.ReLU(inplace=True))
            for shape in theirs
        )

    def forward(self, batch: Batch, outputs: Mapping[str, Output]) -> Outputs:
        last = as_map(list(outputs[self.reads[0]].features.values())[-1])
        produced = {}
        for name, layer, size, classifier in zip(
            self.provides, self.embeddings, self.sizes, self._classifiers, strict=True
        ):
            embedded = layer(_resized(last, size))
            bias = None if classifier.bias is None else classifier.bias.detach()
            pooled = embedding(embedded).to(classifier.weight.dtype)
            logits = functional.linear(pooled, classifier.weight.detach(), bias)
            produced[name] = Output(logits, {EMBEDDED: embedded})
        return produced


class ConfidentKD(Term):
    """`weighted_kd` with the teachers detached."""

    def __init__(self, target: str, sources: Sequence[str], weight: Schedule, temperature: float) -> None:
        super().__init__(f"camkd/teachers->{target}", target, weight)
        self.sources = tuple(sources)
        self.temperature = temperature

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.target, *self.sources)

    def stages_read(self, output: str) -> list[str]:
        return []

    def forward(self, outputs: Mapping[str, Output], batch: Batch) -> Tensor:
        teachers = torch.stack([outputs[name].logits.detach() for name in self.sources])
        weights = teacher_weights(teachers, batch.labels)
        return weighted_kd(outputs[self.target].logits, teachers, weights, temperature=self.temperature)


class ConfidentHint(Term):
    """`weighted_hint` of the last maps, weighted by the teachers' classifiers' logits for the student's map."""

    def __init__(
        self,
        target: str,
        stages: Mapping[str, str],
        readings: Sequence[str],
        weight: Schedule,
        *,
        grad_through_weights: bool,
    ) -> None:
        super().__init__(f"camkd_hint/teachers->{target}", target, weight)
        self.stages = dict(stages)
        self.readings = tuple(readings)
        self.grad_through_weights = grad_through_weights

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.target, *self.stages, *self.readings)

    def stages_read(self, output: str) -> list[str] | None:
        return [self.stages[output]] if output in self.stages else super().stages_read(output)

    def forward(self, outputs: Mapping[str, Output], batch: Batch) -> Tensor:
        read = [outputs[name] for name in self.readings]
        weights = teacher_weights(torch.stack([output.logits for output in read]), batch.labels)
        return weighted_hint(
            [output.features[EMBEDDED] for output in read],
            [as_map(outputs[name].features[stage].detach()) for name, stage in self.stages.items()],
            weights if self.grad_through_weights else weights.detach(),
        )


@full_precision
def teacher_weights(logits: Float[Tensor, "k n c"], labels: Int[Tensor, " n"]) -> Float[Tensor, "k n"]:
    r"""Return $w_{kn} = \frac1{K-1} (1 - softmax_k(CE(v_{kn}, y_n)))$: larger for teachers with a lower CE.

    Zhang et al. 2022, "Confidence-Aware Multi-Teacher Knowledge Distillation". The weights of a sample sum to 1.
    Gradients flow to the logits.

    Args:
        logits: of K >= 2 teachers.
        labels: class indices.
    """
    count = len(logits)
    assert count > 1, "weights need two or more teachers"
    surprise = -functional.log_softmax(logits, dim=2).gather(2, labels.expand(count, -1)[..., None]).squeeze(2)
    return (1.0 - functional.softmax(surprise, dim=0)) / (count - 1)


@full_precision
def weighted_kd(
    student: Float[Tensor, "n c"],
    teachers: Float[Tensor, "k n c"],
    weights: Float[Tensor, "k n"],
    *,
    temperature: float,
) -> Float[Tensor, ""]:
    r"""Return $\frac{T^2}{NK} \sum_{n,k} w_{kn} KL(p_T(v_{kn}) \| p_T(z_n))$, including the authors' extra 1/K.

    Zhang et al. 2022. Gradients flow to all three.

    Args:
        student: logits z.
        teachers: logits v.
        weights: w, e.g. from `teacher_weights`.
        temperature: T > 0.
    """
    by_teacher = torch.stack([divergence(student, teacher, temperature=temperature) for teacher in teachers])
    return temperature**2 * (weights * by_teacher).mean()


def weighted_hint(
    embedded: Sequence[Float[Tensor, "n ..."]],
    features: Sequence[Float[Tensor, "n ..."]],
    weights: Float[Tensor, "k n"],
) -> Float[Tensor, ""]:
    r"""Return $\frac1{NK} \sum_{n,k} w_{kn} \, mean(r_k(f_n) - f_{kn})^2$, the mean over a sample's elements.

    Zhang et al. 2022. Gradients flow to all three.

    Args:
        embedded: the student's feature in each teacher's feature space.
        features: the teachers' features.
        weights: w, e.g. from `teacher_weights`.
    """
    errors = [squared_error(ours, theirs) for ours, theirs in zip(embedded, features, strict=True)]
    return (weights * torch.stack(errors)).mean()


@full_precision
def squared_error(a: Float[Tensor, "n ..."], b: Float[Tensor, "n ..."]) -> Float[Tensor, " n"]:
    """Return each sample's mean of $(a - b)^2$."""
    assert a.shape == b.shape, f"{tuple(a.shape)} against {tuple(b.shape)}"
    return (a - b).square().flatten(1).mean(dim=1)


def _classifier(teacher: Frozen) -> nn.Linear:
    layer = teacher.network.linear_classifier()
    if layer is None:
        raise UserError(
            f"camkd needs each teacher's linear classifier on the averaged features of its last stage, "
            f"but {teacher.network.spec.name} has none: choose another teacher"
        )
    return layer


def _resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    if maps.shape[2:] == size:
        return maps
    if maps.shape[2] >= size[0] and maps.shape[3] >= size[1]:
        return functional.adaptive_avg_pool2d(maps, size)
    return functional.interpolate(maps, size, mode="bilinear")


def _delayed(value: float, epochs: float) -> Schedule:
    def weight(progress: Progress) -> float:
        return value if progress.epoch >= epochs else 0.0

    return weight
