"""Initial weights that several families of networks share."""

from __future__ import annotations

from torch import nn


def he_normal(network: nn.Module) -> None:
    """Draw every convolution from He's normal initialization (fan-out, ReLU); biases become 0."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def small_classifier(layer: nn.Linear) -> None:
    """Draw a classifier from a normal distribution of deviation 0.01; its bias becomes 0."""
    nn.init.normal_(layer.weight, 0.0, 0.01)
    nn.init.zeros_(layer.bias)
