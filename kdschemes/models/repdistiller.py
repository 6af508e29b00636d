"""Names of the tensors in RepDistiller's and mdistiller's implementations of kdschemes' own networks.

Their ResNets for CIFAR have our names.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from kdschemes.config.models import MODELS
from kdschemes.models.mobilenet import STAGES
from kdschemes.models.shufflenet import V2_STAGES


def our_name(model: str, name: str) -> str:
    """Return our name of the tensor that these implementations of `model` call `name`; any other name unchanged."""
    for theirs, ours in _modules(model).items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


@cache
def _modules(model: str) -> Mapping[str, str]:
    """Return our module for each of theirs."""
    builder, sizes = MODELS.get(model, ("", {}))
    match builder:
        case "resnet18_cifar":
            return {"linear.": "fc."} | {f"layer{k}.0.shortcut.": f"layer{k}.0.downsample." for k in (2, 3, 4)}
        case "wide_resnet":
            last = (sizes["depth"] - 4) // 6
            names = {f"block{k}.layer.0.convShortcut.": f"layer{k}.0.shortcut." for k in (1, 2, 3)}
            return names | {f"block{k}.layer.": f"layer{k}." for k in (1, 2, 3)} | {"bn1.": f"layer3.{last}."}
        case "vgg":
            return {f"block{k}.": f"layer{k + 1}." for k in range(5)} | {"classifier.": "fc."}
        case "mobilenet_v2":
            names = {"conv1.0.": "conv1.", "conv1.1.": "bn1.", "conv2.": "head.", "classifier.0.": "fc."}
            group = 0
            for number, groups in enumerate(STAGES, start=1):
                place = 0
                for _, _, count, _ in groups:
                    names |= {f"blocks.{group}.{k}.": f"layer{number}.{place + k}." for k in range(count)}
                    group, place = group + 1, place + count
            return names
        case "shufflenet_v1":
            return {"linear.": "fc."}
        case "shufflenet_v2":
            names = {"conv2.": "head.0.", "bn2.": "head.1.", "linear.": "fc."}
            halving = ("short.0", "short.1", "long.0", "long.1", "long.2")
            splitting = ("branch.0", "branch.1", "branch.2")
            for number, (_, count) in enumerate(V2_STAGES, start=1):
                for place in range(count):
                    block = f"layer{number}.{place}"
                    for k, ours in enumerate(splitting if place else halving, start=1):
                        names |= {f"{block}.conv{k}.": f"{block}.{ours}.0.", f"{block}.bn{k}.": f"{block}.{ours}.1."}
            return names
    return {}
