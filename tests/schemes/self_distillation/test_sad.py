"""Self attention distillation: the attention map of each stage teaches that of the stage before it."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from kdschemes.core.types import Progress
from kdschemes.schemes.self_distillation.sad import self_attention
from tests.losses import oracles
from tests.losses.oracles import Array
from tests.schemes.cases import START, base, build, check_refused, configure, random_batch
from tests.schemes.formulas import Formula, Seen, array
from tests.schemes.self_distillation.cases import any_begins, reached

SAD = base("self", "sad")


def bilinear(maps: Array, height: int, width: int) -> Array:
    """Enlarge by bilinear interpolation between pixel centers, clamped at the border."""
    out = np.zeros((*maps.shape[:2], height, width))

    def between(position: int, size: int, old: int) -> tuple[int, int, float]:
        x = max((position + 0.5) * old / size - 0.5, 0.0)
        low = min(int(x), old - 1)
        return low, min(low + 1, old - 1), x - low

    for i, j in np.ndindex(height, width):
        top, bottom, a = between(i, height, maps.shape[2])
        left, right, b = between(j, width, maps.shape[3])
        upper = (1 - b) * maps[:, :, top, left] + b * maps[:, :, top, right]
        lower = (1 - b) * maps[:, :, bottom, left] + b * maps[:, :, bottom, right]
        out[:, :, i, j] = (1 - a) * upper + a * lower
    return out


def expected_distance(
    shallow: Array,
    deep: Array,
    *,
    channel_reduction: str = "mean",
    upsample: str = "features",
    spatial_reduction: str = "mean",
) -> float:
    height, width = shallow.shape[2:]

    def energy(maps: Array) -> Array:
        total = (maps**2).sum(axis=1, keepdims=True)
        return total / maps.shape[1] if channel_reduction == "mean" else total

    theirs = energy(bilinear(deep, height, width)) if upsample == "features" else energy(deep)
    theirs = bilinear(theirs, height, width) if upsample == "attention" else theirs
    total = 0.0
    for ours, other in zip(energy(shallow), theirs, strict=True):
        total += float(((oracles.softmax(ours.ravel()) - oracles.softmax(other.ravel())) ** 2).sum())
    return total / len(shallow) / (height * width if spatial_reduction == "mean" else 1)


def expected_total(seen: Seen) -> float:
    scheme, features = seen.config.scheme, seen.out["student"].features
    names = list(features) if scheme.stages == "all" else scheme.stages
    total = oracles.supervised([seen.logits("student")], seen.labels, smoothing=0.0)
    weight = scheme.weight if seen.progress.fraction >= scheme.start else 0.0
    for shallow, deep in pairwise(names):
        total += weight * expected_distance(
            array(features[shallow]),
            array(features[deep]),
            channel_reduction=scheme.channel_reduction,
            upsample=scheme.upsample,
            spatial_reduction=scheme.spatial_reduction,
        )
    return total


FORMULA: Formula = expected_total
EXACT = {
    "sad-original": [*SAD, "scheme.variant=original", "scheme.start=0.2", "scheme.weight=3"],
    "sad-sums": [*SAD, "scheme.spatial_reduction=sum", "scheme.channel_reduction=sum", "scheme.detach=false"],
    "sad-two-stages": [*SAD, "scheme.stages=[layer1,layer3]", "scheme.upsample=attention"],
}
VARIANTS = {"self-sad-both-ways": [*SAD, "scheme.variant=original", "scheme.start=0", "scheme.detach=false"]}


@pytest.mark.parametrize("sizes", [((6, 5), (3, 3)), ((4, 4), (4, 4)), ((7, 7), (2, 3))])
@pytest.mark.parametrize("enlarged", ["features", "attention"])
@pytest.mark.parametrize("channels", ["mean", "sum"])
@pytest.mark.parametrize("n", [1, 3])
def test_self_attention_is_its_formula(
    sizes: tuple[tuple[int, int], ...], enlarged: str, channels: str, n: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    shallow, deep = (
        torch.randn(n, c, *size, generator=generator, dtype=torch.float64)
        for c, size in zip((3, 5), sizes, strict=True)
    )
    for positions in ("mean", "sum"):
        options = {"channel_reduction": channels, "upsample": enlarged, "spatial_reduction": positions}
        value = self_attention(shallow, deep, **options)  # type: ignore[arg-type]
        assert value.item() == pytest.approx(expected_distance(array(shallow), array(deep), **options), rel=1e-12)
    assert self_attention(shallow, shallow) == 0


def test_the_deeper_stage_learns_only_without_detach() -> None:
    batch = random_batch()
    reach = reached(build(*SAD).train(), "sad/student/layer3->layer2", batch)
    assert any_begins(reach, "nodes.student.network.layer2")
    assert not any_begins(reach, "nodes.student.network.layer3")
    both = reached(build(*SAD, "scheme.detach=false").train(), "sad/student/layer3->layer2", batch)
    assert any_begins(both, "nodes.student.network.layer3")
    assert not any_begins(both, "nodes.student.network.fc")


def test_the_original_begins_after_two_thirds_of_the_training() -> None:
    config = configure(*SAD, "scheme.variant=original")
    assert (config.scheme.weight, config.scheme.channel_reduction, config.scheme.upsample) == (0.1, "sum", "attention")
    scheme = build(*SAD, "scheme.variant=original")
    for step, weight in ((0, 0.0), (59, 0.0), (60, 0.1), (89, 0.1)):
        weights = scheme(random_batch(), Progress(step, 90, 10)).weights
        assert weights == {"ce/student": 1.0} | dict.fromkeys(list(weights)[1:], weight)
    assert set(build(*SAD)(random_batch(), START).weights.values()) == {1.0, 1000.0}


def test_stages_of_one_position_have_no_attention() -> None:
    names = [term.name for term in build(*SAD, "model=convnet").terms]
    assert names == ["ce/student", "sad/student/stage2->stage1", "sad/student/stage3->stage2"]
    chosen = [term.name for term in build(*SAD, "scheme.stages=[layer3,layer1]").terms]
    assert chosen == ["ce/student", "sad/student/layer3->layer1"]
    for stages, model, message in (
        ("[layer4,layer5]", "vgg8", "'layer5' .*'layer4' .*1x1"),
        ("[stage1,stage4]", "convnet", "'stage4' .*'stage1' .*1x1"),
        ("[layer1,layer1]", "resnet20", "not 1 of resnet20"),
        ("[layer1,layer9]", "resnet20", "resnet20 'layer9'"),
    ):
        check_refused([*SAD, f"model={model}", f"scheme.stages={stages}"], message)
