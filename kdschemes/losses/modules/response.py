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
        o = self.options
        return response.kd(z, v, temperature=o.temperature, scale=o.scale, reduction=o.reduction)


class SoftCE(LogitLoss[config.SoftCE]):
    """`response.soft_ce` of the logits."""

    def forward(self, student: Output, teacher: Output, batch: Batch, gather: Gather) -> Float[Tensor, ""]:
        z, v = self.logits(student, teacher)
        return response.soft_ce(z, v, temperature=self.options.temperature, scale=self.options.scale)


class LogitMSE(LogitLoss[config.LogitMSE]):
    """`response.logit_mse` of the logits."""

    def forward(self, student: Output, teacher: Output, batch: Batch, gather: Gather) -> Float[Tensor, ""]:
        return response.logit_mse(*self.logits(student, teacher))


class DKD(LogitLoss[config.DKD]):
    """`response.dkd` of the logits and labels."""

    def forward(self, student: Output, teacher: Output, batch: Batch, gather: Gather) -> Float[Tensor, ""]:
        z, v = self.logits(student, teacher)
        o = self.options
        return response.dkd(z, v, batch.labels, temperature=o.temperature, alpha=o.alpha, beta=o.beta)


class NKD(LogitLoss[config.NKD]):
    """`response.nkd` of the logits and labels."""

    def forward(self, student: Output, teacher: Output, batch: Batch, gather: Gather) -> Float[Tensor, ""]:
        z, v = self.logits(student, teacher)
        return response.nkd(z, v, batch.labels, temperature=self.options.temperature, gamma=self.options.gamma)


class DIST(LogitLoss[config.DIST]):
    """`response.dist` of the logits of all processes."""

    spans_batch = True

    def forward(self, student: Output, teacher: Output, batch: Batch, gather: Gather) -> Float[Tensor, ""]:
        z, v = self.logits(student, teacher)
        o = self.options
        return response.dist(
            gather(z),
            gather(v),
            temperature=o.temperature,
            beta=o.beta,
            gamma=o.gamma,
            scale=o.scale,
            epsilon=o.epsilon,
        )


class WSLD(LogitLoss[config.WSLD]):
    """`response.wsld` of the logits and labels."""

    def forward(self, student: Output, teacher: Output, batch: Batch, gather: Gather) -> Float[Tensor, ""]:
        z, v = self.logits(student, teacher)
        return response.wsld(z, v, batch.labels, temperature=self.options.temperature)


class TFKDReg(LogitLoss[config.TFKDReg]):
    """`response.tfkd_reg` of the student's logits and the labels."""

    def forward(self, student: Output, teacher: Output, batch: Batch, gather: Gather) -> Float[Tensor, ""]:
        o = self.options
        return response.tfkd_reg(
            student.logits, batch.labels, temperature=o.temperature, correct=o.correct, multiplier=o.multiplier
        )


RESPONSE_SOFT: dict[type, type[Loss[Any]]] = {
    config.KD: KD,
    config.SoftCE: SoftCE,
    config.LogitMSE: LogitMSE,
    config.DKD: DKD,
    config.NKD: NKD,
    config.DIST: DIST,
    config.WSLD: WSLD,
    config.TFKDReg: TFKDReg,
}
