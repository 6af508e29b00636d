"""Options of the losses between feature maps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from kdschemes.config.losses.base import Ramp, StageChoice, Stages, Temperature, Weight, WeightOfPair, by_name

Margin = Annotated[float, Field(gt=0, description="margin of the hinge")]

Eps = Annotated[float, Field(ge=0, description="added to a map's norm (KD-Zoo: 1e-6)")]

Scale = Annotated[float, Field(gt=0, description="factor on the sum over channels and positions")]


@dataclass(frozen=True, kw_only=True)
class Hint(Stages):
    """Mean squared difference of features after a learned regressor (Romero et al. 2015, FitNets)."""

    name: Literal["hint"] = "hint"
    weight: Weight = 100.0
    stages: StageChoice = "middle"


@dataclass(frozen=True, kw_only=True)
class AT(Stages):
    """Squared difference of normalized spatial attention maps (Zagoruyko & Komodakis 2017)."""

    name: Literal["at"] = "at"
    weight: WeightOfPair = 1000.0
    variant: Annotated[
        Literal["code", "paper"],
        Field(description="mean of squared differences (authors' code), or the unsquared norm (paper)"),
    ] = "code"
    power: Annotated[float, Field(ge=1, description="power of the absolute features in an attention map")] = 2.0
    eps: Eps = 0.0


@dataclass(frozen=True, kw_only=True)
class NST(Stages):
    """Maximum mean discrepancy between channels' spatial patterns (Huang & Wang 2017, neuron selectivity transfer)."""

    name: Literal["nst"] = "nst"
    weight: WeightOfPair = 50.0


@dataclass(frozen=True, kw_only=True)
class FT(Stages):
    """Distance between the factors of a learned paraphraser and translator (Kim et al. 2018, factor transfer)."""

    name: Literal["ft"] = "ft"
    weight: WeightOfPair = 200.0
    variant: Annotated[
        Literal["attention", "paper"],
        Field(description="compare the factors' attention maps (RepDistiller), or the factors themselves"),
    ] = "attention"
    rate: Annotated[float, Field(gt=0, le=64, description="channels of a factor / channels of the teacher's map")] = 0.5
    reconstruction: Annotated[float, Field(gt=0, description="weight of the paraphraser's error within the term")] = (
        0.005
    )
    stages: StageChoice = "last"


@dataclass(frozen=True, kw_only=True)
class AB(Stages):
    """Hinge on which neurons are active before the ReLU (Heo et al. 2019, activation boundaries)."""

    name: Literal["ab"] = "ab"
    weight: Weight = 1.0
    margin: Margin = 1.0
    scale: Scale = 0.003


@dataclass(frozen=True, kw_only=True)
class OFD(Stages):
    """Partial squared distance from pre-ReLU maps to the teacher's margin ReLU (Heo et al. 2019, overhaul)."""

    name: Literal["ofd"] = "ofd"
    weight: Weight = 0.001
    scale: Scale = 1.0


@dataclass(frozen=True, kw_only=True)
class VID(Stages):
    """Log-likelihood of the teacher's features under a learned Gaussian (Ahn et al. 2019, variational information)."""

    name: Literal["vid"] = "vid"
    weight: WeightOfPair = 1.0
    variance: Annotated[float, Field(gt=0, description="initial variance; more than eps")] = 5.0
    eps: Annotated[float, Field(gt=0, description="minimum variance")] = 1e-5


@dataclass(frozen=True, kw_only=True)
class ReviewKD(Stages):
    """Deep and shallow maps fused by attention, compared at several sizes (Chen et al. 2021, knowledge review)."""

    name: Literal["reviewkd"] = "reviewkd"
    weight: WeightOfPair = 1.0
    schedule: Annotated[
        Literal["constant", "linear", "sigmoid", "cosine"],
        Field(description="weight over training: constant, or a ramp from 0 (cosine: down to 0)"),
    ] = "linear"
    width: Annotated[int, Field(ge=1, le=65_536, description="maximum channels of the fused maps")] = 512
    pooled: Annotated[bool, Field(description="also include the spatially averaged deepest maps")] = True
    preactivations: Annotated[
        Literal["teacher", "both", "neither"],
        Field(description="whose maps are taken before a stage's last ReLU (if it ends in one)"),
    ] = "teacher"


@dataclass(frozen=True, kw_only=True)
class CWD(Stages):
    """KL divergence between channels as distributions over positions (Shu et al. 2021)."""

    name: Literal["cwd"] = "cwd"
    weight: WeightOfPair = 50.0
    temperature: Temperature = 4.0


@dataclass(frozen=True, kw_only=True)
class PKD(Stages):
    """Squared difference of maps standardized per channel, i.e. Pearson correlation (Cao et al. 2022)."""

    name: Literal["pkd"] = "pkd"
    weight: WeightOfPair = 6.0
    eps: Annotated[float, Field(gt=0, description="added to a channel's standard deviation")] = 1e-6


@dataclass(frozen=True, kw_only=True)
class PAD(Stages):
    """Squared difference of embeddings over a predicted variance, plus its logarithm (Zhang et al. 2020)."""

    name: Literal["pad"] = "pad"
    weight: WeightOfPair = 1.0
    stages: StageChoice = "last"
    eps: Annotated[float, Field(gt=0, description="added to the predicted variance")] = 1e-6


@dataclass(frozen=True, kw_only=True)
class ICKD(Stages):
    """Squared difference of the correlations between channels (Liu et al. 2021)."""

    name: Literal["ickd"] = "ickd"
    weight: WeightOfPair = 2.5
    stages: StageChoice = "last"


@dataclass(frozen=True, kw_only=True)
class SRRL(Ramp):
    """Last features in the teacher's space, and the teacher's classifier's logits on them (Yang et al. 2021)."""

    multi_label: ClassVar[bool] = True

    name: Literal["srrl"] = "srrl"
    weight: Weight = 1.0
    alpha: Annotated[float, Field(ge=0, description="weight of feature matching within the term")] = 1.0
    beta: Annotated[float, Field(ge=0, description="weight of softmax regression within the term")] = 1.0


@dataclass(frozen=True, kw_only=True)
class CATKD(Ramp):
    """Squared difference of class activation maps (Guo et al. 2023)."""

    multi_label: ClassVar[bool] = True

    name: Literal["cat_kd"] = "cat_kd"
    weight: Weight = 0.7
    resolution: Annotated[int, Field(ge=1, le=1_024, description="side to which class activation maps are pooled")] = 2
    normalize: Annotated[bool, Field(description="L2-normalize each class's map first")] = False


@dataclass(frozen=True, kw_only=True)
class SimKD(Ramp):
    """The last features through a projector, classified by the teacher's classifier (Chen et al. 2022)."""

    multi_label: ClassVar[bool] = True
    ce_weight: ClassVar[float | None] = 0.0

    name: Literal["simkd"] = "simkd"
    weight: Weight = 1.0
    factor: Annotated[
        int, Field(ge=1, le=65_536, description="the projector's width is the teacher's channels / this")
    ] = 2


FEATURE = by_name(Hint, AT, NST, FT, AB, OFD, VID, ReviewKD, CWD, PKD, PAD, ICKD, SRRL, CATKD, SimKD)
