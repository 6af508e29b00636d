"""The deepest exit teaches the shallow ones at a temperature that grows with its confidence."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from kdschemes.config import Config
from kdschemes.config.schemes.self_distillation import SelfMultiExit
from kdschemes.core.distillation import Distillation
from kdschemes.core.loss import Endpoint, Loss
from kdschemes.core.nodes import NetworkWithExits
from kdschemes.core.schedules import Schedule, ramp
from kdschemes.core.terms import Transfer
from kdschemes.core.types import Batch, DataSpec, Output, Outputs
from kdschemes.distributed.collectives import sum_over_processes
from kdschemes.losses.build import build_loss
from kdschemes.models import ExitNetwork
from kdschemes.schemes.distill import Edge, distill, probe, soft_weight
from kdschemes.schemes.networks import network_with_exits


class WarmingExits(NetworkWithExits):
    """A network with exits, and the factor by which its deepest exit's temperature has grown.

    After an optimizer step, the factor is multiplied by `growth` if the deepest exit's highest probability, at
    `temperature` times the current factor and averaged over the step's samples, exceeds `confidence`. The number of
    increases is checkpointed.

    Args:
        name: of the output.
        network: the network with its exits.
        temperature: initial temperature.
        growth: at least 1.
        confidence: from 0 to 1.
    """

    replicated_buffers = ("growths", "sure")
    growths: Tensor
    sure: Tensor

    def __init__(
        self, name: str, network: ExitNetwork, *, temperature: float, growth: float, confidence: float
    ) -> None:
        super().__init__(name, network)
        self.temperature, self.growth, self.confidence = temperature, growth, confidence
        self.register_buffer("growths", torch.zeros((), dtype=torch.long))
        self.register_buffer("sure", torch.zeros(2, dtype=torch.float64))

    @property
    def factor(self) -> Tensor:
        """The current factor on the temperature, in float64."""
        return torch.pow(self.growth, self.growths.double())

    def forward(self, batch: Batch, outputs: Mapping[str, Output]) -> Outputs:
        produced = super().forward(batch, outputs)
        if self.training:
            with torch.no_grad():
                deepest = produced[self.provides[0]].logits.double()
                highest = (deepest / (self.temperature * self.factor)).softmax(dim=1).amax(dim=1)
                seen = highest.new_tensor(len(highest))
                self.sure += sum_over_processes(torch.stack([highest.sum(), seen])).to(self.sure.dtype)
        return produced

    @torch.no_grad()
    def after_step(self) -> None:
        total, samples = self.sure
        self.growths += (total > self.confidence * samples).long()
        self.sure.zero_()


class WarmingTransfer(Transfer):
    """An edge between exits whose loss is computed on logits divided by the factor s of `exits`, times s squared.

    A loss at temperature T that includes the factor T squared thereby becomes the same loss at temperature sT.
    """

    def __init__(
        self, name: str, source: str, target: str, loss: Loss[Any], weight: Schedule, exits: WarmingExits
    ) -> None:
        super().__init__(name, source, target, loss, weight)
        self._exits = [exits]

    def forward(self, outputs: Mapping[str, Output], batch: Batch) -> Tensor:
        factor = self._exits[0].factor
        cooled = {name: _divided(outputs[name], factor) for name in (self.source, self.target)}
        value: Tensor = super().forward(cooled, batch)
        return factor.square().to(value.dtype) * value


def multi_exit(config: Config, data_spec: DataSpec) -> Distillation:
    """Return (1 - C) CE_K + sum over the other exits k of (1 - C) CE_k + C response(deepest K -> k), C = alpha.

    The temperature of the response loss is multiplied by `WarmingExits.factor`. Feature and relation terms, if any, go
    from the deepest stage to each exit, without a temperature. Without a response loss, C is 0.
    """
    options = config.scheme
    assert isinstance(options, SelfMultiExit)
    responses = [loss for kind, loss in config.losses.chosen() if kind == "response"]
    student = WarmingExits(
        "student",
        network_with_exits(config, data_spec, "student"),
        temperature=getattr(responses[0], "temperature", 1.0) if responses else 1.0,
        growth=options.growth,
        confidence=options.confidence,
    )
    deepest, *exits = student.provides
    alpha = soft_weight(config)
    hard, soft = options.scale * (1.0 - alpha), options.scale * alpha
    last = hard if options.final_exit_weight is None else options.scale * options.final_exit_weight
    shapes = probe([student], data_spec)
    endpoints = {name: Endpoint(shapes[name], student.training_network(name)) for name in student.provides}
    softened = [
        WarmingTransfer(
            loss.name,
            deepest,
            name,
            build_loss(loss, student=endpoints[name], teacher=endpoints[deepest], data_spec=data_spec),
            ramp(loss.schedule, soft * loss.weight, loss.ramp_epochs),
            student,
        )
        for loss in responses
        for name in exits
    ]
    return distill(
        {"student": student},
        supervised={deepest: last} | dict.fromkeys(exits, hard),
        edges=[Edge(deepest, name, response=None) for name in exits],
        losses=config.losses,
        heads=student.provides,
        data_spec=data_spec,
        terms=softened,
    )


def _divided(output: Output, factor: Tensor) -> Output:
    logits = output.logits.to(torch.promote_types(output.logits.dtype, torch.float32))
    return dataclasses.replace(output, logits=logits / factor)
