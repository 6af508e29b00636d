"""Options of the response (logit) losses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from kdschemes.config.losses.base import Ramp, StageChoice, Stages, Temperature, Weight, by_name

WeightBesideAlpha = Annotated[float, Field(ge=0, description="weight of the term, times the scheme's alpha")]

Standardize = Annotated[
    bool, Field(description="first standardize logits over classes (logit standardization, Sun et al. 2024)")
]

Scale = Annotated[bool, Field(description="multiply by T^2, so that the gradient does not shrink as T grows")]


@dataclass(frozen=True, kw_only=True)
class KD(Ramp):
    """Kullback-Leibler divergence of softened outputs, times T^2 (Hinton et al. 2015)."""

    name: Literal["kd"] = "kd"
    weight: WeightBesideAlpha = 1.0
    temperature: Temperature = 4.0
    scale: Scale = True
    reduction: Annotated[
        Literal["batchmean", "mean"],
        Field(description="batchmean: sum over classes; mean: also over classes (Teacher-free, haitongli)"),
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
    """Squared distance between centered logits: the high-temperature limit of KD."""

    multi_label: ClassVar[bool] = True

    name: Literal["logit_mse"] = "logit_mse"
    weight: WeightBesideAlpha = 1.0
    standardize: Standardize = False


@dataclass(frozen=True, kw_only=True)
class DKD(Ramp):
    """KD decoupled into target class vs. rest and non-target classes (Zhao et al. 2022)."""

    ce_weight: ClassVar[float | None] = 1.0
    reads_labels: ClassVar[bool] = True

    name: Literal["dkd"] = "dkd"
    weight: Weight = 1.0
    schedule: Annotated[
        Literal["constant", "linear", "sigmoid", "cosine"],
        Field(description="weight over training: constant, or a ramp from 0 (cosine: down to 0)"),
    ] = "linear"
    temperature: Temperature = 4.0
    alpha: Annotated[float, Field(ge=0, description="weight of the target-class part within the term")] = 1.0
    beta: Annotated[float, Field(ge=0, description="weight of the non-target part within the term")] = 8.0
    standardize: Standardize = False


@dataclass(frozen=True, kw_only=True)
class NKD(Ramp):
    """Soft targets for the target class and, normalized, for the other classes (Yang et al. 2023)."""

    ce_weight: ClassVar[float | None] = 1.0
    reads_labels: ClassVar[bool] = True

    name: Literal["nkd"] = "nkd"
    weight: Weight = 1.0
    temperature: Annotated[float, Field(gt=0, description="temperature T of the non-target part")] = 1.0
    gamma: Annotated[float, Field(ge=0, description="weight of the non-target part within the term")] = 1.5
    standardize: Standardize = False


@dataclass(frozen=True, kw_only=True)
class DIST(Ramp):
    """Pearson correlation of softened outputs, over classes and over samples (Huang et al. 2022)."""

    ce_weight: ClassVar[float | None] = 1.0

    name: Literal["dist"] = "dist"
    weight: Weight = 1.0
    temperature: Temperature = 4.0
    beta: Annotated[float, Field(ge=0, description="weight of the inter-class relation within the term")] = 2.0
    gamma: Annotated[float, Field(ge=0, description="weight of the intra-class relation within the term")] = 2.0
    scale: Scale = True
    epsilon: Annotated[
        Literal["none", "added", "clamped"],
        Field(description="exact correlation, 1e-8 added to its denominator (authors), or norms clamped to >= 1e-8"),
    ] = "none"
    standardize: Standardize = False


@dataclass(frozen=True, kw_only=True)
class WSLD(Ramp):
    """Soft targets weighted less where the student is ahead of the teacher (Zhou et al. 2021)."""

    ce_weight: ClassVar[float | None] = 1.0
    reads_labels: ClassVar[bool] = True

    name: Literal["wsld"] = "wsld"
    weight: Weight = 2.5
    temperature: Temperature = 2.0
    standardize: Standardize = False


@dataclass(frozen=True, kw_only=True)
class TFKDReg(Ramp):
    """A manually designed teacher built from the label; uses no teacher output (Yuan et al. 2020)."""

    reads_labels: ClassVar[bool] = True
    ce_weight: ClassVar[float | None] = 0.9

    name: Literal["tfkd_reg"] = "tfkd_reg"
    weight: WeightBesideAlpha = 0.1
    temperature: Annotated[float, Field(gt=0, description="temperature T of the target only")] = 20.0
    label_prob: Annotated[float, Field(ge=0, le=1, description="probability that the teacher gives the label")] = 0.99
    multiplier: Annotated[float, Field(ge=0, description="factor on the mean over samples and classes")] = 100.0


@dataclass(frozen=True, kw_only=True)
class MLD(Ramp):
    """KL divergence of each class's sigmoid, for images with several labels (Yang et al. 2023)."""

    multi_label: ClassVar[bool] = True

    name: Literal["mld"] = "mld"
    weight: WeightBesideAlpha = 1.0
    temperature: Annotated[float, Field(gt=0, description="temperature T of both sigmoids")] = 1.0


@dataclass(frozen=True, kw_only=True)
class NormKD(Ramp):
    """KD with a temperature for each sample, from the spread of its logits (Chi et al. 2023)."""

    name: Literal["normkd"] = "normkd"
    weight: WeightBesideAlpha = 1.0
    temperature: Annotated[float, Field(gt=0, description="temperature T of logits divided by their std")] = 2.0


@dataclass(frozen=True, kw_only=True)
class Hard(Ramp):
    """Cross-entropy with the class that the teacher predicts (Touvron et al. 2021)."""

    ce_weight: ClassVar[float | None] = 0.5

    name: Literal["hard"] = "hard"
    weight: Weight = 0.5


@dataclass(frozen=True, kw_only=True)
class RLD(Ramp):
    """Confidence of the teacher, and its soft targets over the classes it ranks below the label (Sun et al. 2025)."""

    ce_weight: ClassVar[float | None] = 1.0
    reads_labels: ClassVar[bool] = True

    name: Literal["rld"] = "rld"
    weight: Weight = 1.0
    schedule: Annotated[
        Literal["constant", "linear", "sigmoid", "cosine"],
        Field(description="weight over training: constant, or a ramp from 0 (cosine: down to 0)"),
    ] = "linear"
    temperature: Annotated[float, Field(gt=0, description="temperature T of the correlation part")] = 4.0
    confidence_temperature: Annotated[float, Field(gt=0, description="temperature of the confidence part")] = 1.0
    alpha: Annotated[float, Field(ge=0, description="weight of the confidence part within the term")] = 1.0
    beta: Annotated[float, Field(ge=0, description="weight of the correlation part within the term")] = 8.0
    standardize: Standardize = False


TeacherTemperature = Annotated[float, Field(gt=0, description="temperature T of the teacher; the paper's 1 / gamma")]

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
    """TTM with more weight on samples where the teacher is less confident (Zheng & Yang 2024)."""

    ce_weight: ClassVar[float | None] = 1.0

    name: Literal["wttm"] = "wttm"
    weight: Weight = 2.25
    temperature: TeacherTemperature = 10.0
    standardize: Standardize = False


@dataclass(frozen=True, kw_only=True)
class CTKD(Ramp):
    """KD with an adversarially learned temperature and a curriculum (Li et al. 2023)."""

    name: Literal["ctkd"] = "ctkd"
    weight: WeightBesideAlpha = 1.0
    start: Annotated[float, Field(gt=0, description="minimum temperature")] = 1.0
    span: Annotated[float, Field(ge=0, description="maximum minus minimum temperature")] = 20.0
    initial: Annotated[float, Field(description="initial theta in T = start + span * sigmoid(theta)")] = 1.0
    curriculum_epochs: Annotated[
        float, Field(gt=0, description="epochs over which the adversary's strength rises to 1")
    ] = 10.0
    standardize: Standardize = False


@dataclass(frozen=True, kw_only=True)
class MLKD(Ramp):
    """KD at several temperatures, plus sample and class correlations (Jin et al. 2023)."""

    name: Literal["mlkd"] = "mlkd"
    weight: WeightBesideAlpha = 1.0
    temperatures: Annotated[
        list[Annotated[float, Field(gt=0)]],
        Field(min_length=1, description="temperatures; the losses at each are summed"),
    ] = field(default_factory=lambda: [2.0, 3.0, 4.0, 5.0, 6.0])
    instance: PartWeight = 1.0
    batch: PartWeight = 1.0
    classes: PartWeight = 1.0
    masks: Annotated[
        Literal["share", "select", "none"],
        Field(description="confidence masks: scale the loss (as in the authors' code), select samples, or none"),
    ] = "share"
    standardize: Standardize = False


@dataclass(frozen=True, kw_only=True)
class SRD(Stages):
    """Log of a power of the normalized features' difference, plus KL of logits (Miles & Mikolajczyk 2024)."""

    multi_label: ClassVar[bool] = False
    ce_weight: ClassVar[float | None] = 1.0

    name: Literal["srd"] = "srd"
    weight: Weight = 1.0
    exponent: Annotated[float, Field(ge=1, description="power of the feature differences")] = 4.0
    temperature: Temperature = 1.0
    norm_epsilon: Annotated[float, Field(gt=0, description="epsilon of both batch norms")] = 1e-4
    stages: StageChoice = "last"
    standardize: Standardize = False


@dataclass(frozen=True, kw_only=True)
class USKD(Ramp):
    """Soft labels from the student's own logits and a shallower stage, without a teacher (Yang et al. 2023)."""

    ce_weight: ClassVar[float | None] = 1.0
    reads_labels: ClassVar[bool] = True

    name: Literal["uskd"] = "uskd"
    weight: Weight = 1.0
    alpha: Annotated[float, Field(ge=0, description="weight of the target-class part within the term")] = 1.0
    beta: Annotated[float, Field(ge=0, description="weight of the non-target part within the term")] = 0.1
    mu: Annotated[float, Field(ge=0, description="weight of the weak head's part within the term")] = 0.005
    smoothing: Annotated[float, Field(ge=0, lt=1, description="label smoothing of the weak head's part")] = 0.1
    rank: Annotated[
        Literal["reference", "probabilities"],
        Field(description="rank classes as in the authors' code (log-probabilities), or as in the paper"),
    ] = "reference"
    stage: Annotated[
        str, Field(description="the student's stage that the weak head is attached to: penultimate, middle, or a name")
    ] = "penultimate"


RESPONSE = by_name(
    KD, SoftCE, LogitMSE, DKD, NKD, DIST, WSLD, TFKDReg, TTM, WTTM, CTKD, MLKD, SRD, USKD, MLD, NormKD, RLD, Hard
)
