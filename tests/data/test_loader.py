"""Batches: who gets what, and that views depend on (seed, epoch, index) alone."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kdschemes.config.data import CIFAR100, Data, Digits
from kdschemes.core.types import Batch
from kdschemes.data import DataModule, open_data
from kdschemes.data.views import Stream, mixup_partners, mixup_weights, same_class_samples, view_seed
from kdschemes.errors import UserError
from kdschemes.seeding import uniform

CPU = torch.device("cpu")
PLAIN = Digits()
RICH = Digits(flip=True, crop_padding=2, cutout=3, mixup=0.4)
FULL = replace(RICH, auto_augment="randaugment", color_jitter=[0.4, 0.4, 0.4], random_erasing=0.5, cutmix=1.0, cutout=0)


def load(options: Data = PLAIN, seed: int = 0, channels_last: bool = False) -> DataModule:
    return open_data(options, seed=seed, device=CPU, channels_last=channels_last)


def steps(
    data: DataModule,
    epoch: int = 0,
    *,
    batch_size: int = 64,
    grad_accum_steps: int = 1,
    rank: int = 0,
    world: int = 1,
    drop_last: bool = False,
    start: int = 0,
    aux_batches: Sequence[str] = (),
) -> list[list[Batch]]:
    return list(
        data.train_steps(
            epoch,
            batch_size=batch_size,
            grad_accum_steps=grad_accum_steps,
            rank=rank,
            world=world,
            drop_last=drop_last,
            start=start,
            aux_batches=aux_batches,
        )
    )


def join(batches: list[Batch], field: str) -> Tensor:
    return torch.cat([getattr(batch, field) for batch in batches])


def by_index(batches: list[Batch]) -> tuple[Tensor, Tensor]:
    """Positions in ascending order, and the views in that order."""
    index = join(batches, "index")
    return index.sort().values, join(batches, "images")[index.argsort()]


def flat(plan: list[list[Batch]]) -> list[Batch]:
    return [batch for micros in plan for batch in micros]


@pytest.fixture(scope="module", params=[RICH, FULL], ids=["rich", "full"])
def rich(request: pytest.FixtureRequest) -> DataModule:
    return load(request.param)


def test_facts() -> None:
    data = load()
    assert (data.num_classes, data.channels, data.image_size) == (10, 1, 8)
    assert data.classes == [str(digit) for digit in range(10)]
    assert sum(data.sizes.values()) == 1797
    assert data.sizes["val"] == pytest.approx(0.2 * (data.sizes["train"] + data.sizes["val"]), abs=5)


@pytest.mark.parametrize(("batch_size", "grad_accum_steps"), [(17, 1), (64, 3), (1006, 4), (200, 2)])
def test_views_do_not_depend_on_the_batch_size(rich: DataModule, batch_size: int, grad_accum_steps: int) -> None:
    index, images = by_index(flat(steps(rich, 1, batch_size=64)))
    other = flat(steps(rich, 1, batch_size=batch_size, grad_accum_steps=grad_accum_steps))
    other_index, other_images = by_index(other)
    assert torch.equal(index, other_index)
    assert torch.equal(images, other_images)
    for field in ("labels", "partner_labels", "mix"):
        values = {int(i): v.item() for b in other for i, v in zip(b.index, getattr(b, field), strict=True)}
        first = flat(steps(rich, 1, batch_size=64))
        assert all(values[int(i)] == v.item() for b in first for i, v in zip(b.index, getattr(b, field), strict=True))


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("grad_accum_steps", [1, 2])
def test_ranks_together_see_what_one_process_sees(rich: DataModule, world: int, grad_accum_steps: int) -> None:
    alone = steps(rich, 2, grad_accum_steps=grad_accum_steps)
    ranks = [steps(rich, 2, grad_accum_steps=grad_accum_steps, rank=rank, world=world) for rank in range(world)]
    assert all(len(plan) == len(alone) for plan in ranks)
    for number, micros in enumerate(alone):
        for k, batch in enumerate(micros):
            shares = [plan[number][k] for plan in ranks]
            for field in ("images", "labels", "index", "partner_labels", "mix"):
                assert torch.equal(join(shares, field), getattr(batch, field))
            sizes = [len(share) for share in shares]
            assert sizes == [len(part) for part in batch.labels.tensor_split(world)]
            assert {share.micro_size for share in shares} == {len(batch)} == {batch.micro_size}
            assert {share.step_size for share in shares} == {sum(map(len, micros))} == {batch.step_size}


def test_start_skips_whole_steps_exactly(rich: DataModule) -> None:
    whole = steps(rich, 3, grad_accum_steps=2)
    for start in (1, len(whole) - 1):
        rest = steps(rich, 3, grad_accum_steps=2, start=start)
        assert len(rest) == len(whole) - start
        for left, right in zip(flat(rest), flat(whole[start:]), strict=True):
            assert torch.equal(left.images, right.images)
            assert torch.equal(left.index, right.index)
    assert steps(rich, 3, grad_accum_steps=2, start=len(whole)) == []


def test_each_training_sample_comes_once_an_epoch_in_a_new_order_and_view(rich: DataModule) -> None:
    first, second = flat(steps(rich, 0)), flat(steps(rich, 1))
    for batches in (first, second):
        assert torch.equal(join(batches, "index").sort().values, rich.positions["train"])
        assert torch.equal(join(batches, "labels"), rich.labels["train"][join(batches, "index")])
    assert not torch.equal(join(first, "index"), join(second, "index"))
    same = (by_index(first)[1] == by_index(second)[1]).flatten(1).all(1)
    assert same.double().mean() < 0.05


def test_seed_changes_order_and_views_but_not_the_split() -> None:
    one, two = load(RICH, seed=1), load(RICH, seed=2)
    assert torch.equal(one.positions["val"], two.positions["val"])
    first, second = flat(steps(one)), flat(steps(two))
    assert not torch.equal(join(first, "index"), join(second, "index"))
    assert not torch.equal(by_index(first)[1], by_index(second)[1])
    again = flat(steps(load(RICH, seed=1)))
    assert torch.equal(join(again, "images"), join(first, "images"))


def test_split_seed_changes_the_split() -> None:
    one, two = load(), load(replace(PLAIN, split_seed=1))
    assert not torch.equal(one.positions["val"], two.positions["val"])
    assert len(one.positions["val"]) == len(two.positions["val"])


def test_channels_last_changes_the_layout_only() -> None:
    plain, last = flat(steps(load(RICH))), flat(steps(load(RICH, channels_last=True)))
    assert torch.equal(join(plain, "images"), join(last, "images"))
    assert all(batch.images.is_contiguous(memory_format=torch.channels_last) for batch in last)


def test_drop_last_leaves_out_the_small_batch_only() -> None:
    data = load()
    size = data.sizes["train"]
    assert size % 64
    kept, dropped = steps(data), steps(data, drop_last=True)
    assert len(kept) == data.steps_per_epoch(batch_size=64, drop_last=False) == size // 64 + 1
    assert len(dropped) == data.steps_per_epoch(batch_size=64, drop_last=True) == size // 64
    assert torch.equal(join(flat(kept[:-1]), "index"), join(flat(dropped), "index"))
    assert len(kept[-1][0]) == size % 64


def test_crop_offsets_and_flips_cover_everything_evenly() -> None:
    data = load(replace(PLAIN, flip=True, crop_padding=2, val_fraction=0.7))
    padded, mean, std = data.source.images["train"], data.source.mean[0], data.source.std[0]  # type: ignore[attr-defined]
    seen, flips, total = set(), 0, 0
    for epoch in range(3):
        batches = flat(steps(data, epoch, batch_size=500))
        for position, view in zip(join(batches, "index"), join(batches, "images"), strict=True):
            row, column = (int(uniform(0, epoch, position[None], stream) * 5) for stream in (Stream.ROW, Stream.COLUMN))
            flip = bool(uniform(0, epoch, position[None], Stream.FLIP) < 0.5)
            cut = padded[position, 0, row : row + 8, column : column + 8]
            expected = ((cut.flip(1) if flip else cut).float() / 255 - mean) / std
            assert torch.allclose(view[0], expected, atol=1e-6)
            seen.add((row, column))
            flips, total = flips + flip, total + 1
    assert len(seen) == 25
    assert abs(flips / total - 0.5) < 4 * 0.5 / total**0.5


def test_no_padding_and_no_flip_is_the_plain_image() -> None:
    data = load(replace(PLAIN, crop_padding=0, val_fraction=0.0))
    _, trained = by_index(flat(steps(data)))
    _, plain = by_index(list(data.eval_batches("train", batch_size=300, rank=0, world=1)))
    assert torch.equal(trained, plain)


def test_mixup_mixes_the_two_views_and_names_both_labels() -> None:
    options = replace(PLAIN, flip=True, crop_padding=2, cutout=2)
    pure, mixed = load(options), load(replace(options, mixup=0.4))
    position, view = by_index(flat(steps(pure, 5)))
    views = dict(zip(position.tolist(), view, strict=True))
    for batch in flat(steps(mixed, 5)):
        assert batch.mix is not None
        assert batch.partner_labels is not None
        partner = mixup_partners(0, 5, batch.index, mixed.positions["train"])
        assert torch.equal(batch.mix, mixup_weights(0, 5, batch.index, 0.4))
        assert torch.equal(batch.partner_labels, mixed.labels["train"][partner])
        for k in range(len(batch)):
            weight = batch.mix[k]
            expected = weight * views[int(batch.index[k])] + (1 - weight) * views[int(partner[k])]
            assert torch.allclose(batch.images[k], expected, atol=1e-6)


def test_mixup_and_cutmix_together_are_one_or_the_other_of_each() -> None:
    both = replace(PLAIN, mixup=0.4, cutmix=1.0, cutmix_probability=0.3)
    plans = [flat(steps(load(options), 5)) for options in (both, replace(both, cutmix=0.0), replace(both, mixup=0.0))]
    boxes = 0
    for batch, mixed, boxed in zip(*plans, strict=True):
        assert batch.mix is not None
        assert mixed.mix is not None
        assert boxed.mix is not None
        has_box = uniform(0, 5, batch.index, Stream.CUTMIX) < 0.3
        for chosen, other in ((has_box, boxed), (~has_box, mixed)):
            assert torch.equal(batch.images[chosen], other.images[chosen])
            assert torch.equal(batch.mix[chosen], other.mix[chosen])
        assert torch.equal(batch.partner_labels, mixed.partner_labels)
        boxes += int(has_box.sum())
    count = sum(map(len, plans[0]))
    assert abs(boxes / count - 0.3) < 4 * 0.46 / count**0.5


def test_given_mean_and_std_replace_those_of_the_data() -> None:
    own, given = load(), load(replace(PLAIN, mean=[0.5], std=[0.25]))
    assert (given.spec.mean, given.spec.std) == ((0.5,), (0.25,))
    (plain,), (other,) = (list(data.eval_batches("val", batch_size=300, rank=0, world=1)) for data in (own, given))
    pixels = plain.images * own.spec.std[0] + own.spec.mean[0]  # type: ignore[index]
    torch.testing.assert_close(other.images, (pixels - 0.5) / 0.25)


def test_without_mixup_there_is_no_partner() -> None:
    (batch,) = steps(load())[0]
    assert batch.mix is None
    assert batch.partner_labels is None


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("split", ["val", "test"])
def test_evaluation_gives_each_sample_once_in_order(split: str, world: int) -> None:
    data = load(RICH)
    batches = [b for rank in range(world) for b in data.eval_batches(split, batch_size=50, rank=rank, world=world)]
    assert torch.equal(join(batches, "index"), data.positions[split])
    labels = data.labels["test" if split == "test" else "train"]
    assert torch.equal(join(batches, "labels"), labels[data.positions[split]])
    assert max(map(len, batches)) == 50
    again = list(data.eval_batches(split, batch_size=7, rank=0, world=1))
    assert torch.equal(join(again, "images"), join(batches, "images"))


def test_evaluation_of_fewer_samples_than_processes() -> None:
    data = load(replace(PLAIN, val_fraction=0.0))
    assert data.sizes["val"] == 0
    assert list(data.eval_batches("val", batch_size=8, rank=0, world=2)) == []


def test_validation_and_test_images_are_never_trained_on() -> None:
    data = load(RICH)
    train, val = (set(data.positions[split].tolist()) for split in ("train", "val"))
    assert not train & val
    assert train | val == set(range(len(data.labels["train"])))
    for epoch in range(3):
        index = join(flat(steps(data, epoch)), "index")
        assert set(index.tolist()) == train
        partners = mixup_partners(0, epoch, index, data.positions["train"])
        assert set(partners.tolist()) <= train
    images = data.source.images  # type: ignore[attr-defined]
    inner = images["train"][:, :, 2:-2, 2:-2]
    known = {image.numpy().tobytes() for image in inner}
    assert not any(image.numpy().tobytes() in known for image in images["test"])


def test_too_small_batches_are_refused_with_a_cure() -> None:
    data = load()  # 1007 training images
    size = data.sizes["train"]
    data.check_batches(64, 2, 2, drop_last=False)
    with pytest.raises(UserError, match=r"train\.batch_size=8 or more"):
        data.check_batches(7, 2, 2, drop_last=False)
    data.check_batches(8, 2, 2, drop_last=True)
    with pytest.raises(UserError, match=rf"last batch of 1 samples \(of {size}.*train\.drop_last=true"):
        data.check_batches(size - 1, 1, 1, drop_last=False)
    data.check_batches(size - 1, 1, 1, drop_last=True)
    with pytest.raises(UserError, match=f"use train.batch_size={size} or less"):
        data.check_batches(size + 1, 1, 1, drop_last=True)
    data.check_batches(size + 1, 1, 1, drop_last=False)


@pytest.mark.parametrize("drop_last", [False, True])
def test_accepted_batches_never_leave_a_rank_with_one_sample(drop_last: bool) -> None:
    data = load(replace(PLAIN, val_fraction=0.98))
    accepted = 0
    for batch_size in range(2, data.sizes["train"] + 1):
        for grad_accum_steps, world in ((1, 1), (1, 2), (3, 1), (2, 3)):
            shape = {
                "batch_size": batch_size,
                "grad_accum_steps": grad_accum_steps,
                "world": world,
                "drop_last": drop_last,
            }
            smallest = min(
                len(batch)
                for rank in range(world)
                for micros in steps(data, rank=rank, **shape)  # type: ignore[arg-type]
                for batch in micros
            )
            try:
                data.check_batches(**shape)  # type: ignore[arg-type]
            except UserError:
                assert smallest < 2
            else:
                assert smallest >= 2
                accepted += 1
    assert accepted > 20


def test_cutout_larger_than_the_image_is_refused() -> None:
    with pytest.raises(UserError, match=r"data\.cutout=9 .* 8 pixels"):
        load(replace(PLAIN, cutout=9))


AUX_BATCHES = ("same_class", "previous", "view1", "view2")
MIXES = {
    "plain": replace(RICH, mixup=0.0),
    "mixup": RICH,
    "cutmix": replace(RICH, mixup=0.0, cutmix=1.0, cutmix_probability=1.0),
    "both": replace(RICH, cutmix=1.0, random_erasing=0.5),
}


def same_batch(a: Batch, b: Batch) -> bool:
    """Whether images, labels, positions and what is mixed in are the same to the last bit."""
    pairs = [(getattr(a, field), getattr(b, field)) for field in ("images", "labels", "index", "partner_labels", "mix")]
    return all(x is y is None or (x is not None and y is not None and torch.equal(x, y)) for x, y in pairs)


@pytest.mark.parametrize("mix", MIXES)
def test_views_of_a_sample_differ_in_pixels_alone(mix: str) -> None:
    data = load(MIXES[mix])
    for batch in flat(steps(data, 1, aux_batches=["view1", "view2"])):
        views = [batch, batch.aux_batches["view1"], batch.aux_batches["view2"]]
        for other in views[1:]:
            assert same_batch(replace(other, images=batch.images, aux_batches={}), replace(batch, aux_batches={}))
            assert (other.micro_size, other.step_size) == (batch.micro_size, batch.step_size)
        for a, b in ((0, 1), (0, 2), (1, 2)):
            equal = (views[a].images == views[b].images).flatten(1).all(1)
            assert equal.double().mean() < 0.2


def test_a_numbered_view_is_that_of_a_seed_of_its_own() -> None:
    options = MIXES["plain"]
    views = by_index([b.aux_batches["view2"] for b in flat(steps(load(options, seed=3), 1, aux_batches=["view2"]))])
    alone = by_index(flat(steps(load(options, seed=view_seed(3, 2)), 1)))
    assert torch.equal(views[1], alone[1])


@pytest.mark.parametrize("mix", MIXES)
def test_auxiliary_batches_do_not_depend_on_batches_processes_or_resuming(mix: str) -> None:
    data = load(replace(MIXES[mix], val_fraction=0.8))
    whole = steps(data, 2, aux_batches=AUX_BATCHES)

    def joined(plan: list[list[Batch]], step: int, name: str) -> Batch:
        shares = [batch.aux_batches[name] for batch in plan[step]]
        partners, mixes = (
            None if getattr(shares[0], field) is None else join(shares, field) for field in ("partner_labels", "mix")
        )
        return Batch(*(join(shares, field) for field in ("images", "labels", "index")), partners, mixes)

    for grad_accum_steps, world, start in ((1, 1, 0), (2, 1, 1), (1, 3, 2), (3, 2, 0)):
        shape = {"grad_accum_steps": grad_accum_steps, "world": world, "start": start}
        ranks = [steps(data, 2, rank=rank, aux_batches=AUX_BATCHES, **shape) for rank in range(world)]  # type: ignore[arg-type]
        plan = [[p[step][k] for k in range(grad_accum_steps) for p in ranks] for step in range(len(ranks[0]))]
        assert len(plan) == len(whole) - start
        for step in range(len(plan)):
            for name in AUX_BATCHES:
                assert same_batch(joined(plan, step, name), joined(whole, start + step, name)), (name, shape)
                micros = [batch.aux_batches[name].micro_size for batch in plan[step]]
                assert sum(micros) == world * joined(plan, step, name).labels.numel()  # type: ignore[arg-type]
    others = flat(steps(data, 2, batch_size=50, aux_batches=["view1", "same_class"]))
    for name in ("view1", "same_class"):
        owner = join(others, "index").argsort()
        pixels = join([b.aux_batches[name] for b in others], "images")[owner]
        first = flat(whole)
        assert torch.equal(pixels, join([b.aux_batches[name] for b in first], "images")[join(first, "index").argsort()])


def test_a_same_class_sample_is_another_one_in_view_1() -> None:
    data = load(MIXES["plain"])
    views = {}
    for batch in flat(steps(data, 4, aux_batches=["view1"])):
        views |= dict(zip(batch.index.tolist(), batch.aux_batches["view1"].images, strict=True))
    train = data.positions["train"]
    for batch in flat(steps(data, 4, aux_batches=["same_class"])):
        mates = batch.aux_batches["same_class"]
        assert torch.equal(mates.labels, batch.labels)
        assert not (mates.index == batch.index).any()
        assert torch.equal(mates.index, same_class_samples(0, 4, batch.index, train, data.labels["train"][train]))
        assert all(torch.equal(image, views[int(i)]) for image, i in zip(mates.images, mates.index, strict=True))


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("drop_last", [False, True])
def test_previous_are_the_samples_of_the_step_before_also_over_epochs_and_resumption(mix: str, drop_last: bool) -> None:
    data = load(replace(MIXES[mix], val_fraction=0.8))
    epochs = [steps(data, e, drop_last=drop_last, aux_batches=["view1", "previous"]) for e in range(3)]
    run = [micros for plan in epochs for micros in plan]
    (first,) = run[0]
    assert len(first.aux_batches["previous"]) == 0
    assert first.aux_batches["previous"].images.shape[1:] == first.images.shape[1:]
    assert first.aux_batches["previous"].step_size == 0
    for (before,), (batch,) in itertools.pairwise(run):
        previous, expected = batch.aux_batches["previous"], before.aux_batches["view1"]
        assert same_batch(previous, expected)
        assert (previous.micro_size, previous.step_size) == (before.micro_size, before.step_size)
    for start in range(1, len(epochs[1])):
        (batch,) = steps(data, 1, drop_last=drop_last, start=start, aux_batches=["previous"])[0]
        assert same_batch(batch.aux_batches["previous"], epochs[1][start][0].aux_batches["previous"])


def test_evaluation_has_no_auxiliary_batches() -> None:
    (batch,) = load().eval_batches("val", batch_size=1000, rank=0, world=1)
    assert batch.aux_batches == {}
    assert batch.aux_batch("view1") is batch


def test_global_random_state_is_neither_used_nor_changed() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = join(flat(steps(load(RICH))), "images")
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(join(flat(steps(load(RICH))), "images"), first)


@pytest.mark.slow
def test_cifar100(cifar100_root: Path) -> None:
    data = load(CIFAR100(root=str(cifar100_root)))
    assert (data.num_classes, data.channels, data.image_size) == (100, 3, 32)
    assert data.sizes == {"train": 45_000, "val": 5_000, "test": 10_000}
    assert torch.equal(data.labels["train"][data.positions["val"]].bincount(), torch.full((100,), 50))
    images = next(data.eval_batches("train", batch_size=5000, rank=0, world=1)).images
    assert images.mean((0, 2, 3)).abs().max() < 0.05
    assert (images.std((0, 2, 3)) - 1).abs().max() < 0.05
    (batch,) = next(data.train_steps(0, batch_size=128, grad_accum_steps=1, rank=0, world=1, drop_last=False))
    assert batch.images.shape == (128, 3, 32, 32)
    assert not set(batch.index.tolist()) & set(data.positions["val"].tolist())


def test_the_plain_batch_has_the_same_samples_without_augmentation() -> None:
    options = replace(RICH, mixup=0.0)
    augmented, unchanged = load(options), load(Digits(crop_padding=0))
    for world in (1, 3):
        ranks = [flat(steps(augmented, 2, rank=rank, world=world, aux_batches=["plain"])) for rank in range(world)]
        for batch in itertools.chain(*ranks):
            plain = batch.aux_batches["plain"]
            (expected,) = unchanged.seen_in(0, [batch.index])
            assert torch.equal(plain.index, batch.index)
            assert torch.equal(plain.labels, batch.labels)
            assert torch.equal(plain.images, expected.images)
            assert not torch.equal(plain.images, batch.images)
            assert plain.epoch is None
