"""Weights on disk for the tests of the offline methods."""

from __future__ import annotations

import pytest
import torch

from kdschemes.models import create_model, save_weights


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of weights of a `teacher` (ResNet-20) and of a `student` (convnet)."""
    place, found = tmp_path_factory.mktemp("weights"), {}
    with torch.random.fork_rng(devices=[]):
        for role, model in (("teacher", "resnet20"), ("student", "convnet")):
            torch.manual_seed(len(role))
            save_weights(create_model(model, num_classes=10, channels=1, image_size=8), place / role)
            found[role] = str(place / role)
    return found
