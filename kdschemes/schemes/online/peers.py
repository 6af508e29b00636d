"""The peers of an online scheme: networks of their own, or branches on one trunk, each with what it has for itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kdschemes.config import Config
from kdschemes.config.schemes.online import PeerOptions
from kdschemes.distillation import Task
from kdschemes.errors import UserError
from kdschemes.models import Branch, StagedNetwork, Trunk, split
from kdschemes.nodes import Network, Node, SharedStem
from kdschemes.schemes.networks import student_network


@dataclass(frozen=True)
class Peers:
    """Nodes by name, the peers' outputs in order, and by node what the learning rate is multiplied by."""

    nodes: dict[str, Node]
    names: list[str]
    rates: dict[str, float]


@dataclass(frozen=True)
class Stem:
    """Networks cut in one trunk and a branch each; `template` is the whole first network."""

    trunk: Trunk
    branches: list[Branch]
    template: StagedNetwork


def build_peers(config: Config, task: Task, *, stem_gradient: float = 1.0) -> Peers:
    """Return the peers that `scheme.peers`, `topology`, `views`, `rates` and `seeds` describe.

    Outputs are `peer0`, `peer1`, ...; on one trunk they come from one node, `peers`, whose trunk has peer 0's weights.
    `stem_gradient` multiplies the gradient that reaches a shared trunk.

    Raises:
        UserError: options that exclude each other, or lists of another length than the number of peers.
    """
    options = config.scheme
    assert isinstance(options, PeerOptions)
    models = peer_models(config)
    names = [f"peer{number}" for number in range(len(models))]
    for key in ("rates", "seeds"):
        given = getattr(options, key)
        if given is not None and len(given) != len(models):
            raise UserError(f"scheme.{key} has {len(given)} entries for {len(models)} peers: give one each")
    views = peer_views(options.views, len(models))
    if options.topology == "shared_stem":
        if options.rates is not None:
            raise UserError("scheme.rates belongs to scheme.topology=independent: peers on one trunk share its rate")
        stem = build_stem(config, task, models, names)
        node = SharedStem(names, stem.trunk, stem.branches, stem.template, views=views, stem_gradient=stem_gradient)
        return Peers({"peers": node}, names, {})
    if options.split is not None:
        raise UserError("scheme.split belongs to scheme.topology=shared_stem; independent peers share nothing")
    networks = peer_networks(config, task, models, names)
    nodes: dict[str, Node] = {
        name: Network(name, network, view) for name, network, view in zip(names, networks, views, strict=True)
    }
    return Peers(nodes, names, dict(zip(names, options.rates or [1.0] * len(names), strict=True)))


def peer_models(config: Config) -> list[str]:
    """Return the model of each peer."""
    peers = config.scheme.peers
    return peers if isinstance(peers, list) else [config.model.name] * peers


def peer_views(views: str, count: int) -> list[str | None]:
    """Return the companion that each peer sees: the batch itself for the first, or for all if they share one view."""
    return [None if views == "shared" or number == 0 else f"view{number}" for number in range(count)]


def peer_networks(config: Config, task: Task, models: Sequence[str], names: Sequence[str]) -> list[StagedNetwork]:
    """Return a network for each peer, from its own seed."""
    seeds: Sequence[int | None] = config.scheme.seeds or [None] * len(names)
    return [
        student_network(config, task, name, model, seed) for name, model, seed in zip(names, models, seeds, strict=True)
    ]


def build_stem(config: Config, task: Task, models: Sequence[str], names: Sequence[str]) -> Stem:
    """Cut the peers' networks before `scheme.split`; the trunk is peer 0's.

    Raises:
        UserError: architectures differ, or cannot be cut there.
    """
    if len(set(models)) > 1:
        raise UserError(
            f"scheme.topology=shared_stem: peers on one trunk have one architecture, not {', '.join(models)}"
        )
    networks = peer_networks(config, task, models, names)
    stage = config.scheme.split or networks[0].stage_names[-1]
    parts = [split(network, stage) for network in networks]
    return Stem(parts[0][0], [branch for _, branch in parts], networks[0])
