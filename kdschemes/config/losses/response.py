"""Options of the losses between logits."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from kdschemes.config.losses.base import Ramp, StageChoice, Stages, Temperature, Weight, by_name

WeightBesideAlpha = Annotated[float, Field(ge=0, description="weight of the term, beside the scheme's alpha")]

Standardize = Annotated[
    bool, Field(description="divide centered logits by their standard deviation over classes first (Sun et al. 2024)")
]

Scale = Annotated[bool, Field(description="multiply by T^2, so that the gradient does not fall with T")]


@dataclass(frozen=True, kw_only=True)
class KD(Ramp):
    """Kullback-Leibler divergence of softened outputs, times T^2 (Hinton et al. 2015)."""

    name: Literal["kd"] = "kd"
    weight: WeightBesideAlpha = 1.0
    temperature: Temperature = 4.0
    scale: Scale = True
    reduction: Annotated[
        Literal["batchmean", "mean"],
        Field(description="sum over classes, or mean over samples and classes (Teacher-free, haitongli)"),
    ] = "batchmean"
    standardize: Standardize = False


@dataclass(frozen=True, kw_only=True)
class SoftCE(Ramp):
    """Cross-entropy with the teacher's softened output: KD plus the teacher's entropy (Hinton et al. 2015)."""

    name: Literal["soft_ce"] = "soft_ce"
    weight: WeightBesideAlpha = 1.0
    temperature: Temperature = 4.0
    scale: Scale = True
    standardize: Standardize = False


@dataclass(frozen=True, kw_only=True)
class LogitMSE(Ramp):
    """Squared distance of centered logits: the high-temperature limit of KD."""

    name: Literal["logit_mse"] = "logit_mse"
    weight: WeightBesideAlpha = 1.0
    standardize: Standardize = False


@dataclass(frozen=True, kw_only=True)
class DKD(Ramp):
    """KD in two parts, of the label's class against the rest and among the rest (Zhao et al. 2022)."""

    ce_weight: ClassVar[float | None] = 1.0
    reads_labels: ClassVar[bool] = True

    name: Literal["dkd"] = "dkd"
    weight: Weight = 1.0
    schedule: Annotated[
        Literal["constant", "linear", "sigmoid", "cosine"],
        Field(description="weight over training: constant, or a ramp from 0 (cosine: down to 0)"),
    ] = "linear"
    temperature: Temperature = 4.0
    alpha: Annotated[float, Field(ge=0, description="weight of the label's part within the term")] = 1.0
    beta: Annotated[float, Field(ge=0, description="weight of the other classes' part within the term")] = 8.0
    standardize: Standardize = False


@dataclass(frozen=True, kw_only=True)
class NKD(Ramp):
    """Soft targets of the label's class and, normalized, of the other classes (Yang et al. 2023)."""

    ce_weight: ClassVar[float | None] = 1.0
    reads_labels: ClassVar[bool] = True

    name: Literal["nkd"] = "nkd"
    weight: Weight = 1.0
    temperature: Annotated[float, Field(gt=0, description="temperature T of the other classes' part")] = 1.0
    gamma: Annotated[float, Field(ge=0, description="weight of the other classes' part within the term")] = 1.5
    standardize: Standardize = False


@dataclass(frozen=True, kw_only=True)
class DIST(Ramp):
    """Pearson correlation of outputs, between classes and between samples (Huang et al. 2022)."""

    ce_weight: ClassVar[float | None] = 1.0

    name: Literal["dist"] = "dist"
    weight: Weight = 1.0
    temperature: Temperature = 4.0
    beta: Annotated[float, Field(ge=0, description="weight within the term of the relation between classes")] = 2.0
    gamma: Annotated[float, Field(ge=0, description="weight within the term of the relation between samples")] = 2.0
    scale: Scale = True
    epsilon: Annotated[
        Literal["none", "added", "clamped"],
        Field(description="exact correlation, or 1e-8 added to its denominator (authors), or each norm at least 1e-8"),
    ] = "none"
    standardize: Standardize = False


@dataclass(frozen=True, kw_only=True)
class WSLD(Ramp):
    """Soft targets with less weight where the student is ahead of the teacher (Zhou et al. 2021)."""

    ce_weight: ClassVar[float | None] = 1.0
    reads_labels: ClassVar[bool] = True

    name: Literal["wsld"] = "wsld"
    weight: Weight = 2.5
    temperature: Temperature = 2.0
    standardize: Standardize = False


@dataclass(frozen=True, kw_only=True)
class TFKDReg(Ramp):
    """A teacher made by hand from the label; the teacher's output is not used (Yuan et al. 2020)."""

    reads_labels: ClassVar[bool] = True
    ce_weight: ClassVar[float | None] = 0.9

    name: Literal["tfkd_reg"] = "tfkd_reg"
    weight: WeightBesideAlpha = 0.1
    temperature: Annotated[float, Field(gt=0, description="temperature T of the target alone")] = 20.0
    label_prob: Annotated[
        float, Field(ge=0, le=1, description="the manually designed teacher's value on the label")
    ] = 0.99
    multiplier: Annotated[float, Field(ge=0, description="factor of the mean over samples and classes")] = 100.0


TeacherTemperature = Annotated[float, Field(gt=0, description="temperature T of the teacher, 1 / gamma of the paper")]

PartWeight = Annotated[float, Field(ge=0, description="weight of the part within the term")]


@dataclass(frozen=True, kw_only=True)
class TTM(Ramp):
    """Student at temperature 1 against the softened teacher (Zheng & Yang 2024)."""

    ce_weight: ClassVar[float | None] = 1.0

    name: Literal["ttm"] = "ttm"
    weight: Weight = 45.0
    temperature: TeacherTemperature = 10.0
    standardize: Standardize = False


@dataclass(frozen=True, kw_only=True)
class WTTM(Ramp):
    """TTM with more weight on samples of which the teacher is less sure (Zheng & Yang 2024)."""

    ce_weight: ClassVar[float | None] = 1.0

    name: Literal["wttm"] = "wttm"
    weight: Weight = 2.25
    temperature: TeacherTemperature = 10.0
    standardize: Standardize = False


@dataclass(frozen=True, kw_only=True)
class CTKD(Ramp):
    """KD with a temperature learned against the student, by a curriculum (Li et al. 2023)."""

    name: Literal["ctkd"] = "ctkd"
    weight: WeightBesideAlpha = 1.0
    start: Annotated[float, Field(gt=0, description="lowest temperature")] = 1.0
    span: Annotated[float, Field(ge=0, description="how far above the lowest the temperature can rise")] = 20.0
    initial: Annotated[float, Field(description="the parameter theta of T = start + span sigmoid(theta) at first")] = (
        1.0
    )
    curriculum_epochs: Annotated[
        float, Field(gt=0, description="epochs over which the adversary's strength rises to 1")
    ] = 10.0
    standardize: Standardize = False


@dataclass(frozen=True, kw_only=True)
class MLKD(Ramp):
    """KD at several temperatures, with correlations of samples and of classes (Jin et al. 2023)."""

    name: Literal["mlkd"] = "mlkd"
    weight: WeightBesideAlpha = 1.0
    temperatures: Annotated[
        list[Annotated[float, Field(gt=0)]],
        Field(min_length=1, description="temperatures, each of which adds its loss"),
    ] = field(default_factory=lambda: [2.0, 3.0, 4.0, 5.0, 6.0])
    instance: PartWeight = 1.0
    batch: PartWeight = 1.0
    classes: PartWeight = 1.0
    masks: Annotated[
        Literal["share", "select", "none"],
        Field(description="confidence masks: factors (as in the authors' code), a selection, or none"),
    ] = "share"
    standardize: Standardize = False


@dataclass(frozen=True, kw_only=True)
class SRD(Stages):
    """Logarithm of a power of the difference of normalized features, and KL of logits (Miles & Mikolajczyk 2024)."""

    ce_weight: ClassVar[float | None] = 1.0

    name: Literal["srd"] = "srd"
    weight: Weight = 1.0
    exponent: Annotated[float, Field(ge=1, description="power of the features' differences")] = 4.0
    temperature: Temperature = 1.0
    norm_epsilon: Annotated[float, Field(gt=0, description="added to variances by both batch norms")] = 1e-4
    stages: StageChoice = "last"
    standardize: Standardize = False


@dataclass(frozen=True, kw_only=True)
class USKD(Ramp):
    """Soft labels from the student's own logits and a shallower stage, no teacher (Yang et al. 2023)."""

    ce_weight: ClassVar[float | None] = 1.0
    reads_labels: ClassVar[bool] = True

    name: Literal["uskd"] = "uskd"
    weight: Weight = 1.0
    alpha: Annotated[float, Field(ge=0, description="weight of the label's part within the term")] = 1.0
    beta: Annotated[float, Field(ge=0, description="weight of the other classes' part within the term")] = 0.1
    mu: Annotated[float, Field(ge=0, description="weight of the weak head's part within the term")] = 0.005
    smoothing: Annotated[float, Field(ge=0, lt=1, description="label smoothing of the weak head's part")] = 0.1
    rank: Annotated[
        Literal["reference", "probabilities"],
        Field(description="classes ranked as in the authors' code (log-probabilities), or as in the paper"),
    ] = "reference"
    stage: Annotated[
        str, Field(description="stage of the student under the weak head: penultimate, middle, or a stage's name")
    ] = "penultimate"


RESPONSE = by_name(KD, SoftCE, LogitMSE, DKD, NKD, DIST, WSLD, TFKDReg, TTM, WTTM, CTKD, MLKD, SRD, USKD)
