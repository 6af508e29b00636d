"""Progressive self-distillation: PS-KD (Kim et al. 2021)."""

from __future__ import annotations

from torch.nn import functional

from kdschemes.config import Config
from kdschemes.core.averages import PredictionBank
from kdschemes.core.distillation import Distillation
from kdschemes.core.nodes import Network
from kdschemes.core.schedules import Schedule
from kdschemes.core.terms import Supervise, Term
from kdschemes.core.types import DataSpec, Progress
from kdschemes.schemes.distill import Edge, distill, soft_weight
from kdschemes.schemes.networks import student_network

CERTAIN = 100.0
"""The logit of the label if all others are 0: their probability e^-100 is negligible."""


def growing(last: float) -> Schedule:
    """Return a weight that grows by the same amount each epoch and reaches `last` in the last one."""

    def weight(progress: Progress) -> float:
        epoch = progress.step // progress.steps_per_epoch
        return last * (epoch + 1) * progress.steps_per_epoch / progress.total_steps

    return weight


def pskd(config: Config, data_spec: DataSpec) -> Distillation:
    """Return (1 - a) CE + a response(previous epoch -> current), with a growing each epoch up to `scheme.alpha`.

    The teacher is the network's own prediction in training, in the previous epoch's view. For samples not seen yet, it
    is the label, so that the first epoch only learns from labels. Without a response loss, CE has weight 1.
    """
    labels = functional.one_hot(data_spec.labels_of_all().cpu().clamp(min=0), data_spec.num_classes)
    scheme = distill(
        {
            "student": Network("student", student_network(config, data_spec, "student")),
            "past": PredictionBank("past", "student", data_spec, prior=CERTAIN * labels.float()),
        },
        supervised={"student": 1.0},
        edges=[Edge("past", "student")],
        losses=config.losses,
        heads=["student"],
        data_spec=data_spec,
    )
    alpha = growing(soft_weight(config))
    for term in scheme.terms:
        assert isinstance(term, Term)
        share = _rest(alpha) if isinstance(term, Supervise) else alpha
        term.weight = _product(term.weight, share)
    return scheme


def _rest(share: Schedule) -> Schedule:
    return lambda progress: 1.0 - share(progress)


def _product(first: Schedule, second: Schedule) -> Schedule:
    return lambda progress: first(progress) * second(progress)
