"""What our functions call each reference of the losses between maps: (inputs by name, parameters) to the loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from kdschemes.losses.feature import attention_transfer, hint

Case = dict[str, Any]
Reference = Callable[[dict[str, Tensor], Case], Tensor]


def attention(x: dict[str, Tensor], p: Case) -> Tensor:
    return attention_transfer(x["s"], x["t"])


REFERENCES: dict[str, Reference] = {
    "FitNet.RepDistiller": lambda x, p: hint(x["s"], x["t"]),
    "AT.RepDistiller": attention,
    "AT.mdistiller": attention,
    "AT.attention-transfer": attention,
    "AT.torchdistill_code": attention,
}
