"""The peers of an online scheme: independent networks, or branches on a shared trunk."""

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
    """Nodes by name, the peers' outputs in order, and learning-rate factors by node."""

    nodes: dict[str, Node]
    names: list[str]
    lr_multipliers: dict[str, float]


@dataclass(frozen=True)
class Branches:
    """Networks split into a shared trunk and one branch each; `template` is the whole first network."""

    trunk: Trunk
    branches: list[Branch]
    template: StagedNetwork


def build_peers(config: Config, data_spec: DataSpec, *, leader: str | None = None) -> Peers:
    """Return the peers that a scheme's options and `model.checkpoint` describe.

    Outputs are `peer0`, `peer1`, ...; on a shared trunk they come from one node, `peers`, whose trunk has peer 0's
    weights. `leader` is the output of one additional network (`model`, the run's seed), which sees the batch itself and
    is not among the names; on a shared trunk it is the last branch.

    Raises:
        UserError: options exclude each other, or the length of a list is not the number of peers.
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
    all_names = list(names)
    if leader is not None:
        models, all_names, views = [*models, config.model.name], [*names, leader], [*views, None]
    if options.topology == "shared_trunk":
        if options.lr_multipliers is not None:
            raise UserError(
                "scheme.lr_multipliers needs scheme.topology=independent: peers on one trunk share its learning rate"
            )
        stem = build_shared_trunk(config, data_spec, models, all_names)
        node = SharedTrunk(all_names, stem.trunk, stem.branches, stem.template, views=views)
        return Peers({"peers": node}, names, {})
    if options.split is not None:
        raise UserError("scheme.split needs scheme.topology=shared_trunk: independent peers share nothing")
    networks = peer_networks(config, data_spec, models, all_names)
    nodes: dict[str, Node] = {
        name: Network(name, network, view) for name, network, view in zip(all_names, networks, views, strict=True)
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
    """Build a scheme of peers and additional `nodes`, one of which provides `ensemble`.

    `supervised` outputs learn from the labels with weight 1 (None: the peers); `heads` are evaluated (None: the peers,
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
        raise UserError(f"{method} needs the peers' features, but {name} has none: choose a model with stages")
    return list(shapes[name].items())[-1]


def last_width(method: str, name: str, shapes: Mapping[str, Mapping[str, tuple[int, ...]]]) -> int:
    """Return the width of an output's deepest feature, averaged over positions.

    Raises:
        UserError: the output has no features.
    """
    return embedding_width(last_stage(method, name, shapes)[1])


def peer_names(count: int) -> list[str]:
    return [f"peer{number}" for number in range(count)]


def one_a_peer(key: str, given: Sequence[object] | None, count: int) -> None:
    """Check that a list among the options, if given, has one entry per peer.

    Raises:
        UserError: it has more or fewer.
    """
    if given is not None and len(given) != count:
        raise UserError(f"{key} has {len(given)} entries for {count} peers: give one per peer")


def edges_from(sources: Mapping[str, str]) -> list[Edge]:
    """Return the edges by which a combination of peers, `sources[peer]`, teaches each peer.

    A combination only has logits: feature and relation terms, if any, come from each other peer with weight 1/(K-1).
    """
    share = 1.0 / (len(sources) - 1)
    mixes = [Edge(source, peer, feature=None, relation=None) for peer, source in sources.items()]
    return mixes + [Edge(j, k, None, share, share) for k in sources for j in sources if j != k]


def peer_models(config: Config) -> list[str]:
    peers = config.scheme.peers
    return peers if isinstance(peers, list) else [config.model.name] * peers


def peer_views(views: str, count: int) -> list[str | None]:
    """Return the auxiliary batch that each peer sees; None (the first peer, or shared views): the batch itself."""
    return [None if views == "shared" or number == 0 else f"view{number}" for number in range(count)]


def peer_networks(
    config: Config, data_spec: DataSpec, models: Sequence[str], names: Sequence[str]
) -> list[StagedNetwork]:
    """Return a network for each name, with its own seed and checkpoint if the options list them."""
    given: list[int] = config.scheme.seeds or []
    seeds = [*given, *[None] * (len(names) - len(given))]
    start = config.model.checkpoint
    starts = [*start, *[None] * (len(names) - len(start))] if isinstance(start, list) else [start] * len(names)
    return [
        student_network(replace(config, model=replace(config.model, checkpoint=own)), data_spec, name, model, seed)
        for name, model, seed, own in zip(names, models, seeds, starts, strict=True)
    ]


def build_branches(config: Config, data_spec: DataSpec) -> tuple[list[str], Branches]:
    """Return the names of `scheme.peers` branches of `model`, and the branches with their trunk.

    Raises:
        UserError: a network that cannot be split, or a list whose length is not the number of branches.
    """
    names = peer_names(config.scheme.peers)
    one_a_peer("scheme.seeds", config.scheme.seeds, len(names))
    return names, build_shared_trunk(config, data_spec, [config.model.name] * len(names), names)


def build_shared_trunk(config: Config, data_spec: DataSpec, models: Sequence[str], names: Sequence[str]) -> Branches:
    """Split the peers' networks before stage `scheme.split`; the trunk is peer 0's.

    Raises:
        UserError: architectures differ or cannot be split there, or there are several checkpoints.
    """
    if isinstance(config.model.checkpoint, list):
        raise UserError(
            "model.checkpoint is a list, but peers on one trunk start from one network: give one checkpoint"
        )
    if len(set(models)) > 1:
        raise UserError(
            f"scheme.topology=shared_trunk: peers on one trunk need one architecture, not {', '.join(models)}"
        )
    networks = peer_networks(config, data_spec, models, names)
    stage = config.scheme.split or networks[0].stage_names[-1]
    parts = [split(network, stage) for network in networks]
    return Branches(parts[0][0], [branch for _, branch in parts], networks[0])
