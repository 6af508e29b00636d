"""Views: the random numbers behind them, and each operation against a slow reference for one sample at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torchvision.transforms import v2

from kdschemes.data.views import (
    Stream,
    balanced_order,
    crop,
    cutmix,
    cutout,
    epoch_order,
    mixup_partners,
    mixup_weights,
    normalize,
    random_erasing,
    same_class_samples,
)
from kdschemes.seeding import integers, mix64, random_bits, uniform

MASK = (1 << 64) - 1
MANY = torch.arange(50_000)


def splitmix64(seed: int, count: int) -> list[int]:
    """SplitMix64 as published: a state that grows by a constant, and an output function, in exact integers."""
    state, numbers = seed, []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & MASK
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        numbers.append(z ^ (z >> 31))
    return numbers


def test_generator_gives_the_published_numbers() -> None:
    known = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    assert splitmix64(1234567, 5) == known
    assert [number & MASK for number in random_bits(1234567, torch.arange(1, 6)).tolist()] == known


@pytest.mark.parametrize("key", [0, 1, 1 << 63, MASK])
def test_generator_matches_exact_integers_for_any_key(key: int) -> None:
    got = random_bits(key, torch.arange(1, 1001))
    assert [number & MASK for number in got.tolist()] == splitmix64(key, 1000)


def test_uniform_is_the_top_53_bits() -> None:
    words = splitmix64(mix64(7, 3, Stream.FLIP), 100)
    expected = torch.tensor([(word >> 11) / 2**53 for word in words], dtype=torch.float64)
    assert torch.equal(uniform(7, 3, torch.arange(1, 101), Stream.FLIP), expected)


def test_mix64_depends_on_every_word_and_their_order() -> None:
    words = {mix64(a, b, c) for a in range(8) for b in range(8) for c in range(8)}
    assert len(words) == 512
    assert all(0 <= word <= MASK for word in words)


def test_uniform_does_not_depend_on_the_other_samples_or_the_integer_type() -> None:
    whole = uniform(1, 2, MANY, Stream.ROW)
    some = torch.tensor([5, 49_999, 0, 5])
    assert torch.equal(uniform(1, 2, some, Stream.ROW), whole[some])
    assert torch.equal(uniform(1, 2, some.int(), Stream.ROW), whole[some])
    assert uniform(1, 2, some[:0], Stream.ROW).shape == (0,)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_uniform_has_the_same_bits_on_a_gpu() -> None:
    for stream in Stream:
        assert torch.equal(uniform(3, 5, MANY.cuda(), stream).cpu(), uniform(3, 5, MANY, stream))


@pytest.mark.parametrize(("seed", "epoch", "stream"), [(0, 0, Stream.ROW), (0, 1, Stream.FLIP), (123, 77, Stream.MIX)])
def test_uniform_is_uniform(seed: int, epoch: int, stream: Stream) -> None:
    u = uniform(seed, epoch, MANY, stream).numpy()
    assert u.min() >= 0
    assert u.max() < 1
    assert abs(u.mean() - 0.5) < 4 * np.sqrt(1 / 12 / len(u))
    assert abs(u.var() - 1 / 12) < 4 * np.sqrt(1 / 180 / len(u))
    assert stats.kstest(u, "uniform").pvalue > 1e-3
    low_bits = np.floor(u * 2**53).astype(np.int64) % 64
    assert stats.chisquare(np.bincount(low_bits, minlength=64)).pvalue > 1e-3
    assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 4 / np.sqrt(len(u))


def test_streams_epochs_and_seeds_are_independent() -> None:
    columns = [uniform(0, 0, MANY, stream) for stream in Stream]
    columns += [uniform(0, epoch, MANY, Stream.ROW) for epoch in range(1, 6)]
    columns += [uniform(seed, 0, MANY, Stream.ROW) for seed in range(1, 6)]
    correlation = np.corrcoef(np.stack([column.numpy() for column in columns]))
    assert np.abs(correlation - np.eye(len(columns))).max() < 5 / np.sqrt(len(MANY))
    cells = (columns[Stream.ROW] * 9).long() * 9 + (columns[Stream.COLUMN] * 9).long()
    assert stats.chisquare(torch.bincount(cells, minlength=81).numpy()).pvalue > 1e-3


def test_integers_cover_their_range_evenly() -> None:
    counts = torch.bincount(integers(4, 2, MANY, Stream.ROW, 9))
    assert len(counts) == 9
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_epoch_order_is_a_fresh_permutation_each_epoch_and_seed() -> None:
    positions = torch.arange(3, 2000, 2)
    orders = [epoch_order(seed, epoch, positions) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    for order in orders:
        assert torch.equal(order.sort().values, positions)
        assert abs(np.corrcoef(order.numpy(), positions.numpy())[0, 1]) < 0.15
    for left, right in ((0, 1), (0, 2), (1, 2)):
        assert (orders[left] == orders[right]).double().mean() < 0.02
    assert torch.equal(epoch_order(0, 1, positions), orders[1])


def test_balanced_order_has_each_class_equally_often_and_large_classes_in_part() -> None:
    labels = torch.tensor([0] * 50 + [1] * 12 + [4] * 3)
    positions = torch.arange(65) * 2 + 1
    orders = [balanced_order(seed, epoch, positions, labels) for seed, epoch in ((0, 0), (0, 0), (0, 1), (1, 0))]
    assert torch.equal(orders[0], orders[1])
    assert not any(torch.equal(orders[0], other) for other in orders[2:])
    for order in orders:
        assert len(order) == 65
        drawn = torch.bincount(labels[(order - 1) // 2])[[0, 1, 4]].tolist()
        assert sorted(drawn) == [21, 22, 22]
        times = torch.bincount((order - 1) // 2, minlength=65)
        assert times[:50].max() == 1
        for of_class in (times[50:62], times[62:]):
            assert of_class.max() - of_class.min() <= 1
    halves = [torch.bincount(labels[(half - 1) // 2])[[0, 1, 4]] for half in orders[0].split(33)]
    assert all(half.min() >= 5 for half in halves)  # the order is random


def reference_view(image: np.ndarray, padding: int, row: int, column: int, flip: bool) -> np.ndarray:
    channels, height, width = image.shape
    padded = np.zeros((channels, height + 2 * padding, width + 2 * padding), np.uint8)
    padded[:, padding : padding + height, padding : padding + width] = image
    view = padded[:, row : row + height, column : column + width]
    return view[:, :, ::-1] if flip else view


@pytest.mark.parametrize(("channels", "size", "padding"), [(1, 8, 1), (3, 32, 4), (3, 5, 0), (2, 7, 9)])
def test_view_equals_slow_reference_for_each_sample(channels: int, size: int, padding: int) -> None:
    random = np.random.default_rng(0)
    raw = random.integers(0, 256, (20, channels, size, size), np.uint8)
    padded = torch.nn.functional.pad(torch.from_numpy(raw), (padding,) * 4)
    index = torch.from_numpy(random.permutation(20)[:13])
    row, column = (torch.from_numpy(random.integers(0, 2 * padding + 1, 13)) for _ in range(2))
    flip = torch.from_numpy(random.random(13) < 0.5)
    mean, std = (0.4, 0.5, 0.6)[:channels], (0.2, 0.25, 0.3)[:channels]
    views = normalize(crop(padded, index, row, column, flip, size), mean, std)
    assert views.dtype == torch.float32
    for k in range(13):
        cut = reference_view(raw[index[k]], padding, int(row[k]), int(column[k]), bool(flip[k]))
        expected = (cut.astype(np.float32) / np.float32(255) - np.float32(mean)[:, None, None]) / np.float32(std)[
            :, None, None
        ]
        assert np.array_equal(views[k].numpy(), expected)


def test_normalize_equals_torchvision() -> None:
    images = torch.randint(0, 256, (6, 3, 9, 9), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
    expected = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])(images)
    torch.testing.assert_close(normalize(images, mean, std), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("side", [1, 4, 5, 8])
def test_cutout_blanks_one_clipped_square_around_any_pixel(side: int) -> None:
    index = torch.arange(800)
    blank = cutout(torch.ones(800, 2, 8, 8), index, seed=1, epoch=2, side=side) == 0
    assert torch.equal(blank[:, 0], blank[:, 1])
    centers = set()
    for k, mask in enumerate(blank[:, 0]):
        cy = int(uniform(1, 2, index[k : k + 1], Stream.CUTOUT_ROW) * 8)
        cx = int(uniform(1, 2, index[k : k + 1], Stream.CUTOUT_COLUMN) * 8)
        expected = torch.zeros(8, 8, dtype=torch.bool)
        for y in range(cy - side // 2, cy - side // 2 + side):
            for x in range(cx - side // 2, cx - side // 2 + side):
                if 0 <= y < 8 and 0 <= x < 8:
                    expected[y, x] = True
        assert torch.equal(mask, expected)
        centers.add((cy, cx))
    assert len(centers) == 64


def test_cutout_keeps_all_other_pixels() -> None:
    images = torch.rand(10, 3, 8, 8, generator=torch.Generator().manual_seed(0)) + 1
    cut = cutout(images.clone(), torch.arange(10), seed=0, epoch=0, side=4)
    assert torch.equal(cut[cut != 0], images[cut != 0])
    assert 0 < (cut == 0).double().mean() <= 16 / 64


def test_random_erasing_masks_the_first_of_ten_boxes_that_fits() -> None:
    index = torch.arange(30, 630)
    images = torch.rand(600, 2, 9, 14, generator=torch.Generator().manual_seed(0)) + 1
    erased = random_erasing(images.clone(), index, seed=4, epoch=2, probability=0.6)
    boxes = 0
    for k, position in enumerate(index.tolist()):
        expected = images[k].clone()
        own = torch.tensor([position])
        for draw in range(10):
            counter = own * 10 + draw
            area = 9 * 14 * (0.02 + 0.31 * float(uniform(4, 2, counter, Stream.ERASE_AREA)))
            ratio = 0.3 * 11 ** float(uniform(4, 2, counter, Stream.ERASE_RATIO))
            tall, wide = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
            if tall < 9 and wide < 14:
                break
        else:
            tall = wide = 0
        if uniform(4, 2, own, Stream.ERASE) < 0.6:
            y = int(uniform(4, 2, own, Stream.ERASE_ROW) * (9 - tall + 1))
            x = int(uniform(4, 2, own, Stream.ERASE_COLUMN) * (14 - wide + 1))
            expected[:, y : y + tall, x : x + wide] = 0
            boxes += 1
        assert torch.equal(erased[k], expected)
    assert abs(boxes / 600 - 0.6) < 4 * 0.5 / 600**0.5
    some = torch.tensor([7, 599, 0])
    assert torch.equal(random_erasing(images[some], index[some], seed=4, epoch=2, probability=0.6), erased[some])
    assert torch.equal(random_erasing(images.clone(), index, seed=4, epoch=2, probability=0.0), images)


def test_erased_areas_are_those_of_torchvision() -> None:
    ones = torch.ones(4_000, 1, 32, 32)
    ours = (random_erasing(ones.clone(), torch.arange(4_000), seed=0, epoch=0, probability=1.0) == 0).sum((1, 2, 3))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transform = v2.RandomErasing(1.0)
        theirs = torch.stack([(transform(image) == 0).sum() for image in ones])
    assert stats.ks_2samp(ours.numpy(), theirs.numpy()).pvalue > 1e-3


@pytest.mark.parametrize("concentration", [0.1, 0.2, 1.0, 8.0])
def test_mixup_weights_follow_the_beta_distribution(concentration: float) -> None:
    weights = mixup_weights(0, 3, torch.arange(20_000), concentration)
    assert weights.dtype == torch.float32
    assert weights.isfinite().all()
    # float32 rounds the mass next to 1 onto 1 for small concentrations: compare up to that rounding
    values = weights.double().numpy()
    grid = np.linspace(0.001, 0.999, 400)
    empirical = np.searchsorted(np.sort(values), grid) / len(values)
    assert np.abs(empirical - stats.beta(concentration, concentration).cdf(grid)).max() < 1.95 / np.sqrt(20_000)
    some = torch.tensor([7, 19_999, 0])
    assert torch.equal(mixup_weights(0, 3, some, concentration), weights[some])


def test_mixup_partners_are_spread_evenly_over_the_positions() -> None:
    positions = torch.tensor([3, 5, 8, 13, 21])
    partners = mixup_partners(0, 0, MANY, positions)
    counts: Tensor = torch.bincount(partners)[positions]
    assert counts.sum() == len(MANY)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_same_class_samples_are_spread_evenly_over_the_others_of_the_class() -> None:
    positions = torch.tensor([2, 3, 5, 8, 9, 13, 21, 34])
    labels = torch.tensor([0, 1, 0, 2, 1, 0, 0, 1])
    for own, label in zip(positions, labels, strict=True):
        others = {int(p) for p, y in zip(positions, labels, strict=True) if y == label and p != own}
        found = [int(same_class_samples(seed, 3, own[None], positions, labels)) for seed in range(400)]
        if not others:
            assert set(found) == {int(own)}
            continue
        assert set(found) == others
        assert stats.chisquare([found.count(other) for other in others]).pvalue > 1e-3


def test_same_class_samples_do_not_depend_on_the_rest_of_the_batch() -> None:
    positions = torch.arange(1, 400, 2)
    labels = (positions // 2) % 7
    whole = dict(zip(positions.tolist(), same_class_samples(1, 2, positions, positions, labels).tolist(), strict=True))
    some = torch.tensor([399, 1, 1, 77])
    assert same_class_samples(1, 2, some, positions, labels).tolist() == [whole[int(p)] for p in some]
    assert same_class_samples(1, 2, some[:0], positions, labels).shape == (0,)
    assert whole != dict(zip(whole, same_class_samples(1, 3, positions, positions, labels).tolist(), strict=True))


def reference_cutmix(
    image: np.ndarray, partner: np.ndarray, rest: float, row: int, column: int, mixes: bool
) -> tuple[np.ndarray, float]:
    """Paste the partner's pixels one by one into a box around (row, column) that is cut at the border."""
    mixed, (height, width) = image.copy(), image.shape[1:]
    tall, wide = int(height * np.sqrt(1 - rest)), int(width * np.sqrt(1 - rest))
    pasted = 0
    for y in range(row - tall // 2, row - tall // 2 + tall):
        for x in range(column - wide // 2, column - wide // 2 + wide):
            if mixes and 0 <= y < height and 0 <= x < width:
                mixed[:, y, x] = partner[:, y, x]
                pasted += 1
    return mixed, 1 - pasted / (height * width)


@pytest.mark.parametrize("probability", [0.5, 1.0])
@pytest.mark.parametrize("size", [(8, 8), (5, 9)])
def test_cutmix_pastes_one_box_of_the_partner_cut_at_the_border(probability: float, size: tuple[int, int]) -> None:
    height, width = size
    generator = torch.Generator().manual_seed(0)
    images, partners = (torch.rand(300, 2, height, width, generator=generator) for _ in range(2))
    index = torch.arange(50, 350)
    options = {"seed": 4, "epoch": 2, "concentration": 1.0, "probability": probability}
    mixed, left = cutmix(images, partners, index, **options)  # type: ignore[arg-type]
    rests = uniform(4, 2, index, Stream.CUTMIX_BOX)  # Beta(1, 1) is uniform
    boxes = 0
    for k in range(300):
        row, column, chance = (
            float(uniform(4, 2, index[k : k + 1], stream))
            for stream in (Stream.CUTMIX_ROW, Stream.CUTMIX_COLUMN, Stream.CUTMIX)
        )
        arrays = images[k].numpy(), partners[k].numpy()
        mixes = chance < probability
        expected, share = reference_cutmix(*arrays, float(rests[k]), int(row * height), int(column * width), mixes)
        assert np.array_equal(mixed[k].numpy(), expected)
        assert float(left[k]) == pytest.approx(share, abs=1e-6)
        boxes += mixes
    assert abs(boxes / 300 - probability) < 4 * 0.5 / 300**0.5
    some = torch.tensor([7, 299, 0])
    again, left_again = cutmix(images[some], partners[some], index[some], **options)  # type: ignore[arg-type]
    assert torch.equal(again, mixed[some])
    assert torch.equal(left_again, left[some])


def test_cutmix_of_nothing_and_of_everything() -> None:
    none = torch.rand(0, 3, 8, 8)
    options = {"seed": 0, "epoch": 0, "concentration": 1.0, "probability": 1.0}
    mixed, left = cutmix(none, none, torch.arange(0), **options)  # type: ignore[arg-type]
    assert mixed.shape == none.shape
    assert left.shape == (0,)
    ones, zeros = torch.ones(2000, 1, 8, 8), torch.zeros(2000, 1, 8, 8)
    mixed, left = cutmix(ones, zeros, torch.arange(2000), **options)  # type: ignore[arg-type]
    torch.testing.assert_close(mixed.mean((1, 2, 3)), left.to(mixed.dtype))
    assert left.min() >= 0
    assert left.max() == 1
