"""Options of the online methods. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from kdschemes.config.schemes.base import RISING_KD, Method, by_method

PeerModels = Annotated[
    Annotated[int, Field(ge=2, le=64)] | Annotated[list[str], Field(min_length=2, max_length=64)],
    Field(description="number of peers of model=..., or a list of models, one per peer"),
]

PeerViews = Annotated[
    Literal["shared", "independent"],
    Field(description="independent: each peer sees its own random view of a sample; shared: all see the same view"),
]

PeerTopology = Annotated[
    Literal["independent", "shared_trunk"], Field(description="separate networks, or one trunk with a branch per peer")
]

PeerSeeds = Annotated[
    list[Annotated[int, Field(ge=0)]] | None,
    Field(description="seeds of the initial weights, one per peer; null: drawn from the run's seed"),
]


@dataclass(frozen=True, kw_only=True)
class PeerOptions(Method):
    """The peers: how many, which models, and what they share."""

    peers: PeerModels = 2
    topology: PeerTopology = "independent"
    split: Annotated[
        str | None, Field(description="shared_trunk: the first stage that peers do not share (default: the last)")
    ] = None
    views: PeerViews = "shared"
    lr_multipliers: Annotated[
        list[Annotated[float, Field(gt=0)]] | None,
        Field(description="topology=independent: factors on optim.lr, one per peer; null: 1 for all"),
    ] = None
    seeds: PeerSeeds = None

    def trained_models(self, model: str) -> list[str]:
        """Return the model of each peer."""
        return list(self.peers) if isinstance(self.peers, list) else [model] * self.peers


@dataclass(frozen=True, kw_only=True)
class OnlineDML(PeerOptions):
    """Peers trained together, each taught by all others (Zhang et al. 2018)."""

    multi_label: ClassVar[bool] = True
    losses: ClassVar[dict[str, Any]] = {"response": {"name": "kd", "temperature": 1.0}}

    name: Literal["online"] = "online"
    method: Literal["dml"] = "dml"
    update: Annotated[
        Literal["joint", "sequential"],
        Field(description="joint: all peers step together; sequential: in turn, on the others' updated weights"),
    ] = "joint"


@dataclass(frozen=True, kw_only=True)
class OnlineCodistillation(PeerOptions):
    """The average of the peers teaches each of them (codistillation, Anil et al. 2018)."""

    losses: ClassVar[dict[str, Any]] = {"response": {"name": "kd", "temperature": 3.0}}

    name: Literal["online"] = "online"
    method: Literal["codistillation"] = "codistillation"
    average: Annotated[
        Literal["logits", "probabilities"],
        Field(description="what is averaged: logits, or softmax outputs at temperature 1"),
    ] = "logits"
    members: Annotated[
        Literal["all", "others"],
        Field(description="whose average teaches a peer: all peers', itself included, or the others'"),
    ] = "all"


@dataclass(frozen=True, kw_only=True)
class OnlineKDCL(PeerOptions):
    """An ensemble of the peers, built with the labels to beat each of them, teaches each (Guo et al. 2020)."""

    reads_labels: ClassVar[bool] = True
    losses: ClassVar[dict[str, Any]] = {"response": {"name": "kd", "temperature": 2.0}}

    name: Literal["online"] = "online"
    method: Literal["kdcl"] = "kdcl"
    views: PeerViews = "independent"
    ensemble: Annotated[
        Literal["naive", "linear", "minlogit", "general"],
        Field(
            description="naive: each sample's best peer; linear: the convex combination that is best on the batch; "
            "minlogit: each class's smallest margin; general: weights from validation errors, once per epoch"
        ),
    ] = "minlogit"


@dataclass(frozen=True, kw_only=True)
class OnlineSwitOKD(Method):
    """A student and a large network teach each other; the latter pauses while too far ahead (Qian et al. 2022)."""

    reads_labels: ClassVar[bool] = True
    losses: ClassVar[dict[str, Any]] = {"response": {"name": "kd", "temperature": 1.0}}

    name: Literal["online"] = "online"
    method: Literal["switokd"] = "switokd"
    large_model: Annotated[
        str | None, Field(description="model of the large network, which is also trained; null: the student's model")
    ] = None
    lr_multipliers: Annotated[
        list[Annotated[float, Field(gt=0)]] | None,
        Field(description="factors on optim.lr: [student, large]; null: 1 for both"),
    ] = None

    def trained_models(self, model: str) -> list[str]:
        """Return the models of the student and of the large network."""
        return [model, self.large_model or model]


@dataclass(frozen=True, kw_only=True)
class BranchOptions(Method):
    """The branches of one trunk: how many, where they split, and their views and seeds."""

    peers: Annotated[int, Field(ge=2, le=64, description="number of branches of model=..., each a peer")] = 3
    split: Annotated[str | None, Field(description="the first stage that peers do not share (default: last)")] = None
    views: PeerViews = "shared"
    seeds: PeerSeeds = None

    def trained_models(self, model: str) -> list[str]:
        """Return the model of each branch."""
        return [model] * self.peers


@dataclass(frozen=True, kw_only=True)
class OnlineCLILR(BranchOptions):
    """Heads on one trunk, each taught by the average of the others (Song & Chai 2018)."""

    losses: ClassVar[dict[str, Any]] = {"response": {"name": "kd", "temperature": 2.0}}

    name: Literal["online"] = "online"
    method: Literal["clilr"] = "clilr"
    peers: Annotated[int, Field(ge=2, le=64, description="number of heads on the trunk of model=..., each a peer")] = 4
    alpha: Annotated[float, Field(ge=0, le=1, description="weight of the soft term; cross-entropy has 1 - alpha")] = 0.5


@dataclass(frozen=True, kw_only=True)
class OnlineONE(BranchOptions):
    """A gated ensemble of branches teaches each of them (Lan et al. 2018)."""

    losses: ClassVar[dict[str, Any]] = RISING_KD

    name: Literal["online"] = "online"
    method: Literal["one"] = "one"


@dataclass(frozen=True, kw_only=True)
class OnlineOKDDip(PeerOptions):
    """Peers with attention-weighted individual targets, and a leader that learns from all (Chen et al. 2020)."""

    losses: ClassVar[dict[str, Any]] = RISING_KD

    name: Literal["online"] = "online"
    method: Literal["okddip"] = "okddip"
    peers: PeerModels = 3
    topology: PeerTopology = "shared_trunk"
    reduction: Annotated[
        int, Field(ge=1, le=65_536, description="feature width / width of the attention's queries and keys")
    ] = 8
    detach: Annotated[
        bool,
        Field(description="detach the peers' outputs in the targets; false: keep their gradients (authors' code)"),
    ] = True

    def trained_models(self, model: str) -> list[str]:
        """Return the model of each peer, and of the leader."""
        return [*super().trained_models(model), model]


@dataclass(frozen=True, kw_only=True)
class OnlineFFL(PeerOptions):
    """Peers' last maps are fused; the fused classifier and the peers teach each other (Kim et al. 2021)."""

    losses: ClassVar[dict[str, Any]] = RISING_KD

    name: Literal["online"] = "online"
    method: Literal["ffl"] = "ffl"
    topology: PeerTopology = "shared_trunk"


@dataclass(frozen=True, kw_only=True)
class OnlinePCL(PeerOptions):
    """A head on all peers' features and the peers' moving averages teach each peer (Wu & Gong 2021)."""

    averages: ClassVar[bool] = True
    losses: ClassVar[dict[str, Any]] = RISING_KD

    name: Literal["online"] = "online"
    method: Literal["pcl"] = "pcl"
    peers: PeerModels = 3
    topology: PeerTopology = "shared_trunk"
    views: PeerViews = "independent"
    decay: Annotated[float, Field(ge=0, lt=1, description="largest decay of the peers' moving averages")] = 0.999


ONLINE = by_method(
    OnlineDML,
    OnlineCodistillation,
    OnlineKDCL,
    OnlineSwitOKD,
    OnlineCLILR,
    OnlineONE,
    OnlineOKDDip,
    OnlineFFL,
    OnlinePCL,
)
