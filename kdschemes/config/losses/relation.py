"""Options of the losses between relations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from kdschemes.config.losses.base import Ramp, StageChoice, Stages, Temperature, Weight, WeightOfPair, by_name
from kdschemes.config.losses.response import Standardize


@dataclass(frozen=True, kw_only=True)
class RKD(Stages):
    """Distances and angles between the samples of a batch (Park et al. 2019)."""

    name: Literal["rkd"] = "rkd"
    weight: Weight = 1.0
    distance: Annotated[float, Field(ge=0, description="weight of the distance part within the term")] = 25.0
    angle: Annotated[float, Field(ge=0, description="weight of the angle part within the term")] = 50.0
    normalize: Annotated[bool, Field(description="bring embeddings to length 1 first (mmrazor)")] = False
    stages: StageChoice = "last"


@dataclass(frozen=True, kw_only=True)
class FSP(Stages):
    """Flow between consecutive stages: squared difference of FSP matrices (Yim et al. 2017)."""

    name: Literal["fsp"] = "fsp"
    weight: Annotated[float, Field(ge=0, description="weight of the term, per pair of consecutive stages")] = 50.0
    pooling: Annotated[
        Literal["average", "max"], Field(description="how the larger map of two stages meets the smaller one's size")
    ] = "average"
    distance: Annotated[
        Literal["squared", "column_norms"],
        Field(description="mean of squares over matrix entries, or torchdistill's sum of the columns' lengths"),
    ] = "squared"


@dataclass(frozen=True, kw_only=True)
class SP(Stages):
    """Which samples of a batch are alike: rows of the Gram matrix (Tung & Mori 2019)."""

    name: Literal["sp"] = "sp"
    weight: WeightOfPair = 3000.0
    row_norm: Annotated[
        Literal["l2", "l1"], Field(description="length that rows of the Gram matrix are divided by; torchdistill: l1")
    ] = "l2"
    stages: StageChoice = "last"


@dataclass(frozen=True, kw_only=True)
class CC(Stages):
    """Correlation congruence between the samples of a batch (Peng et al. 2019)."""

    name: Literal["cc"] = "cc"
    weight: WeightOfPair = 0.02
    variant: Annotated[
        Literal["neighbor", "kernel"],
        Field(description="RepDistiller's product of neighbors in the batch, or the paper's kernel (weight 100)"),
    ] = "neighbor"
    dimension: Annotated[int, Field(ge=1, description="of the learned linear embeddings; variant neighbor only")] = 128
    gamma: Annotated[float, Field(gt=0, description="of the Gaussian kernel; variant kernel only")] = 0.4
    order: Annotated[int, Field(ge=1, description="of the kernel's Taylor series; variant kernel only")] = 2
    stages: StageChoice = "last"


@dataclass(frozen=True, kw_only=True)
class PKT(Stages):
    """Divergence between the neighborhoods that samples have in a batch (Passalis & Tefas 2018)."""

    name: Literal["pkt"] = "pkt"
    weight: WeightOfPair = 30000.0
    eps: Annotated[float, Field(gt=0, description="added to lengths and inside the logarithm")] = 1e-7
    stages: StageChoice = "last"


@dataclass(frozen=True, kw_only=True)
class CRD(Stages):
    """Tell a sample's memory from those of others, by noise-contrastive estimation (Tian et al. 2020)."""

    name: Literal["crd"] = "crd"
    weight: WeightOfPair = 0.8
    negatives: Annotated[int, Field(ge=1, description="K, other samples that each one is compared with")] = 16384
    temperature: Annotated[float, Field(gt=0, description="tau, divides similarities")] = 0.07
    momentum: Annotated[float, Field(ge=0, le=1, description="share of the old row when a memory is refreshed")] = 0.5
    dimension: Annotated[int, Field(ge=1, description="of the learned linear embeddings and the memories")] = 128
    exclude_class: Annotated[bool, Field(description="draw negatives from the other classes only")] = True
    stages: StageChoice = "last"

    @property
    def bank_size_per_sample(self) -> int:
        return 2 * self.dimension


@dataclass(frozen=True, kw_only=True)
class IRG(Stages):
    """Graphs of the batch at each stage and how they change between stages (Liu et al. 2019)."""

    name: Literal["irg"] = "irg"
    weight: Weight = 1.0
    vertices: Annotated[float, Field(ge=0, description="weight of the logits' squared distance within the term")] = 0.1
    edges: Annotated[float, Field(ge=0, description="weight of the distances between samples within the term")] = 5.0
    transformations: Annotated[
        float, Field(ge=0, description="weight of the changes between consecutive stages within the term")
    ] = 5.0


@dataclass(frozen=True, kw_only=True)
class BatchCorrelation(Ramp):
    """Which samples of a batch get alike predictions: MLKD's batch level by itself (Jin et al. 2023)."""

    name: Literal["batch_correlation"] = "batch_correlation"
    weight: Weight = 0.9
    temperature: Temperature = 4.0
    standardize: Standardize = False


@dataclass(frozen=True, kw_only=True)
class ClassCorrelation(Ramp):
    """Which classes are predicted together in a batch: MLKD's class level by itself (Jin et al. 2023)."""

    name: Literal["class_correlation"] = "class_correlation"
    weight: Weight = 0.9
    temperature: Temperature = 4.0
    standardize: Standardize = False


RELATION = by_name(RKD, FSP, SP, CC, PKT, CRD, IRG, BatchCorrelation, ClassCorrelation)
