"""Losses between logits."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor

from kdschemes.config.losses import response as config
from kdschemes.losses import response
from kdschemes.losses.modules.base import Gather, LogitLoss, Loss
from kdschemes.outputs import Batch, Output


class KD(LogitLoss[config.KD]):
    """`response.kd` of the logits."""

    def forward(self, student: Output, teacher: Output, batch: Batch, gather: Gather) -> Float[Tensor, ""]:
        z, v = self.logits(student, teacher)
        return response.kd(z, v, temperature=self.options.temperature)


class LogitMSE(LogitLoss[config.LogitMSE]):
    """`response.logit_mse` of the logits."""

    def forward(self, student: Output, teacher: Output, batch: Batch, gather: Gather) -> Float[Tensor, ""]:
        return response.logit_mse(*self.logits(student, teacher))


RESPONSE_SOFT: dict[type, type[Loss[Any]]] = {config.KD: KD, config.LogitMSE: LogitMSE}
