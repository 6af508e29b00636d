"""The peers of an online scheme: networks of their own, or branches on one trunk, each with what it has for itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from kdschemes.config import Config
from kdschemes.config.schemes.online import PeerOptions
from kdschemes.core.distillation import Distillation
from kdschemes.core.loss import embedding_width
from kdschemes.core.nodes import Network, Node, SharedTrunk
from kdschemes.core.types import DataSpec
from kdschemes.errors import UserError
from kdschemes.models import Branch, StagedNetwork, Trunk, split
from kdschemes.schemes.distill import Edge, distill
from kdschemes.schemes.networks import student_network


@dataclass(frozen=True)
class Peers:
    """Nodes by name, the peers' outputs in order, and by node what the learning rate is multiplied by."""

    nodes: dict[str, Node]
    names: list[str]
    lr_multipliers: dict[str, float]


@dataclass(frozen=True)
class Branches:
    """Networks cut in one trunk and a branch each; `template` is the whole first network."""

    trunk: Trunk
    branches: list[Branch]
    template: StagedNetwork


def build_peers(config: Config, data_spec: DataSpec, *, leader: str | None = None) -> Peers:
    """Return the peers that a scheme's options and `model.checkpoint` describe.

    Outputs are `peer0`, `peer1`, ...; on one trunk they come from one node, `peers`, whose trunk has peer 0's weights.
    `leader` is the output of one more network, of `model` and the run's seed, which sees the batch itself and is not
    among the names; on one trunk it is the last branch.

    Raises:
        UserError: options that exclude each other, or lists of another length than the number of peers.
    """
    options = config.scheme
    assert isinstance(options, PeerOptions)
    models = peer_models(config)
    names = peer_names(len(models))
    one_a_peer("scheme.lr_multipliers", options.lr_multipliers, len(models))
    one_a_peer("scheme.seeds", options.seeds, len(models))
    if isinstance(config.model.checkpoint, list):
        one_a_peer("model.checkpoint", config.model.checkpoint, len(models))
    views = peer_views(options.views, len(models))
    lr_multipliers = dict(zip(names, options.lr_multipliers or [1.0] * len(names), strict=True))
    everybody = list(names)
    if leader is not None:
        models, everybody, views = [*models, config.model.name], [*names, leader], [*views, None]
    if options.topology == "shared_trunk":
        if options.lr_multipliers is not None:
            raise UserError(
                "scheme.lr_multipliers belongs to scheme.topology=independent: peers on one trunk share its rate"
            )
        stem = build_shared_trunk(config, data_spec, models, everybody)
        node = SharedTrunk(everybody, stem.trunk, stem.branches, stem.template, views=views)
        return Peers({"peers": node}, names, {})
    if options.split is not None:
        raise UserError("scheme.split belongs to scheme.topology=shared_trunk; independent peers share nothing")
    networks = peer_networks(config, data_spec, models, everybody)
    nodes: dict[str, Node] = {
        name: Network(name, network, view) for name, network, view in zip(everybody, networks, views, strict=True)
    }
    return Peers(nodes, names, lr_multipliers)


def distill_peers(
    peers: Peers,
    nodes: Mapping[str, Node],
    edges: Sequence[Edge],
    config: Config,
    data_spec: DataSpec,
    *,
    supervised: Sequence[str] | None = None,
    heads: Sequence[str] | None = None,
    phases: Sequence[Sequence[str]] = (),
) -> Distillation:
    """Build a scheme of peers and further `nodes`, one of which gives `ensemble`.

    `supervised` outputs learn from the labels with weight 1 (None: the peers), `heads` are evaluated (None: the peers,
    then the ensemble).
    """
    return distill(
        {**peers.nodes, **nodes},
        supervised=dict.fromkeys(supervised or peers.names, 1.0),
        edges=edges,
        losses=config.losses,
        heads=heads or [*peers.names, "ensemble"],
        data_spec=data_spec,
        peers=peers.names,
        lr_multipliers=peers.lr_multipliers,
        phases=phases,
    )


def last_stage(
    method: str, name: str, shapes: Mapping[str, Mapping[str, tuple[int, ...]]]
) -> tuple[str, tuple[int, ...]]:
    """Return the deepest stage of an output, and the shape of one sample's feature there.

    Raises:
        UserError: the output has no features.
    """
    if not shapes[name]:
        raise UserError(f"{method} needs the peers' features, and {name} gives none: choose a model that has stages")
    return list(shapes[name].items())[-1]


def last_width(method: str, name: str, shapes: Mapping[str, Mapping[str, tuple[int, ...]]]) -> int:
    """Return the length of an output's deepest feature once it is averaged over positions.

    Raises:
        UserError: the output has no features.
    """
    return embedding_width(last_stage(method, name, shapes)[1])


def peer_names(count: int) -> list[str]:
    """Return the names of that many peers' outputs."""
    return [f"peer{number}" for number in range(count)]


def one_a_peer(key: str, given: Sequence[object] | None, count: int) -> None:
    """Check that a list among the options has an entry for each peer.

    Raises:
        UserError: it has more or fewer.
    """
    if given is not None and len(given) != count:
        raise UserError(f"{key} has {len(given)} entries for {count} peers: give one each")


def edges_from(sources: Mapping[str, str]) -> list[Edge]:
    """Return the edges by which a mix of peers, `sources[peer]`, teaches each peer.

    A mix has logits alone: features and relations, where such losses are chosen, come from each other peer with a
    share of 1/(K-1).
    """
    share = 1.0 / (len(sources) - 1)
    mixes = [Edge(source, peer, feature=None, relation=None) for peer, source in sources.items()]
    return mixes + [Edge(j, k, None, share, share) for k in sources for j in sources if j != k]


def peer_models(config: Config) -> list[str]:
    """Return the model of each peer."""
    peers = config.scheme.peers
    return peers if isinstance(peers, list) else [config.model.name] * peers


def peer_views(views: str, count: int) -> list[str | None]:
    """Return the auxiliary batch that each peer sees; None is the batch itself: the first peer's, or the shared one."""
    return [None if views == "shared" or number == 0 else f"view{number}" for number in range(count)]


def peer_networks(
    config: Config, data_spec: DataSpec, models: Sequence[str], names: Sequence[str]
) -> list[StagedNetwork]:
    """Return a network for each name, from its own seed and its own weights where options list some for it."""
    given: list[int] = config.scheme.seeds or []
    seeds = [*given, *[None] * (len(names) - len(given))]
    start = config.model.checkpoint
    starts = [*start, *[None] * (len(names) - len(start))] if isinstance(start, list) else [start] * len(names)
    return [
        student_network(replace(config, model=replace(config.model, checkpoint=own)), data_spec, name, model, seed)
        for name, model, seed, own in zip(names, models, seeds, starts, strict=True)
    ]


def build_branches(config: Config, data_spec: DataSpec) -> tuple[list[str], Branches]:
    """Return the names of `scheme.peers` branches of `model`, and the trunk that they part from.

    Raises:
        UserError: a network that cannot be cut, or a list of another length than the number of branches.
    """
    names = peer_names(config.scheme.peers)
    one_a_peer("scheme.seeds", config.scheme.seeds, len(names))
    return names, build_shared_trunk(config, data_spec, [config.model.name] * len(names), names)


def build_shared_trunk(config: Config, data_spec: DataSpec, models: Sequence[str], names: Sequence[str]) -> Branches:
    """Cut the peers' networks before `scheme.split`; the trunk is peer 0's.

    Raises:
        UserError: architectures differ, or cannot be cut there, or several checkpoints.
    """
    if isinstance(config.model.checkpoint, list):
        raise UserError(
            "model.checkpoint is a list, but peers on one trunk start from one network: give one checkpoint"
        )
    if len(set(models)) > 1:
        raise UserError(
            f"scheme.topology=shared_trunk: peers on one trunk have one architecture, not {', '.join(models)}"
        )
    networks = peer_networks(config, data_spec, models, names)
    stage = config.scheme.split or networks[0].stage_names[-1]
    parts = [split(network, stage) for network in networks]
    return Branches(parts[0][0], [branch for _, branch in parts], networks[0])
