"""What our functions call each reference of the channel losses: (inputs by name, parameters) to the loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from kdschemes.losses.feature.cat_kd import cat_kd
from kdschemes.losses.feature.cwd import cwd
from kdschemes.losses.feature.pad import pad
from kdschemes.losses.feature.pkd import pkd

Case = dict[str, Any]
Reference = Callable[[dict[str, Tensor], Case], Tensor]


REFERENCES: dict[str, Reference] = {
    "CWD.mmrazor": lambda x, p: cwd(x["s"], x["t"], temperature=float(p["T"])),
    "PKD.mmrazor": lambda x, p: pkd(x["s"], x["t"]),
    "PAD_L2.torchdistill": lambda x, p: pad(x["s"], x["t"], log_variance=x["v"]),
    "CAT_KD": lambda x, p: cat_kd(x["s"], x["t"], resolution=p["res"], normalize=p["norm"]),
}
