"""Which training images are trained on: parts, omitted classes and shares."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from kdschemes.config.data import Data, Digits, ImageFolder
from kdschemes.config.load import load_config
from kdschemes.config.prerequisites import prerequisite_runs
from kdschemes.data import DataModule, open_data
from kdschemes.data.splits import deal_parts, dirichlet, stratified_split, trained_on
from kdschemes.errors import UserError
from kdschemes.storage.naming import config_hash
from tests.data.cases import names

CPU = torch.device("cpu")
CLASSES = [f"c{k}" for k in range(10)]
LABELS = torch.arange(10).repeat_interleave(torch.tensor([100, 37, 60, 80, 55, 91, 70, 44, 66, 3]))
TRAIN = torch.arange(len(LABELS))


def load(seed: int = 0, **options: object) -> DataModule:
    return open_data(replace(Digits(), **options), seed=seed, device=CPU)  # type: ignore[arg-type]


def chosen(**options: object) -> Tensor:
    return trained_on(replace(Digits(), **options), LABELS, TRAIN, classes=CLASSES)  # type: ignore[arg-type]


def parts(count: int, labels: Tensor = LABELS, **options: object) -> list[Tensor]:
    made = [chosen(num_partitions=count, partition=part, **options) for part in range(count)]
    joined = torch.cat(made)
    assert torch.equal(joined.sort().values, torch.arange(len(labels)))
    return made


def counts(positions: Tensor) -> list[int]:
    return LABELS[positions].bincount(minlength=10).tolist()


def test_the_default_is_the_whole_split() -> None:
    assert torch.equal(chosen(), TRAIN)
    assert torch.equal(chosen(num_partitions=3), TRAIN)
    assert torch.equal(chosen(num_partitions=3, partition=[2, 0, 1], dirichlet_alpha=0.5), TRAIN)


def test_a_share_is_stratified_rounded_half_up_and_keeps_one() -> None:
    assert counts(chosen(train_fraction=0.5)) == [50, 19, 30, 40, 28, 46, 35, 22, 33, 2]
    assert counts(chosen(train_fraction=0.01)) == [1] * 10
    assert counts(chosen(train_fraction=0.15))[0] == 15


def test_a_smaller_share_is_in_a_larger_one_and_all_images_have_equal_chances() -> None:
    before: set[int] = set()
    for train_fraction in (0.01, 0.03, 0.05, 0.1, 0.25, 0.5, 1.0):
        now = set(chosen(train_fraction=train_fraction).tolist())
        assert before < now
        before = now
    times = torch.zeros(len(LABELS))
    for seed in range(400):
        times[chosen(train_fraction=0.25, split_seed=seed)] += 1
    of_class = times[:100]  # 25 of 100 each time
    assert of_class.sum() == 400 * 25
    assert ((of_class - 100).abs() < 4.5 * (400 * 0.25 * 0.75) ** 0.5).all()


@pytest.mark.parametrize(
    "options",
    [{"train_fraction": 0.3}, {"num_partitions": 3, "partition": 1},
     {"num_partitions": 3, "partition": 1, "dirichlet_alpha": 0.5},
     {"num_partitions": 5, "partition": [0, 3], "classes_per_partition": 2}],
)  # fmt: skip
def test_the_split_seed_alone_decides(options: dict[str, object]) -> None:
    torch.manual_seed(0)
    first = load(seed=1, **options).positions["train"]
    torch.manual_seed(1)
    assert torch.equal(load(seed=2, flip=True, **options).positions["train"], first)
    assert not torch.equal(load(seed=1, split_seed=1, **options).positions["train"], first)


def test_omitted_classes_are_not_trained_on_and_stay_elsewhere() -> None:
    whole, less = load(), load(exclude_classes=[3, 7])
    assert set(less.labels["train"][less.positions["train"]].tolist()) == {0, 1, 2, 4, 5, 6, 8, 9}
    for split in ("val", "test"):
        assert torch.equal(less.positions[split], whole.positions[split])
    assert less.num_classes == 10
    assert set(less.train_labels.unique().tolist()) == {-1, 0, 1, 2, 4, 5, 6, 8, 9}
    assert (
        (less.train_labels >= 0).sum()
        == less.sizes["train"]
        == (~torch.isin(whole.train_labels, torch.tensor([-1, 3, 7]))).sum()
    )
    steps = less.train_steps(
        0, batch_size=64, grad_accum_steps=1, rank=0, world=1, drop_last=False, aux_batches=["same_class"]
    )
    for (batch,) in steps:
        assert not set(batch.labels.tolist()) & {3, 7}
        assert torch.equal(batch.aux_batches["same_class"].labels, batch.labels)


def test_equal_parts_are_stratified_and_of_equal_size() -> None:
    made = parts(4)
    sizes = [len(part) for part in made]
    assert max(sizes) - min(sizes) <= 1
    by_class = torch.tensor([counts(part) for part in made])
    assert (by_class.max(0).values - by_class.min(0).values).max() <= 1


def test_a_list_of_parts_is_their_union() -> None:
    for options in ({}, {"dirichlet_alpha": 1.0}):
        made = parts(4, **options)
        union = chosen(num_partitions=4, partition=[3, 1], **options)
        assert torch.equal(union, torch.cat([made[1], made[3]]).sort().values)


def test_parts_of_few_classes_are_disjoint_where_classes_suffice() -> None:
    for part in parts(5, classes_per_partition=2):
        assert sum(count > 0 for count in counts(part)) == 2
    made = parts(4, classes_per_partition=5)  # each class in two parts
    assert [sum(count > 0 for count in counts(part)) for part in made] == [5] * 4
    by_class = torch.tensor([counts(part) for part in made])
    assert (by_class > 0).sum(0).tolist() == [2] * 10
    assert all(max(row[row > 0]) - min(row[row > 0]) <= 1 for row in by_class.T)


def test_skewed_parts_have_the_shares_that_were_drawn() -> None:
    made = parts(3, dirichlet_alpha=0.7)
    for label in range(10):
        shares = dirichlet(0, label, 3, 0.7)
        size = sum(counts(part)[label] for part in made)
        got = torch.tensor([counts(part)[label] for part in made])
        assert (got - shares * size).abs().max() <= 1.0
    skewed, even = (dirichlet_spread(beta) for beta in (0.1, 100.0))
    assert skewed > 0.3
    assert even < 0.05


def dirichlet_spread(beta: float) -> float:
    return float(torch.stack([dirichlet(0, label, 4, beta) for label in range(200)]).std())


@pytest.mark.parametrize("beta", [0.05, 0.5, 1.0, 3.0])
def test_shares_follow_the_dirichlet_distribution(beta: float) -> None:
    """Mean 1/K and variance (K - 1) / (K^2 (K beta + 1)) of each share."""
    count, parts = 1500, 4
    shares = torch.stack([dirichlet(5, label, parts, beta) for label in range(count)])
    assert torch.allclose(shares.sum(1), torch.ones(count, dtype=torch.float64))
    variance = (parts - 1) / (parts**2 * (parts * beta + 1))
    assert ((shares.mean(0) - 1 / parts).abs() < 4.5 * (variance / count) ** 0.5).all()
    assert shares.var(0) == pytest.approx(variance, rel=0.1)


def test_shares_of_a_tiny_concentration_are_numbers() -> None:
    """Gamma(0.001) is below the smallest float nearly always: log space keeps the largest share."""
    shares = torch.stack([dirichlet(0, label, 3, 0.001) for label in range(300)])
    assert shares.isfinite().all()
    assert (shares.max(1).values > 0.9).double().mean() > 0.98
    assert shares.argmax(1).bincount(minlength=3).min() > 60


def test_part_then_omit_then_fraction() -> None:
    part = chosen(num_partitions=3, partition=2)
    less = chosen(num_partitions=3, partition=2, exclude_classes=[0, 4], train_fraction=0.5)
    assert set(less.tolist()) <= set(part.tolist())
    expected = [0 if label in (0, 4) else max(1, int(count / 2 + 0.5)) for label, count in enumerate(counts(part))]
    assert counts(less) == expected
    wider = chosen(num_partitions=3, partition=[1, 2], train_fraction=0.5)
    from_each = [
        len(set(wider.tolist()) & set(chosen(num_partitions=3, partition=number).tolist())) for number in (1, 2)
    ]
    assert min(from_each) / max(from_each) > 0.75  # a share of a union comes from all its parts


ERRORS = [
    ({"exclude_classes": [10]}, r"data\.exclude_classes=\[10\]: there is no class 10, classes are 0 to 9"),
    ({"exclude_classes": list(range(10))}, r"data\.exclude_classes=.* leaves no training images"),
    ({"num_partitions": 3, "partition": 3}, r"data\.partition=3: no such partition, .*num_partitions=3 has 0 to 2"),
    ({"partition": [0, 4], "num_partitions": 2}, r"data\.partition=4: no such partition"),
    ({"dirichlet_alpha": 0.5}, r"data\.dirichlet_alpha=0\.5 has no effect with data\.num_partitions=1"),
    ({"classes_per_partition": 2}, r"data\.classes_per_partition=2 has no effect with data\.num_partitions=1"),
    ({"num_partitions": 5, "classes_per_partition": 2, "dirichlet_alpha": 1.0}, "exclude each other"),
    ({"num_partitions": 3, "classes_per_partition": 2}, "does not fit 10 classes.*use 4 to 10"),
    ({"num_partitions": 3, "classes_per_partition": 11}, r"data\.classes_per_partition=11 .* use 4 to 10"),
    ({"num_partitions": 40, "dirichlet_alpha": 0.005}, r"without training images .*data\.dirichlet_alpha"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "message"), ERRORS)
def test_what_does_not_fit_is_refused_in_one_line(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        chosen(**options)
    assert "\n" not in str(error.value)


def test_a_part_may_not_lose_all_its_classes() -> None:
    part = deal_parts(replace(Digits(), num_partitions=5, classes_per_partition=2), LABELS, num_classes=10)
    exclude_classes = LABELS[part == 0].unique().tolist()
    with pytest.raises(UserError, match=r"leaves no training images of data\.partition=0"):
        chosen(num_partitions=5, partition=0, classes_per_partition=2, exclude_classes=exclude_classes)


@pytest.mark.parametrize(
    "word",
    ["data.train_fraction=0", "data.train_fraction=1.5", "data.exclude_classes=3", "data.exclude_classes=[-1]",
     "data.num_partitions=0", "data.partition=-1", "data.partition=[]", "data.dirichlet_alpha=0",
     "data.classes_per_partition=0", "data.num_partitions=true"],
)  # fmt: skip
def test_values_out_of_range_are_refused_before_training(word: str) -> None:
    with pytest.raises(UserError, match=re.escape(word.partition("=")[0]) + "=.* is not allowed .*must be "):
        load_config([word], recipes=Path())


def test_image_folders_are_chosen_from_too(tmp_path: Path) -> None:
    for split, count in (("train", 8), ("test", 2)):
        for name in ("ant", "bee"):
            (tmp_path / split / name).mkdir(parents=True)
            for k in range(count):
                Image.new("RGB", (8, 8), (k, k, k)).save(tmp_path / split / name / f"{k}.png")
    options = ImageFolder(
        root=str(tmp_path),
        image_size=8,
        num_workers=0,
        val_fraction=0.25,
        num_partitions=2,
        partition=0,
        exclude_classes=[1],
    )
    data = open_data(options, seed=0, device=CPU)
    assert data.sizes == {"train": 3, "val": 4, "test": 4}
    assert set(data.labels["train"][data.positions["train"]].tolist()) == {0}


SUBSET = [
    "data.train_fraction=0.5",
    "data.exclude_classes=[3]",
    "data.num_partitions=4",
    "data.partition=[0,1]",
    "data.dirichlet_alpha=2",
]


def configure(*words: str) -> tuple[Data, Sequence[Data]]:
    config = load_config(words, recipes=Path())
    return config.data, [run.data for run in prerequisite_runs(config)]


def test_a_teacher_that_is_trained_first_sees_all_images() -> None:
    own, teachers = configure("scheme=offline", "teacher=[resnet20,resnet32]", "data.flip=true", *SUBSET)
    assert own.num_partitions == 4
    assert teachers == [Digits(flip=True), Digits(flip=True)]
    for method in ("method=takd", "method=ban"):
        scheme = "scheme=offline" if method == "method=takd" else "scheme=self"
        own, others = configure(scheme, method, *SUBSET)
        assert others
        assert all(data == own for data in others)


def test_each_option_names_another_run() -> None:
    hashes = {config_hash(load_config([word], recipes=Path())) for word in ["seed=0", *SUBSET]}
    assert len(hashes) == 1 + len(SUBSET)


def test_the_epoch_of_a_batch_is_that_of_its_view() -> None:
    data = load()
    for (batch,) in data.train_steps(
        3,
        batch_size=500,
        grad_accum_steps=1,
        rank=0,
        world=1,
        drop_last=False,
        aux_batches=["view1", "same_class", "previous"],
    ):
        assert batch.epoch == 3
        assert {aux_batch.epoch for aux_batch in batch.aux_batches.values()} == {None}
    assert {batch.epoch for batch in data.eval_batches("val", batch_size=100, rank=0, world=1)} == {None}


def test_split_is_stratified_disjoint_and_complete() -> None:
    labels = torch.tensor([0] * 100 + [1] * 30 + [2] * 7)[
        torch.randperm(137, generator=torch.Generator().manual_seed(0))
    ]
    kept, held = stratified_split(labels, 0.2, seed=3, classes=names(3))
    assert torch.equal(torch.cat([kept, held]).sort().values, torch.arange(137))
    assert labels[held].bincount().tolist() == [20, 6, 1]
    assert torch.equal(kept.sort().values, kept)


def test_split_depends_on_its_seed_only() -> None:
    labels = torch.arange(400) % 4
    torch.manual_seed(0)
    first = stratified_split(labels, 0.25, seed=0, classes=names(4))[1]
    torch.manual_seed(1)
    assert torch.equal(stratified_split(labels, 0.25, seed=0, classes=names(4))[1], first)
    assert not torch.equal(stratified_split(labels, 0.25, seed=1, classes=names(4))[1], first)


def test_split_holds_out_any_sample_with_equal_chance() -> None:
    labels = torch.zeros(20, dtype=torch.long)
    counts = torch.zeros(20)
    for seed in range(2000):
        counts[stratified_split(labels, 0.25, seed=seed, classes=["c0"])[1]] += 1
    assert counts.sum() == 2000 * 5
    assert ((counts - 500).abs() < 4.5 * (2000 * 0.25 * 0.75) ** 0.5).all()


def test_split_of_nothing() -> None:
    kept, held = stratified_split(torch.arange(9) % 3, 0.0, seed=0, classes=names(3))
    assert torch.equal(kept, torch.arange(9))
    assert len(held) == 0


def test_small_classes_keep_one_sample() -> None:
    labels = torch.tensor([0] * 10 + [1] + [2] * 2)
    kept, held = stratified_split(labels, 0.9, seed=0, classes=names(3))
    assert labels[held].bincount(minlength=3).tolist() == [9, 0, 1]
    assert labels[kept].bincount(minlength=3).tolist() == [1, 1, 1]


def test_split_refuses_an_empty_class_and_a_share_that_gives_nothing() -> None:
    with pytest.raises(UserError, match="class 'c1' has no training images"):
        stratified_split(torch.tensor([0, 0, 2, 2]), 0.5, seed=0, classes=names(3))
    with pytest.raises(UserError, match=r"data\.val_fraction=0\.1 holds out no images"):
        stratified_split(torch.tensor([0, 0, 1, 1]), 0.1, seed=0, classes=names(2))
