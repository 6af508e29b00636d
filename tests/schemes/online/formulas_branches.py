"""The totals of the online methods with branches, and other values of their options to try."""

from __future__ import annotations

import numpy as np

from kdschemes.config.schemes import online as options
from tests.schemes.formulas import Formula, Seen, array, last
from tests.schemes.online import oracles_branches as oracles
from tests.schemes.variants import base


def peers(seen: Seen) -> list[oracles.Array]:
    return [seen.logits(name) for name in seen.scheme.peers]


def weight(seen: Seen) -> float:
    response = seen.config.losses.response
    rises = response.schedule == "sigmoid"
    ramp = oracles.sigmoid_ramp(seen.progress.step / seen.progress.steps_per_epoch, response.ramp_epochs)
    return float(response.weight * (ramp if rises else 1.0))


def temperature(seen: Seen) -> float:
    return float(seen.config.losses.response.temperature)


def clilr(seen: Seen) -> float:
    return oracles.clilr(peers(seen), seen.labels, alpha=seen.config.scheme.alpha, temperature=temperature(seen))


def one(seen: Seen) -> float:
    gate = seen.scheme.nodes["peers"].gate
    reads = [array(list(seen.out[name].features.values())[-2]) for name in seen.scheme.peers]
    gates = oracles.gate(reads, *(array(x) for x in (gate.fc.weight, gate.fc.bias, gate.norm.weight, gate.norm.bias)))
    ensemble = oracles.gated(peers(seen), gates)
    return oracles.one(peers(seen), ensemble, seen.labels, weight=weight(seen), temperature=temperature(seen))


def okddip(seen: Seen) -> float:
    heed = seen.scheme.nodes["attention"]
    features = [last(seen.out[name])[1].mean((2, 3)) for name in seen.scheme.peers]
    targets = oracles.attended(peers(seen), features, array(heed.query.weight), array(heed.key.weight))
    return oracles.okddip(
        peers(seen),
        seen.logits("leader"),
        targets,
        seen.labels,
        weight=weight(seen),
        temperature=temperature(seen),
    )


def ffl(seen: Seen) -> float:
    module = seen.scheme.nodes["fused"].module
    depthwise, first, _, pointwise, second, _ = module.body
    norms = [[array(norm.weight), array(norm.bias)] for norm in (first, second)]
    maps = [last(seen.out[name])[1] for name in seen.scheme.peers]
    fused = oracles.fused(maps, array(depthwise.weight), norms[0], array(pointwise.weight), norms[1])
    logits = fused.mean((2, 3)) @ array(module.fc.weight).T + array(module.fc.bias)
    return oracles.ffl(peers(seen), logits, seen.labels, weight=weight(seen), temperature=temperature(seen))


def pcl(seen: Seen) -> float:
    head = seen.scheme.nodes["ensemble"].fc
    features = np.concatenate([last(seen.out[name])[1].mean((2, 3)) for name in seen.scheme.peers], axis=1)
    ensemble = features @ array(head.weight).T + array(head.bias)
    averages = [seen.logits(f"{name}/ema") for name in seen.scheme.peers]
    return oracles.pcl(peers(seen), ensemble, averages, seen.labels, weight=weight(seen), temperature=temperature(seen))


CLILR, ONE, OKDDIP, FFL, PCL = (base("online", method) for method in ("clilr", "one", "okddip", "ffl", "pcl"))
RISEN = ["losses.response.schedule=constant", "losses.response.temperature=2"]

FORMULAS: dict[type, Formula] = {
    options.OnlineCLILR: clilr,
    options.OnlineONE: one,
    options.OnlineOKDDip: okddip,
    options.OnlineFFL: ffl,
    options.OnlinePCL: pcl,
}
EXACT: dict[str, list[str]] = {
    "clilr-other": [*CLILR, "scheme.peers=2", "scheme.alpha=0.8", "losses.response.temperature=1.5"],
    "one-own-views": [*ONE, *RISEN, "scheme.peers=2", "scheme.views=independent"],
    "one-soon": [*ONE, "losses.response.ramp_epochs=5"],
    "okddip-independent": [*OKDDIP, *RISEN, "scheme.topology=independent", "scheme.views=independent"],
    "okddip-not-detached": [*OKDDIP, *RISEN, "scheme.detach=false", "scheme.reduction=4", "scheme.peers=2"],
    "ffl-three-independent": [
        *FFL,
        *RISEN,
        "scheme.topology=independent",
        "scheme.peers=[resnet20,resnet20,resnet8x4]",
    ],
    "pcl-independent": [*PCL, *RISEN, "scheme.topology=independent", "scheme.peers=2"],
    "pcl-one-view": [*PCL, *RISEN, "scheme.views=shared", "scheme.decay=0"],
}
