"""Data of the user's own with several labels per image: what is read, split, mixed and refused."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import kdschemes
from kdschemes.config import code
from kdschemes.config.load import load_config
from kdschemes.core.types import Batch, DataSpec, Progress
from kdschemes.data import open_data
from kdschemes.data.loader import DataModule
from kdschemes.errors import UserError
from kdschemes.schemes import build_scheme
from tests import REPOSITORY


def rows(count: int, seed: int = 0) -> NDArray[np.int64]:
    return (np.random.default_rng(seed).random((count, 5)) < 0.4).astype(np.int64)


def images(count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 255, (count, 8, 8), dtype=np.uint8)


def splits(kind: type = int) -> dict[str, Any]:
    return {"train": (images(40), rows(40).astype(kind)), "test": (images(10), rows(10, 2).astype(kind))}


class Items(torch.utils.data.Dataset[Any]):
    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        return torch.full((3, 8, 8), float(index)), torch.tensor(rows(self.count)[index], dtype=torch.float32)


def opened(made: Any, *words: str) -> DataModule:
    name = code.give(made, "data", f"{random.SystemRandom().getrandbits(64):016x}")
    config = load_config(["scheme=supervised", f"data={name}", *words], recipes=REPOSITORY)
    return open_data(config.data, seed=3, device=torch.device("cpu"))


@pytest.mark.parametrize("kind", [int, bool, float])
def test_rows_of_zeros_and_ones_are_labels(kind: type) -> None:
    data = opened(splits(kind), "data.val_fraction=0.25")
    assert data.spec.multi_label
    assert data.num_classes == 5
    assert data.sizes == {"train": 30, "val": 10, "test": 10}
    (batch,) = data.eval_batches("test", batch_size=16, rank=0, world=1)
    assert torch.equal(batch.labels, torch.from_numpy(rows(10, 2)))
    assert data.evaluated("val") == 10


def test_a_data_set_gives_rows_too() -> None:
    data = opened({"train": Items(20), "test": Items(6)}, "data.val_fraction=0", "data.num_workers=0")
    (batch,) = data.eval_batches("test", batch_size=16, rank=0, world=1)
    assert torch.equal(batch.labels, torch.from_numpy(rows(6)))


def test_partners_of_mixup_bring_their_rows() -> None:
    data = opened(splits(), "data.val_fraction=0", "data.mixup=0.5")
    sizes = {"batch_size": 40, "grad_accum_steps": 1, "drop_last": False}
    ((batch,),) = list(data.train_steps(0, rank=0, world=1, **sizes))
    assert batch.partner_labels is not None
    assert batch.partner_labels.shape == (40, 5)
    truth = torch.from_numpy(rows(40))
    assert torch.equal(batch.labels, truth[batch.index])
    assert sorted(map(tuple, batch.partner_labels.tolist())) != []


@pytest.mark.parametrize(
    ("made", "words", "said"),
    [
        ({**splits(), "test": (images(10), np.arange(10) % 5)}, [], "other splits have labels of another shape"),
        ({**splits(), "test": (images(10), rows(10) * 2)}, [], "labels are 0 to 2, and must be 0 to 1 for 5 classes"),
        (
            {**splits(), "test": (images(10), rows(10) * 0.5)},
            [],
            "whole numbers, one an image, or rows of 0 and 1",
        ),
        (splits(), ["data.num_classes=6"], "labels have 5 columns, and data.num_classes=6"),
        (
            splits(),
            ["data.num_partitions=2", "data.partition=0"],
            "data.num_partitions needs images with one label",
        ),
        (splits(), ["data.exclude_classes=[1]"], "data.exclude_classes needs images with one label each"),
    ],
)
def test_labels_that_do_not_fit_are_refused(made: Any, words: list[str], said: str) -> None:
    with pytest.raises(UserError) as error:
        opened(made, *words)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


SPEC = DataSpec(5, 1, 8, multi_label=True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["scheme=online"], "losses.response=kd needs one: choose logit_mse, mld, none"),
        (
            ["scheme=online", "method=kdcl"],
            "method=kdcl of scheme=online needs one: choose supervised/ce, ",
        ),
        (["scheme=online", "losses.response=mld", "losses.relation=crd"], "losses.relation=crd needs one"),
        (["scheme=supervised", "train.label_smoothing=0.1"], "train.label_smoothing needs one"),
        (["scheme=supervised", "scheme.label_smoothing=0.1"], "scheme.label_smoothing needs one"),
        (["scheme=supervised", "data.sampling=balanced"], "data.sampling needs one"),
    ],
)
def test_what_needs_one_label_is_refused(words: list[str], said: str) -> None:
    with pytest.raises(UserError) as error:
        build_scheme(load_config([*words, "model=lenet5"], recipes=REPOSITORY), SPEC)
    assert said in str(error.value)


@pytest.mark.parametrize(
    "words",
    [
        ["scheme=supervised"],
        ["scheme=supervised", "method=deep_supervision"],
        ["scheme=online", "losses.response=mld", "losses.feature=at", "losses.relation=rkd"],
        ["scheme=self", "losses.response=mld"],
    ],
)
def test_schemes_of_several_labels_learn(words: list[str]) -> None:
    scheme = build_scheme(load_config([*words, "model=wrn_16_1"], recipes=REPOSITORY), SPEC)
    labels = torch.from_numpy(rows(12))
    batch = Batch(torch.randn(12, 1, 8, 8), labels, torch.arange(12))
    result = scheme(batch, Progress(0, 10, 5))
    result.total.backward()
    lacking = [name for name, p in scheme.named_parameters() if p.requires_grad and p.grad is None]
    assert not lacking
    assert result.total.isfinite()


def test_a_loop_of_the_users_own_says_that_there_are_several() -> None:
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 5))
    sizes: dict[str, Any] = {"images": torch.zeros(2, 1, 8, 8), "num_classes": 5, "total_steps": 4}
    x, y = torch.randn(6, 1, 8, 8), torch.from_numpy(rows(6))
    with pytest.raises(UserError, match=r"labels are \[6, 5\]: give class indices, one per image"):
        kdschemes.distill("scheme=supervised", student=network, **sizes)(x, y)
    loss = kdschemes.distill("scheme=supervised", student=network, multi_label=True, **sizes)(x, y)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(network(x), y.float(), reduction="sum") / 6
    torch.testing.assert_close(loss, expected)
    with pytest.raises(UserError, match=r"losses\.response=kd needs one"):
        kdschemes.distill("scheme=online", student=[network, torch.nn.Linear(2, 2)], multi_label=True, **sizes)
