"""Options of the online methods. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from kdschemes.config.schemes.base import Method

PeerModels = Annotated[
    Annotated[int, Field(ge=2)] | Annotated[list[str], Field(min_length=2)],
    Field(description="how many peers of model=..., or a list of models, one a peer"),
]
PeerViews = Annotated[
    Literal["shared", "own"],
    Field(description="own: each peer sees its own random view of a sample; shared: all see one"),
]


@dataclass(frozen=True, kw_only=True)
class PeerOptions(Method):
    """The peers: how many, of what kind, what they share and what each has for itself."""

    peers: PeerModels = 2
    topology: Annotated[
        Literal["independent", "shared_stem"],
        Field(description="separate networks, or one trunk with a branch a peer"),
    ] = "independent"
    split: Annotated[
        str | None, Field(description="shared_stem: the first stage that each peer has for itself (default: the last)")
    ] = None
    views: PeerViews = "shared"
    rates: Annotated[
        list[Annotated[float, Field(gt=0)]] | None,
        Field(description="independent: what optim.lr is multiplied by, one a peer; null: 1 for all"),
    ] = None
    seeds: Annotated[
        list[Annotated[int, Field(ge=0)]] | None,
        Field(description="seed of the initial weights, one a peer; null: drawn from the run's seed"),
    ] = None


@dataclass(frozen=True, kw_only=True)
class OnlineDML(PeerOptions):
    """Peers trained together, each taught by all others (Zhang et al. 2018)."""

    losses: ClassVar[dict[str, Any]] = {"response": {"name": "kd", "temperature": 1.0}}

    name: Literal["online"] = "online"
    method: Literal["dml"] = "dml"
    update: Annotated[
        Literal["joint", "sequential"],
        Field(description="joint: all peers step at once; sequential: in turn, each on what the others have become"),
    ] = "joint"


ONLINE: dict[str, type[Method]] = {"dml": OnlineDML}
