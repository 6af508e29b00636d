"""A student with a projector and a teacher's classifier, as one plain network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from kdschemes.errors import UserError
from kdschemes.models import Recombined, count_macs, create_model, load_model, save_weights, stages
from kdschemes.models.recombined import PROJECTED, Projector


def recombined(name: str = "resnet20", size: tuple[int, int] = (4, 3), bias: bool = True) -> Recombined:
    torch.manual_seed(0)
    side = 32 if name.startswith("timm/") else 16
    student = create_model(name, num_classes=10, channels=3, image_size=side)
    with torch.no_grad():
        features = student.eval().forward_stages(torch.zeros(1, 3, side, side))[1]
    network = Recombined(
        student, Projector(list(features.values())[-1].shape[1], 5, 12, size), nn.Linear(12, 10, bias=bias)
    )
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.rand_like(module.running_mean)  # type: ignore[arg-type]
    return network.eval()


def images(network: Recombined, seed: int = 1) -> Tensor:
    side = network.spec.image_size
    return torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", ["resnet20", "convnet", "timm/test_vit", "timm/resnet18"])
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_it_is_written_and_read_back(name: str, bias: bool, tmp_path: Path) -> None:
    network = recombined(name, bias=bias)
    x = images(network)
    save_weights(network, tmp_path, metadata={"head": "student/simkd"})
    state = torch.random.get_rng_state()
    loaded = load_model(tmp_path)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert isinstance(loaded, Recombined)
    assert not loaded.training
    assert torch.equal(loaded(x), network(x))
    assert loaded.spec == network.spec
    assert loaded.config() == network.config()
    written = json.loads((tmp_path / "config.json").read_text())
    assert (written["name"], written["student"]["name"], written["num_classes"]) == ("recombined", name, 10)


@pytest.mark.parametrize("name", ["resnet20", "timm/test_vit"])
@torch.no_grad()
def test_logits_and_features(name: str) -> None:
    network = recombined(name)
    x = images(network)
    logits, features = network.forward_stages(x)
    assert torch.equal(network(x), logits)
    own = network.network.forward_stages(x)[1]
    assert list(features) == [*own, PROJECTED] == list(network.stage_names)
    assert features[PROJECTED].shape == (3, 12, 4, 3)
    classifier = network.linear_classifier()
    assert classifier is network.classifier
    assert torch.equal(classifier(features[PROJECTED].mean((2, 3))), logits)
    for stage in network.stage_names:
        assert torch.equal(network.forward_until(x, stage), features[stage])
    assert [stage.name for stage in stages(network, 3, network.spec.image_size)] == list(network.stage_names)


def test_the_students_own_classifier_is_not_run() -> None:
    network = recombined()
    grown = Recombined(network.network, network.projector, network.classifier)
    before = count_macs(network, 3, 16)
    network.network.fc = nn.Linear(64, 1000)
    assert count_macs(grown, 3, 16) == before


def test_projector_pools_maps_and_takes_vectors_and_tokens() -> None:
    projector = Projector(6, 3, 8, (2, 2)).eval()
    maps = torch.randn(2, 6, 4, 4, generator=torch.Generator().manual_seed(2))
    pooled = nn.functional.adaptive_avg_pool2d(maps, 2)
    torch.testing.assert_close(projector(maps), projector(pooled))
    torch.testing.assert_close(projector(pooled.flatten(2).mT), projector(pooled))
    single = Projector(6, 3, 8, (1, 1)).eval()
    torch.testing.assert_close(single(maps.mean((2, 3))), single(maps))


@pytest.mark.parametrize("missing", ["student", "projector", "classifier"])
def test_a_broken_description_is_refused(missing: str, tmp_path: Path) -> None:
    save_weights(recombined(), tmp_path)
    file = tmp_path / "config.json"
    written = json.loads(file.read_text())
    del written[missing]
    file.write_text(json.dumps(written))
    with pytest.raises(UserError, match=r"no network at .*config.json cannot be read"):
        load_model(tmp_path)
