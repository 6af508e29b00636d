"""Options of the self-distillation methods. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from kdschemes.config.schemes.base import (
    RISING_KD,
    ExitOptions,
    HardWeight,
    Method,
    Prerequisite,
    SoftWeight,
    by_method,
)
from kdschemes.config.schemes.supervised import Supervised


@dataclass(frozen=True, kw_only=True)
class SelfDDGSD(Method):
    """Two views of a sample teach each other (Xu & Liu 2019)."""

    losses: ClassVar[dict[str, Any]] = {"response": {"name": "kd", "temperature": 3.0}}

    name: Literal["self"] = "self"
    method: Literal["ddgsd"] = "ddgsd"
    mean_distance: Annotated[
        Literal["channels", "scalar"],
        Field(description="distance between the views' mean features: per channel (paper), or of the overall mean"),
    ] = "channels"
    mean_distance_weight: Annotated[float, Field(ge=0, description="weight of mean_distance")] = 5e-4


@dataclass(frozen=True, kw_only=True)
class SelfCSKD(Method):
    """Another sample of the same class teaches (Yun et al. 2020)."""

    reads_labels: ClassVar[bool] = True
    losses: ClassVar[dict[str, Any]] = {"response": {"name": "kd", "temperature": 4.0}}

    name: Literal["self"] = "self"
    method: Literal["cskd"] = "cskd"


@dataclass(frozen=True, kw_only=True)
class SelfPSKD(Method):
    """The previous epoch's predictions soften the labels (Kim et al. 2021)."""

    reads_labels: ClassVar[bool] = True
    keeps_predictions: ClassVar[bool] = True
    losses: ClassVar[dict[str, Any]] = {"response": {"name": "soft_ce", "temperature": 1.0}}

    name: Literal["self"] = "self"
    method: Literal["pskd"] = "pskd"
    alpha: Annotated[
        float, Field(ge=0, le=1, description="weight of past predictions in the last epoch; grows linearly with epochs")
    ] = 0.8


@dataclass(frozen=True, kw_only=True)
class SelfDLB(Method):
    """The previous step's predictions teach the network on another view of the same samples (Shen et al. 2022)."""

    losses: ClassVar[dict[str, Any]] = {"response": {"name": "kd", "temperature": 3.0}}

    name: Literal["self"] = "self"
    method: Literal["dlb"] = "dlb"


@dataclass(frozen=True, kw_only=True)
class SelfMeanTeacher(Method):
    """The EMA of the network's weights teaches it: mean teacher (Tarvainen & Valpola 2017)."""

    averages: ClassVar[bool] = True
    losses: ClassVar[dict[str, Any]] = RISING_KD

    name: Literal["self"] = "self"
    method: Literal["mean_teacher"] = "mean_teacher"
    decay: Annotated[float, Field(ge=0, lt=1, description="decay of the moving average per step")] = 0.999
    warm_up: Annotated[bool, Field(description="cap the decay after step t = 1, 2, ... at 1 - 1 / (t + 1)")] = True
    view: Annotated[
        Literal["independent", "shared"],
        Field(description="independent: the EMA sees another random view; shared: the same one"),
    ] = "independent"


@dataclass(frozen=True, kw_only=True)
class SelfZipf(Method):
    """Soft labels by Zipf's law over class ranks voted by the network's last map (Liang et al. 2022)."""

    uses_losses: ClassVar[bool] = False
    reads_labels: ClassVar[bool] = True

    name: Literal["self"] = "self"
    method: Literal["zipf"] = "zipf"
    weight: Annotated[float, Field(ge=0, description="weight lambda of the term; cross-entropy has 1")] = 0.1
    power: Annotated[float, Field(ge=0, le=4, description="a class of rank r gets 1 / r^power")] = 1.0
    votes: Annotated[
        Literal["dense", "logits"],
        Field(description="rank classes by the votes of the last map's positions (dense), or by the logits"),
    ] = "dense"
    upsample: Annotated[
        int, Field(ge=1, le=64, description="dense: factor by which the map is upsampled, for more votes")
    ] = 2


OwnHard = Annotated[
    float | None, Field(ge=0, description="weight of cross-entropy; null: as the loss was published, else 1")
]


@dataclass(frozen=True, kw_only=True)
class SelfUSKD(Method):
    """Soft labels from the network's own output and a shallower stage (Yang et al. 2023)."""

    reads_labels: ClassVar[bool] = True
    losses: ClassVar[dict[str, Any]] = {"response": {"name": "uskd"}}

    name: Literal["self"] = "self"
    method: Literal["uskd"] = "uskd"
    ce_weight: OwnHard = None


@dataclass(frozen=True, kw_only=True)
class SelfTfKDReg(Method):
    """A manually designed teacher built from the label (Yuan et al. 2020)."""

    reads_labels: ClassVar[bool] = True
    losses: ClassVar[dict[str, Any]] = {"response": {"name": "tfkd_reg"}}

    name: Literal["self"] = "self"
    method: Literal["tfkd_reg"] = "tfkd_reg"
    ce_weight: OwnHard = None


@dataclass(frozen=True, kw_only=True)
class SelfBYOT(ExitOptions):
    """The deepest exit teaches each shallower one (Zhang et al. 2019)."""

    multi_label: ClassVar[bool] = True
    losses: ClassVar[dict[str, Any]] = {
        "response": {"name": "kd", "temperature": 3.0},
        "feature": {"name": "hint", "weight": 0.03},
    }
    variants: ClassVar[dict[str, dict[str, Any]]] = {
        "authors": {
            "alpha": 0.3,
            "beta": 0.03,
            "losses": {"response": {"name": "soft_ce", "temperature": 3.0, "scale": False}},
        },
        "luanyunteng": {
            "alpha": 0.1,
            "beta": 1e-6,
            "losses": {"response": {"name": "soft_ce", "temperature": 3.0}},
        },
    }

    name: Literal["self"] = "self"
    method: Literal["byot"] = "byot"
    variant: Annotated[
        Literal["ours", "authors", "luanyunteng"],
        Field(description="ours, or the loss and defaults of a public implementation: the authors' or luanyunteng's"),
    ] = "ours"
    alpha: Annotated[
        float, Field(ge=0, le=1, description="weight of an exit's soft term; its cross-entropy has 1 - alpha")
    ] = 0.5
    beta: Annotated[
        float, Field(ge=0, description="weight of a public variant's own feature term (ours uses losses.feature)")
    ] = 0.0


@dataclass(frozen=True, kw_only=True)
class SelfMultiExit(ExitOptions):
    """The deepest exit teaches each shallower one at a growing temperature (Phuong & Lampert 2019)."""

    losses: ClassVar[dict[str, Any]] = {"response": {"name": "soft_ce", "temperature": 1.0}}

    name: Literal["self"] = "self"
    method: Literal["multi_exit"] = "multi_exit"
    alpha: Annotated[
        float, Field(ge=0, le=1, description="weight of an exit's soft term; its cross-entropy has 1 - alpha")
    ] = 0.5
    final_exit_weight: Annotated[
        float | None, Field(ge=0, description="weight of the deepest exit's cross-entropy; null: 1 - alpha")
    ] = None
    scale: Annotated[
        float, Field(gt=0, description="factor on all terms (the authors on CIFAR: 10 / number of exits)")
    ] = 1.0
    growth: Annotated[
        float, Field(ge=1, description="factor on the temperature after each step where the deepest exit is confident")
    ] = 1.05
    confidence: Annotated[
        float,
        Field(ge=0, le=1, description="mean softened top-1 probability above which the deepest exit is confident"),
    ] = 0.5


@dataclass(frozen=True, kw_only=True)
class SelfSAD(Method):
    """Each stage mimics the attention of the next deeper stage (Hou et al. 2019, self attention distillation)."""

    uses_losses: ClassVar[bool] = False
    variants: ClassVar[dict[str, dict[str, Any]]] = {
        "original": {"weight": 0.1, "channel_reduction": "sum", "upsample": "attention", "start": 2 / 3}
    }

    name: Literal["self"] = "self"
    method: Literal["sad"] = "sad"
    variant: Annotated[
        Literal["classification", "original"],
        Field(description="defaults for classification, or the published ones for lane detection (original)"),
    ] = "classification"
    stages: Annotated[
        Literal["all"] | Annotated[list[str], Field(min_length=2)],
        Field(description="stages of the chain, each taught by the next deeper one"),
    ] = "all"
    weight: Annotated[float, Field(ge=0, description="weight of the term, per pair of stages")] = 1000.0
    channel_reduction: Annotated[
        Literal["mean", "sum"], Field(description="attention: mean or sum of squares over channels")
    ] = "mean"
    upsample: Annotated[
        Literal["features", "attention"],
        Field(description="what is upsampled to the shallower stage's size: the deeper features, or their attention"),
    ] = "features"
    spatial_reduction: Annotated[
        Literal["mean", "sum"], Field(description="mean or sum of the squared differences over positions")
    ] = "mean"
    start: Annotated[float, Field(ge=0, lt=1, description="fraction of training before the term starts")] = 0.0
    detach: Annotated[
        bool, Field(description="no gradient to the deeper stage; false: it also learns from the term")
    ] = True


@dataclass(frozen=True, kw_only=True)
class SelfFRSKD(Method):
    """A self-teacher refines the network's feature maps and teaches it (Ji et al. 2021)."""

    losses: ClassVar[dict[str, Any]] = {
        "response": {"name": "kd", "temperature": 4.0, "weight": 2.0},
        "feature": {"name": "at", "weight": 100.0},
    }

    name: Literal["self"] = "self"
    method: Literal["frskd"] = "frskd"
    width: Annotated[
        int, Field(ge=1, le=16, description="channels of the self-teacher's maps / channels of the network's maps")
    ] = 2
    depth: Annotated[int, Field(ge=1, le=16, description="convolutions in each of the self-teacher's blocks")] = 2
    detach: Annotated[
        bool, Field(description="no gradient from the self-teacher's cross-entropy to the network (authors: false)")
    ] = False


@dataclass(frozen=True, kw_only=True)
class SelfBAN(Method):
    """Born-again: each generation is taught by the previous one, the first by a plain run (Furlanello et al. 2018)."""

    losses: ClassVar[dict[str, Any]] = {"response": {"name": "soft_ce", "temperature": 1.0}}

    name: Literal["self"] = "self"
    method: Literal["ban"] = "ban"
    generations: Annotated[
        int, Field(ge=1, le=64, description="generations after the plain run; each earlier one is a separate run")
    ] = 3
    alpha: SoftWeight = 1.0
    ce_weight: HardWeight = None

    def prerequisites(self) -> list[Prerequisite]:
        """Return the earlier generations (the last one teaches), or the plain run for the first generation."""
        earlier: list[Method] = [replace(self, generations=number) for number in range(1, self.generations)]
        return [Prerequisite(scheme=scheme) for scheme in earlier or [Supervised()]]


@dataclass(frozen=True, kw_only=True)
class SelfTfKD(Method):
    """A plainly trained copy of the network teaches a new one (Yuan et al. 2020)."""

    losses: ClassVar[dict[str, Any]] = {"response": {"name": "kd", "temperature": 20.0, "reduction": "mean"}}

    name: Literal["self"] = "self"
    method: Literal["tfkd_self"] = "tfkd_self"
    alpha: SoftWeight = 0.95
    ce_weight: HardWeight = None

    def prerequisites(self) -> list[Prerequisite]:
        """Return the plain run of the same network."""
        return [Prerequisite(scheme=Supervised())]


SELF = by_method(
    SelfBYOT,
    SelfMultiExit,
    SelfSAD,
    SelfFRSKD,
    SelfDDGSD,
    SelfCSKD,
    SelfPSKD,
    SelfDLB,
    SelfMeanTeacher,
    SelfZipf,
    SelfUSKD,
    SelfTfKDReg,
    SelfBAN,
    SelfTfKD,
)
