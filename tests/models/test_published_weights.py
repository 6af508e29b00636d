"""Published weights have their published accuracy on the real test images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torchvision.datasets import CIFAR100

from kdschemes.models import create_model, load_weights

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "images", "correct"),
    [pytest.param("resnet20", 10_000, 6883, marks=pytest.mark.exhaustive), ("resnet56", 1_000, 712)],
)
def test_published_accuracy(name: str, images: int, correct: int, cifar100_root: Path, shared: Path) -> None:
    """68.83 % and 72.63 % top-1 on all 10,000 test images; CI runs resnet56 on the first 1,000."""
    file = shared / "data" / "weights" / f"cifar100_{name}.safetensors"
    network = create_model(name, num_classes=100, channels=3, image_size=32)
    load_weights(network, file, num_classes=100)
    data = CIFAR100(str(cifar100_root), train=False)
    pixels = torch.from_numpy(data.data[:images]).permute(0, 3, 1, 2).float() / 255
    mean, deviation = torch.tensor([0.5070, 0.4865, 0.4409]), torch.tensor([0.2673, 0.2564, 0.2761])
    pixels = (pixels - mean.view(3, 1, 1)) / deviation.view(3, 1, 1)
    with torch.inference_mode():
        predicted = torch.cat([network.eval()(batch).argmax(1) for batch in pixels.split(250)])
    assert int((predicted == torch.tensor(data.targets[:images])).sum()) == pytest.approx(correct, abs=2)
