"""Options of the offline methods. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from kdschemes.config.schemes.base import HardWeight, Method, Prerequisite, SoftWeight, by_method


@dataclass(frozen=True, kw_only=True)
class OfflineOptions(Method):
    """How the hard and the soft term are weighed."""

    uses_teacher: ClassVar[bool] = True
    losses: ClassVar[dict[str, Any]] = {"response": {"name": "kd"}}

    alpha: SoftWeight = 0.9
    ce_weight: HardWeight = None


@dataclass(frozen=True, kw_only=True)
class OfflineKD(OfflineOptions):
    """One or several frozen teachers teach a student (Hinton et al. 2015)."""

    name: Literal["offline"] = "offline"
    method: Literal["kd"] = "kd"


@dataclass(frozen=True, kw_only=True)
class OfflineTAKD(OfflineOptions):
    """A chain of teacher assistants, each taught by the one before, the last teaches (Mirzadeh et al. 2020)."""

    name: Literal["offline"] = "offline"
    method: Literal["takd"] = "takd"
    assistants: Annotated[
        list[str], Field(min_length=1, description="models from the teacher to the student, each a run of its own")
    ] = field(default_factory=lambda: ["resnet20"])

    def prerequisites(self) -> list[Prerequisite]:
        """Return the run of the last assistant, which those before it teach, or the teacher if there are none."""
        *before, last = self.assistants
        shorter = OfflineKD(alpha=self.alpha, ce_weight=self.ce_weight)
        return [Prerequisite(scheme=replace(self, assistants=before) if before else shorter, model=last)]


@dataclass(frozen=True, kw_only=True)
class OfflineCAMKD(Method):
    """Several teachers, weighed for each sample by how well they know its label (Zhang et al. 2022)."""

    uses_teacher: ClassVar[bool] = True
    uses_losses: ClassVar[bool] = False
    reads_labels: ClassVar[bool] = True

    name: Literal["offline"] = "offline"
    method: Literal["camkd"] = "camkd"
    ce_weight: Annotated[float, Field(ge=0, description="weight of the hard term")] = 1.0
    alpha: Annotated[float, Field(ge=0, description="weight of the soft term")] = 1.0
    beta: Annotated[float, Field(ge=0, description="weight of the feature term")] = 50.0
    temperature: Annotated[float, Field(gt=0, description="temperature T of the soft term")] = 4.0
    feature_start_epoch: Annotated[float, Field(ge=0, description="epochs before the feature term begins")] = 1.0
    grad_through_weights: Annotated[
        bool, Field(description="the feature term's weights pass a gradient on (authors' code); false: constants")
    ] = True


@dataclass(frozen=True, kw_only=True)
class OfflinePartialTeacher(OfflineOptions):
    """A teacher whose deep stages are trained along with the student, the rest frozen."""

    name: Literal["offline"] = "offline"
    method: Literal["partial_teacher"] = "partial_teacher"
    alpha: SoftWeight = 1.0
    ce_weight: HardWeight = 1.0
    trained_from: Annotated[
        str, Field(description="the teacher's first trained stage: its name, last, or all (nothing is frozen)")
    ] = "last"
    teacher_alpha: Annotated[float, Field(ge=0, description="weight of the soft term from student to teacher")] = 1.0
    teacher_ce_weight: Annotated[float, Field(ge=0, description="weight of the teacher's hard term")] = 1.0
    teacher_lr_multiplier: Annotated[
        float, Field(gt=0, description="what optim.lr is multiplied by for the teacher")
    ] = 1.0


@dataclass(frozen=True, kw_only=True)
class OfflineDPKD(OfflineOptions):
    """Trained networks go on learning: from the teacher only where it is the surer one (Roth et al. 2024)."""

    reads_labels: ClassVar[bool] = True
    continues_training: ClassVar[bool] = True
    losses: ClassVar[dict[str, Any]] = {"response": {"name": "kd", "temperature": 1.0}}

    name: Literal["offline"] = "offline"
    method: Literal["dpkd"] = "dpkd"
    alpha: SoftWeight = 1.0
    confidence: Annotated[
        Literal["supervised", "max_probability"],
        Field(description="probability of the label's class, or the largest probability of any class"),
    ] = "supervised"


OFFLINE = by_method(OfflineKD, OfflineTAKD, OfflineCAMKD, OfflinePartialTeacher, OfflineDPKD)
