"""Options of the relation losses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from kdschemes.config.losses.base import Ramp, StageChoice, Stages, Temperature, Weight, WeightOfPair, by_name
from kdschemes.config.losses.response import Standardize


@dataclass(frozen=True, kw_only=True)
class RKD(Stages):
    """Distances and angles between the samples of a batch (Park et al. 2019)."""

    name: Literal["rkd"] = "rkd"
    weight: Weight = 1.0
    distance: Annotated[float, Field(ge=0, description="weight of the distance loss within the term")] = 25.0
    angle: Annotated[float, Field(ge=0, description="weight of the angle loss within the term")] = 50.0
    normalize: Annotated[bool, Field(description="L2-normalize embeddings first (mmrazor)")] = False
    stages: StageChoice = "last"


@dataclass(frozen=True, kw_only=True)
class FSP(Stages):
    """Flow between consecutive stages: squared difference of FSP matrices (Yim et al. 2017)."""

    name: Literal["fsp"] = "fsp"
    weight: Annotated[float, Field(ge=0, description="weight of the term, per pair of consecutive stages")] = 50.0
    pooling: Annotated[
        Literal["average", "max"], Field(description="how the larger of two stages' maps is pooled to the smaller size")
    ] = "average"
    distance: Annotated[
        Literal["squared", "column_norms"],
        Field(description="mean of squares over matrix entries, or torchdistill's sum of column norms"),
    ] = "squared"


@dataclass(frozen=True, kw_only=True)
class SP(Stages):
    """Similarity between the samples of a batch: rows of the Gram matrix (Tung & Mori 2019)."""

    name: Literal["sp"] = "sp"
    weight: WeightOfPair = 3000.0
    row_norm: Annotated[
        Literal["l2", "l1"], Field(description="norm that each row of the Gram matrix is divided by; torchdistill: l1")
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
    dimension: Annotated[
        int, Field(ge=1, le=65_536, description="dimension of the linear embeddings (variant=neighbor)")
    ] = 128
    gamma: Annotated[float, Field(gt=0, description="gamma of the Gaussian kernel (variant=kernel)")] = 0.4
    order: Annotated[int, Field(ge=1, le=64, description="order of the kernel's Taylor series (variant=kernel)")] = 2
    stages: StageChoice = "last"


@dataclass(frozen=True, kw_only=True)
class PKT(Stages):
    """Divergence between the samples' neighborhoods in a batch (Passalis & Tefas 2018)."""

    name: Literal["pkt"] = "pkt"
    weight: WeightOfPair = 30000.0
    eps: Annotated[float, Field(gt=0, description="added to norms and inside the logarithm")] = 1e-7
    stages: StageChoice = "last"


@dataclass(frozen=True, kw_only=True)
class CRD(Stages):
    """Noise-contrastive estimation against a memory bank of embeddings (Tian et al. 2020)."""

    multi_label: ClassVar[bool] = False

    name: Literal["crd"] = "crd"
    weight: WeightOfPair = 0.8
    negatives: Annotated[int, Field(ge=1, le=1_000_000, description="number K of negatives per sample")] = 16384
    temperature: Annotated[float, Field(gt=0, description="temperature tau that divides similarities")] = 0.07
    momentum: Annotated[float, Field(ge=0, le=1, description="weight of the old entry in a memory-bank update")] = 0.5
    dimension: Annotated[
        int, Field(ge=1, le=65_536, description="dimension of the linear embeddings and the memory banks")
    ] = 128
    exclude_class: Annotated[bool, Field(description="draw negatives only from other classes")] = True
    stages: StageChoice = "last"

    @property
    def bank_size_per_sample(self) -> int:
        return 2 * self.dimension


@dataclass(frozen=True, kw_only=True)
class IRG(Stages):
    """Relation graphs of the batch at each stage and their change between stages (Liu et al. 2019)."""

    name: Literal["irg"] = "irg"
    weight: Weight = 1.0
    vertices: Annotated[float, Field(ge=0, description="weight of the logits' squared distance within the term")] = 0.1
    edges: Annotated[float, Field(ge=0, description="weight of the distances between samples within the term")] = 5.0
    transformations: Annotated[
        float, Field(ge=0, description="weight of the changes between consecutive stages within the term")
    ] = 5.0


@dataclass(frozen=True, kw_only=True)
class BatchCorrelation(Ramp):
    """Correlations between the predictions for the samples of a batch: MLKD's batch level alone (Jin et al. 2023)."""

    name: Literal["batch_correlation"] = "batch_correlation"
    weight: Weight = 0.9
    temperature: Temperature = 4.0
    standardize: Standardize = False


@dataclass(frozen=True, kw_only=True)
class ClassCorrelation(Ramp):
    """Correlations between the classes predicted in a batch: MLKD's class level alone (Jin et al. 2023)."""

    name: Literal["class_correlation"] = "class_correlation"
    weight: Weight = 0.9
    temperature: Temperature = 4.0
    standardize: Standardize = False


RELATION = by_name(RKD, FSP, SP, CC, PKT, CRD, IRG, BatchCorrelation, ClassCorrelation)
