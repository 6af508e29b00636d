"""The user's own images: what is read, what is refused, and that views are a function of (seed, epoch, index, view)."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from kdschemes.config import code
from kdschemes.config.code import CodeRefused
from kdschemes.config.data import OwnData
from kdschemes.config.load import allow_typed, build_config, load_config
from kdschemes.config.naming import to_tree
from kdschemes.core.types import Batch
from kdschemes.data import DataModule, open_data
from kdschemes.data.augment import Augmentation
from kdschemes.errors import UserError
from kdschemes.storage import own_data
from kdschemes.storage.naming import run_name
from kdschemes.teacher_cache.key import images_digest

CPU = torch.device("cpu")
LABELS = np.arange(12) % 3
PIXELS = np.random.default_rng(0).integers(0, 255, (12, 8, 8, 3), dtype=np.uint8)


class Items(Dataset[Any]):
    """Random views by torch, NumPy and Python."""

    def __init__(self, count: int = 12, targets: bool = True) -> None:
        self.count, self.calls = count, 0
        if targets:
            self.targets = [k % 3 for k in range(count)]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.calls += 1
        return torch.rand(3, 8, 8) + float(np.random.random()) + random.random() + index, index % 3


class Pictures(Dataset[Any]):
    def __init__(self, sizes: tuple[int, ...] = (8,)) -> None:
        self.sizes, self.classes = sizes, ["cat", "dog", "eel"]

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        side = self.sizes[index % len(self.sizes)]
        return Image.fromarray(PIXELS[index]).resize((side, side)), index % 3


def opened(made: Any, seed: int = 0, **options: Any) -> DataModule:
    return open_data(OwnData(name=give(made), **({"val_fraction": 0.25} | options)), seed=seed, device=CPU)


def give(made: Any) -> str:
    return code.give(made, "data", f"{random.SystemRandom().getrandbits(64):016x}")


PAIR = (PIXELS, LABELS)


@pytest.mark.parametrize(
    "made",
    [
        {"train": PAIR, "test": PAIR},
        SimpleNamespace(train=PAIR, test=PAIR),
        (PAIR, PAIR),
        {"train": (torch.from_numpy(PIXELS), torch.from_numpy(LABELS)), "test": (PIXELS.transpose(0, 3, 1, 2), LABELS)},
        (Pictures(), Pictures()),
    ],
    ids=["dictionary", "attributes", "tuple", "layouts", "pictures"],
)
def test_bytes_of_one_size_are_in_memory(made: Any) -> None:
    data = opened(made, val_fraction=0.25, crop_padding=0, flip=False)
    assert data.sizes == {"train": 9, "val": 3, "test": 12}
    (images,) = data.source.plain("test", [torch.arange(12)])
    mean, std = PIXELS.mean((0, 1, 2)) / 255, PIXELS.std((0, 1, 2)) / 255
    wanted = (PIXELS.transpose(0, 3, 1, 2) / 255.0 - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(images.double(), torch.from_numpy(wanted), rtol=1e-3, atol=1e-3)
    assert data.labels["test"].tolist() == LABELS.tolist()
    assert len(images_digest(data, print)) == 64


def test_a_validation_split_of_its_own_gray_images_and_given_statistics() -> None:
    gray = (PIXELS[..., 0], LABELS)
    made = {"train": gray, "test": gray, "val": (PIXELS[:3, ..., 0], LABELS[:3])}
    data = opened(made, mean=[0.5], std=[0.25], num_classes=4)
    assert data.sizes == {"train": 12, "val": 3, "test": 12}
    assert (data.channels, data.image_size, data.num_classes, data.classes[3]) == (1, 8, 4, "3")
    (images,) = data.source.plain("train", [data.positions["val"]])
    torch.testing.assert_close(images, (torch.from_numpy(PIXELS[:3, None, ..., 0]) / 255 - 0.5) / 0.25)


def views(data: DataModule, epoch: int, index: list[int], number: int = 0) -> Tensor:
    return next(iter(data.source.views(epoch, [torch.tensor(index)], number)))


def test_random_transforms_are_a_function_of_seed_epoch_index_and_view() -> None:
    data, other = opened((Items(), Items())), opened((Items(), Items()), seed=1)
    torch.manual_seed(3)
    first = views(data, 2, [5, 7])
    torch.manual_seed(4)
    random.seed(5)
    assert torch.equal(views(data, 2, [7, 1, 5])[[2, 0]], first)
    assert torch.equal(views(opened((Items(), Items())), 2, [5, 7]), first)
    for changed in (views(data, 3, [5, 7]), views(other, 2, [5, 7]), views(data, 2, [5, 7], 1), views(data, 2, [6, 8])):
        assert not (changed == first).any()
    plain = [next(iter(each.source.plain("train", [torch.tensor([5])]))) for each in (data, other)]
    assert torch.equal(*plain)
    assert data.source.mean is None


def test_the_generators_of_the_user_go_on_as_if_nothing_had_been_read() -> None:
    def draw() -> tuple[float, ...]:  # not Python's: type checks in tests draw from it
        return float(torch.rand(())), float(np.random.random())

    for act in (lambda: None, lambda: opened((Items(targets=False), Items()))):
        torch.manual_seed(0)
        np.random.seed(0)
        act()
        drawn = draw()
    torch.manual_seed(0)
    np.random.seed(0)
    assert draw() == drawn


def test_workers_make_the_same_views() -> None:
    alone, with_workers = opened((Items(), Items())), opened((Items(), Items()), num_workers=1)
    assert torch.equal(views(alone, 1, [3, 4]), views(with_workers, 1, [3, 4]))


def test_pictures_of_different_sizes_are_cropped_like_those_of_a_folder() -> None:
    data = opened((Pictures((8, 12)), Pictures((8, 12))), image_size=6)
    assert data.classes == ["cat", "dog", "eel"]
    first = views(data, 0, [0, 1, 2])
    assert first.shape == (3, 3, 6, 6)
    assert torch.equal(first, views(data, 0, [0, 1, 2]))
    assert not torch.equal(first, views(data, 1, [0, 1, 2]))


def test_bytes_and_pictures_are_augmented_and_floats_are_refused() -> None:
    colors = {"auto_augment": "randaugment", "color_jitter": 0.4}
    index = [0, 1, 2, 5]
    for made, size in (((PAIR, PAIR), {}), ((Pictures((8, 12)), Pictures((8, 12))), {"image_size": 6})):
        plain, data = opened(made, **size), opened(made, **size, **colors)
        mean, std = (torch.tensor(values)[:, None, None] for values in (data.source.mean, data.source.std))
        pixels = ((views(plain, 3, index) * std + mean) * 255).round().to(torch.uint8)
        changed = Augmentation.of(data.options)(pixels, torch.tensor(index), seed=0, epoch=3)
        torch.testing.assert_close(views(data, 3, index), (changed / 255 - mean) / std)
        assert not torch.equal(views(data, 3, index), views(plain, 3, index))
    with pytest.raises(UserError, match=r"are floats, and data\.auto_augment and data\.color_jitter change"):
        opened((Items(), Items()), **colors)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        raise NotImplementedError


class Unseeded(Items):
    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.full((3, 8, 8), random.SystemRandom().random()), 0


class Cropped(Pictures):
    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(np.random.randint(0, 255, (8, 8, 3), dtype=np.uint8)), 0


class Deep(Items):
    def __getitem__(self, index: int) -> Any:
        return Image.fromarray(np.full((8, 8), 300, np.uint16)), index % 3


class Broken(Items):
    def __getitem__(self, index: int) -> Any:
        return {"image": 1}


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ({"train": PAIR}, "there is no test in a dict: it must return train and test"),
        ((PAIR, PAIR, PAIR), "there is no train in a tuple: .* in a dictionary, or as attributes"),
        ((Deep(), Deep()), "mode I;16 has more than 8 bits per channel: convert it to 8 bits"),
        ((Stream(), PAIR), "train is an iterable data set, whose images cannot be asked for by number"),
        ((Unseeded(), Items()), "item 0 of train differs between two calls with the same seeds"),
        ((Cropped(), Cropped()), "the images of train are changed at random, but not yet numbers"),
        ((Broken(), Items()), r"item 0 of train is no pair \(image, label\) \(KeyError: 0\)"),
        ((PAIR, (PIXELS[:5], LABELS)), "test has 5 images and 12 labels"),
        ((PAIR, (PIXELS, LABELS / 2)), "the labels of test must be whole numbers"),
        ((PAIR, (PIXELS, LABELS - 1)), r"labels are -1 to 2, and must be 0 to 2 for 3 classes \(data\.num_classes\)"),
        ((PAIR, (PIXELS[:, :7], LABELS)), "must be square, of one size, .* train 3x8x8, test 3x7x8"),
        ((PAIR, (PIXELS.astype(np.int64), LABELS)), r"images of test are int64 \[12, 8, 8, 3\]: give uint8"),
        ((PAIR, 3), "test is a int: give a pair"),
        ((PAIR, Items()), "the images of train, test are pixels, tensors: use one kind"),
    ],
)
def test_what_cannot_be_used_is_one_line(made: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        opened(made)
    assert "\n" not in str(caught.value)


FILE = """
import numpy as np
def make(count=12, shift=0):
    labels = np.arange(count) % 3
    images = np.zeros((count, 8, 8), np.uint8) + shift
    return {"train": (images, labels), "test": (images, labels)}
def fail():
    raise KeyError("root")
"""


def test_a_file_needs_permission_and_counts_by_content(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(code.ALLOWED, "")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images.py").write_text(FILE)

    def load(*words: str) -> Any:
        allow_typed(words, recipes=tmp_path)
        return load_config(words, recipes=tmp_path)

    first = load("data=images.py:make", "data.kwargs.count=15")
    assert run_name(first).startswith("online-dml-images.make_")
    assert open_data(first.data, seed=0, device=CPU).sizes["test"] == 15
    assert build_config(to_tree(first)) == first
    names = {run_name(load("data=images.py:make", f"data.kwargs.shift={shift}")) for shift in (0, 1)}
    assert len({*names, run_name(first)}) == 3
    with pytest.raises(UserError, match=r"data images\.py:fail fails \(KeyError: 'root', images\.py line 8\)"):
        run_name(load("data=images.py:fail"))
    monkeypatch.setenv(code.ALLOWED, "")
    own_data._READ.clear()
    with pytest.raises(CodeRefused, match=r"data images\.py:make is Python code that a file names"):
        run_name(first)


def test_tensors_of_a_tensor_dataset() -> None:
    images = torch.randn(12, 1, 4, 4)
    data = opened((TensorDataset(images, torch.from_numpy(LABELS)), TensorDataset(images, torch.from_numpy(LABELS))))
    assert torch.equal(next(iter(data.source.plain("test", [torch.tensor([3, 1])]))), images[[3, 1]])


# ----------------------------------------------------------------------------------------------- images without labels

MORE = PIXELS[:5] // 2


def epoch(data: DataModule, *, world: int) -> list[list[Batch]]:
    """Return the batches of an epoch, of each process."""
    options = {"batch_size": 4, "grad_accum_steps": 1, "world": world, "drop_last": False}
    return [[batch for (batch,) in data.train_steps(1, rank=rank, **options)] for rank in range(world)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("labelled", "more"),
    [
        (PAIR, MORE),
        (PAIR, (MORE, LABELS[:5])),
        (PAIR, [Image.fromarray(each) for each in MORE]),
        (Pictures(sizes=(8, 10)), Pictures(sizes=(9,))),
        (Items(), Items(5)),
        ((PIXELS.transpose(0, 3, 1, 2) / 255, LABELS), MORE.transpose(0, 3, 1, 2) / 255),
    ],
    ids=["array", "pair", "images", "pictures", "tensors", "floats"],
)
def test_images_without_labels_are_in_one_order_with_the_others(labelled: Any, more: Any) -> None:
    made = {"train": labelled, "test": labelled, "val": labelled, "pool": more}
    plain, data = opened(made, image_size=None), opened(made, image_size=None, unlabelled="pool")
    count = len(data.positions["train"]) - 12
    assert count == (12 if isinstance(more, Pictures) else 5)
    assert data.positions["train"].tolist() == [*range(12), *range(24, 24 + count)]
    for split in ("val", "test"):
        assert torch.equal(data.positions[split], plain.positions[split])
    assert (data.labels["train"][24:] == -1).all()
    assert data.digest != plain.digest
    (steps,) = epoch(data, world=1)
    order = torch.cat([batch.index for batch in steps])
    assert sorted(order.tolist()) == data.positions["train"].tolist()
    assert order.tolist() != sorted(order.tolist())
    assert torch.cat([batch.labels for batch in steps])[order >= 24].tolist() == [-1] * count
    again = [next(data.seen_in(1, [batch.index])).images for batch in steps]
    assert all(torch.equal(view, batch.images) for view, batch in zip(again, steps, strict=True))
    shared = epoch(data, world=2)
    for whole, *parts in zip(steps, *shared, strict=True):
        assert torch.equal(whole.images, torch.cat([part.images for part in parts]))
    assert sum(map(len, data.eval_batches("train", batch_size=5, rank=0, world=1))) == 12 == data.evaluated("train")
    assert "without labels" in data.notes[-1]


def test_images_without_labels_change_neither_split_nor_the_views_of_others() -> None:
    made = {"train": PAIR, "test": PAIR, "pool": MORE}
    plain, data = opened(made, train_fraction=0.5), opened(made, train_fraction=0.5, unlabelled="pool")
    trained = plain.positions["train"]
    assert torch.equal(data.positions["train"], torch.cat([trained, torch.arange(12, 17)]))
    assert torch.equal(data.positions["val"], plain.positions["val"])
    (own,), (with_more,) = plain.seen_in(3, [trained]), data.seen_in(3, [trained])
    assert torch.equal(own.images, with_more.images)


def test_what_is_wrong_with_images_without_labels() -> None:
    made = {"train": PAIR, "test": PAIR, "pool": MORE, "small": MORE[:, :4, :4], "nothing": 3}
    for key, why in (("pol", "there is no pol"), ("small", "must be square, of one size"), ("nothing", "give")):
        with pytest.raises(UserError, match=why):
            opened(made, unlabelled=key)
