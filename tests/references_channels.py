"""What our functions call each reference of the channel losses: (inputs by name, parameters) to the loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

Case = dict[str, Any]
Reference = Callable[[dict[str, Tensor], Case], Tensor]


REFERENCES: dict[str, Reference] = {}
