"""Weight initialization shared by several network families."""

from __future__ import annotations

from torch import nn


def he_normal(network: nn.Module) -> None:
    """Initialize every convolution with He normal (fan-out, ReLU) and zero bias."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def small_classifier(layer: nn.Linear) -> None:
    """Initialize a classifier from a normal distribution with std 0.01 and zero bias."""
    nn.init.normal_(layer.weight, 0.0, 0.01)
    nn.init.zeros_(layer.bias)
