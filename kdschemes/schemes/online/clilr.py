"""CL-ILR: heads on one trunk, each taught by the mean of the others."""

from __future__ import annotations

from kdschemes.config import Config
from kdschemes.core.distillation import Distillation
from kdschemes.core.nodes import Ensemble, Node, SharedTrunk
from kdschemes.core.types import DataSpec
from kdschemes.schemes.distill import Edge, distill, soft_weight
from kdschemes.schemes.online.peers import build_branches, peer_views


def clilr(config: Config, data_spec: DataSpec) -> Distillation:
    """Return, for each head h of H, (1 - alpha) CE_h + alpha response(mean of the other heads -> h).

    Song & Chai 2018, "Collaborative Learning for Deep Neural Networks". Targets are detached. Each head learns from its
    own terms, the trunk from their mean: its gradient is divided by H. Feature and relation terms, if any, come from
    each other head with weight 1 / (H - 1). Without a response loss, each CE has weight 1.

    Raises:
        UserError: a network that cannot be split, or a list whose length is not the number of heads.
    """
    names, stem = build_branches(config, data_spec)
    views = peer_views(config.scheme.views, len(names))
    heads = SharedTrunk(names, stem.trunk, stem.branches, stem.template, views=views, trunk_gradient=1.0 / len(names))
    others = {name: [other for other in names if other != name] for name in names}
    mean_of_others = {name: f"others{number}" for number, name in enumerate(names)}
    nodes: dict[str, Node] = {"peers": heads, "ensemble": Ensemble("ensemble", names)}
    nodes |= {mean: Ensemble(mean, others[name]) for name, mean in mean_of_others.items()}
    alpha = soft_weight(config)
    share = 1.0 / (len(names) - 1)
    edges = [Edge(mean, name, response=alpha, feature=None, relation=None) for name, mean in mean_of_others.items()]
    edges += [Edge(j, k, response=None, feature=share, relation=share) for k in names for j in others[k]]
    return distill(
        nodes,
        supervised=dict.fromkeys(names, 1.0 - alpha),
        edges=edges,
        losses=config.losses,
        heads=[*names, "ensemble"],
        data_spec=data_spec,
        peers=names,
    )
