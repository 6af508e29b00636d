"""Options of the offline methods. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from kdschemes.config.schemes.base import HardWeight, Method, Prerequisite, SoftWeight, by_method


@dataclass(frozen=True, kw_only=True)
class OfflineOptions(Method):
    """Weights of cross-entropy and of the soft term."""

    uses_teacher: ClassVar[bool] = True
    losses: ClassVar[dict[str, Any]] = {"response": {"name": "kd"}}

    alpha: SoftWeight = 0.9
    ce_weight: HardWeight = None


@dataclass(frozen=True, kw_only=True)
class OfflineKD(OfflineOptions):
    """One or several frozen teachers teach a student (Hinton et al. 2015)."""

    multi_label: ClassVar[bool] = True

    name: Literal["offline"] = "offline"
    method: Literal["kd"] = "kd"


@dataclass(frozen=True, kw_only=True)
class OfflineTAKD(OfflineOptions):
    """A chain of teacher assistants, each taught by the previous one; the last teaches (Mirzadeh et al. 2020)."""

    name: Literal["offline"] = "offline"
    method: Literal["takd"] = "takd"
    assistants: Annotated[
        list[str],
        Field(min_length=1, max_length=64, description="models from the teacher to the student, each a separate run"),
    ] = field(default_factory=lambda: ["resnet20"])

    def prerequisites(self) -> list[Prerequisite]:
        """Return the run of the last assistant, taught by the earlier ones or, if there are none, by the teacher."""
        *before, last = self.assistants
        shorter = OfflineKD(alpha=self.alpha, ce_weight=self.ce_weight)
        return [Prerequisite(scheme=replace(self, assistants=before) if before else shorter, model=last)]


@dataclass(frozen=True, kw_only=True)
class OfflineCAMKD(Method):
    """Several teachers, weighted per sample by their cross-entropy with the label (Zhang et al. 2022)."""

    uses_teacher: ClassVar[bool] = True
    uses_losses: ClassVar[bool] = False
    reads_labels: ClassVar[bool] = True

    name: Literal["offline"] = "offline"
    method: Literal["camkd"] = "camkd"
    ce_weight: Annotated[float, Field(ge=0, description="weight of cross-entropy")] = 1.0
    alpha: Annotated[float, Field(ge=0, description="weight of the soft term")] = 1.0
    beta: Annotated[float, Field(ge=0, description="weight of the feature term")] = 50.0
    temperature: Annotated[float, Field(gt=0, description="temperature T of the soft term")] = 4.0
    feature_start_epoch: Annotated[float, Field(ge=0, description="epochs before the feature term starts")] = 1.0
    grad_through_weights: Annotated[
        bool, Field(description="backpropagate through the feature term's weights (authors' code); false: detach them")
    ] = True


@dataclass(frozen=True, kw_only=True)
class OfflinePartialTeacher(OfflineOptions):
    """A teacher whose deep stages are trained along with the student; the rest is frozen."""

    trains_teacher: ClassVar[bool] = True

    name: Literal["offline"] = "offline"
    method: Literal["partial_teacher"] = "partial_teacher"
    alpha: SoftWeight = 1.0
    ce_weight: HardWeight = 1.0
    trained_from: Annotated[
        str, Field(description="the teacher's first trained stage: its name, last, or all (nothing is frozen)")
    ] = "last"
    teacher_alpha: Annotated[float, Field(ge=0, description="weight of the soft term from student to teacher")] = 1.0
    teacher_ce_weight: Annotated[float, Field(ge=0, description="weight of the teacher's cross-entropy")] = 1.0
    teacher_lr_multiplier: Annotated[float, Field(gt=0, description="factor on optim.lr for the teacher")] = 1.0


@dataclass(frozen=True, kw_only=True)
class OfflineDPKD(OfflineOptions):
    """Continues training a student; the teacher teaches only where it is more confident (Roth et al. 2024)."""

    reads_labels: ClassVar[bool] = True
    continues_training: ClassVar[bool] = True
    losses: ClassVar[dict[str, Any]] = {"response": {"name": "kd", "temperature": 1.0}}

    name: Literal["offline"] = "offline"
    method: Literal["dpkd"] = "dpkd"
    alpha: SoftWeight = 1.0
    confidence: Annotated[
        Literal["supervised", "max_probability"],
        Field(description="probability of the label (supervised), or the largest probability of any class"),
    ] = "supervised"


OFFLINE = by_method(OfflineKD, OfflineTAKD, OfflineCAMKD, OfflinePartialTeacher, OfflineDPKD)
