"""What our functions call each reference of the losses between maps: (inputs by name, parameters) to the loss.

Two references keep constants in float32 whatever the inputs are: OFD its margins, VID the variances at the start.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdschemes.losses.feature.ab import ab
from kdschemes.losses.feature.at import attention_transfer
from kdschemes.losses.feature.ft import ft
from kdschemes.losses.feature.hint import hint
from kdschemes.losses.feature.nst import nst
from kdschemes.losses.feature.ofd import ofd, ofd_margin
from kdschemes.losses.feature.reviewkd import Fusion, hcl
from kdschemes.losses.feature.vid import vid, vid_raw_variance

Case = dict[str, Any]
Reference = Callable[[dict[str, Tensor], Case], Tensor]


def attention(x: dict[str, Tensor], p: Case) -> Tensor:
    return attention_transfer(x["s"], x["t"])


def channels(x: dict[str, Tensor], p: Case) -> Tensor:
    return nst(x["s"], x["t"])


def factor(x: dict[str, Tensor], p: Case) -> Tensor:
    return ft(x["s"], x["t"], variant="paper")


def boundaries(x: dict[str, Tensor], p: Case) -> Tensor:
    return 0.003 * ab(x["s"], x["t"])


def overhaul(x: dict[str, Tensor], p: Case) -> Tensor:
    margin = ofd_margin(x["bn_w"], x["bn_b"]).float()
    return ofd(x["s"], x["t"], margin=margin.to(x["s"].dtype))


def variational(x: dict[str, Tensor], p: Case) -> Tensor:
    mean = functional.conv2d(x["s"], x["W1"])
    for weight in ("W2", "W3"):
        mean = functional.conv2d(mean.relu(), x[weight])
    raw = vid_raw_variance(p["v"], mean.shape[1], eps=p["eps"])
    return vid(mean, x["t"], raw_variance=raw.to(mean.dtype), eps=p["eps"])


def fusion(x: dict[str, Tensor], p: Case) -> Tensor:
    module = Fusion(x["s"].shape[1], x["W1"].shape[0], x["t"].shape[1]).to(x["s"].dtype)
    assert module.attention is not None
    convolutions = [m for part in (module.enter, module.leave) for m in part if isinstance(m, nn.Conv2d)]
    targets = [*(m.weight for m in convolutions), module.attention.weight, module.attention.bias]
    with torch.no_grad():
        for target, name in zip(targets, ("W1", "W2", "W3", "b3"), strict=True):
            assert target is not None
            target.copy_(x[name])
    compared, fused = module(x["s"], x["r"], (p["out"], p["out"]))
    return (compared * x["t"]).sum() + fused.square().mean()


REFERENCES: dict[str, Reference] = {
    "FitNet.RepDistiller": lambda x, p: hint(x["s"], x["t"]),
    "AT.RepDistiller": attention,
    "AT.mdistiller": attention,
    "AT.attention-transfer": attention,
    "AT.torchdistill_code": attention,
    "AT.torchdistill_paper": lambda x, p: attention_transfer(x["s"], x["t"], variant="paper"),
    "AT.KDZoo": lambda x, p: attention_transfer(x["s"], x["t"], eps=1e-6),
    "NST.RepDistiller": channels,
    "NST.mdistiller": channels,
    "FT.RepDistiller": lambda x, p: ft(x["s"], x["t"]),
    "FT.mmrazor": factor,
    "FT.torchdistill": factor,
    "AB.RepDistiller": boundaries,
    "AB.mmrazor": boundaries,
    "AB.RepDistiller_2stage": lambda x, p: 0.003 * (0.5 * ab(x["s"], x["t"]) + ab(x["s2"], x["t2"])),
    "AB.torchdistill": lambda x, p: ab(x["s"], x["t"]),
    "OFD.mdistiller": overhaul,
    "OFD.original": lambda x, p: 0.001 * overhaul(x, p),
    "VID.RepDistiller": variational,
    "ReviewKD_ABF.mdistiller": fusion,
    "ReviewKD_hcl.mdistiller": lambda x, p: hcl(x["s"], x["t"]),
}
