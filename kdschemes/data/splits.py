"""Splits, partitions and subsets of the training images, which depend only on labels, options and a seed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kdschemes.config.data import Data
from kdschemes.data.views import Stream
from kdschemes.errors import UserError
from kdschemes.seeding import uniform


def stratified_split(
    labels: Int[Tensor, " n"], fraction: float, *, seed: int, classes: Sequence[str]
) -> tuple[Int[Tensor, " kept"], Int[Tensor, " held"]]:
    """Hold out `fraction` of each class at random; return the positions kept and held out, ascending.

    The number is rounded per class (half up), and each class keeps at least one sample.

    Raises:
        UserError: a class has no samples, or `fraction` is positive but no sample is held out.
    """
    order = torch.argsort(uniform(seed, 0, torch.arange(len(labels)), Stream.SPLIT), stable=True)
    ranked = labels[order]
    held = torch.zeros(len(labels), dtype=torch.bool)
    for label, name in enumerate(classes):
        members = order[ranked == label]
        if len(members) == 0:
            raise UserError(f"class '{name}' has no training images: remove the class or add images")
        held[members[: min(math.floor(fraction * len(members) + 0.5), len(members) - 1)]] = True
    if fraction > 0 and not held.any():
        raise UserError(
            f"data.val_fraction={fraction} holds out no images because the classes are too small: "
            "use a larger fraction, or 0 for no validation split"
        )
    return (~held).nonzero().flatten(), held.nonzero().flatten()


def trained_on(
    options: Data, labels: Int[Tensor, " n"], train: Int[Tensor, " split"], *, classes: Sequence[str]
) -> Int[Tensor, " chosen"]:
    """Return the positions of the training split `train` to train on, ascending.

    Starting from `options.partition` (null: the whole split), the classes in `options.exclude_classes` are dropped, and
    `options.train_fraction` of each remaining class is kept, rounded half up, at least one sample. `labels` is indexed
    by the positions in `train`.

    Raises:
        UserError: options do not fit each other or the classes, a partition is empty, or nothing is left.
    """
    _check_parts(options, len(classes))
    chosen = train
    if options.num_partitions > 1:
        part = deal_parts(options, labels[train], num_classes=len(classes))
        sizes = part.bincount(minlength=options.num_partitions).tolist()
        if 0 in sizes:
            raise UserError(
                f"data.num_partitions={options.num_partitions} leaves partition {sizes.index(0)} without training "
                f"images (data.dirichlet_alpha={_shown(options.dirichlet_alpha)}): use fewer partitions, a larger "
                "data.dirichlet_alpha or another data.split_seed"
            )
        if options.partition is not None:
            chosen = train[torch.isin(part, torch.tensor(_as_list(options.partition)))]
    for label in options.exclude_classes:
        if label >= len(classes):
            raise UserError(
                f"data.exclude_classes={options.exclude_classes}: there is no class {label}, "
                f"classes are 0 to {len(classes) - 1}"
            )
    chosen = chosen[~torch.isin(labels[chosen], torch.tensor(options.exclude_classes, dtype=torch.long))]
    if len(chosen) == 0:
        where = "" if options.partition is None else f" of data.partition={options.partition}"
        raise UserError(
            f"data.exclude_classes={options.exclude_classes} leaves no training images{where}: exclude fewer classes"
        )
    return _share_of_each_class(chosen, labels[chosen], options.train_fraction, seed=options.split_seed)


def deal_parts(options: Data, labels: Int[Tensor, " split"], *, num_classes: int) -> Int[Tensor, " split"]:
    """Return the partition, 0 to `options.num_partitions` - 1, of each sample of the training split.

    The samples of each class, in random order, are assigned round-robin, so partitions have equal shares of every
    class. With `classes_per_partition` = k, only partitions with that class take part: classes in random order are
    assigned to the partitions k at a time, cycling through the classes. With `dirichlet_alpha` = beta, a class is split
    into pieces whose sizes are drawn from Dirichlet(beta, ..., beta), each boundary rounded half up.
    """
    parts, seed = options.num_partitions, options.split_seed
    owners = _owners(parts, options.classes_per_partition, num_classes, seed)
    order = torch.argsort(uniform(seed, 0, torch.arange(len(labels)), Stream.PART), stable=True)
    ranked = labels[order]
    part = torch.empty_like(labels)
    dealt = 0
    for label in range(num_classes):
        members = order[ranked == label]
        if options.dirichlet_alpha is not None:
            shares = dirichlet(seed, label, parts, options.dirichlet_alpha)
            ends = (shares.cumsum(0)[:-1] * len(members) + 0.5).floor()
            part[members] = torch.searchsorted(ends, torch.arange(len(members)).double(), right=True)
        else:
            turn = (dealt + torch.arange(len(members))) % len(owners[label])
            part[members] = torch.tensor(owners[label])[turn]
            dealt += len(members)
    return part


def dirichlet(seed: int, label: int, parts: int, concentration: float) -> Float[Tensor, " parts"]:
    """Return one class's shares ~ Dirichlet(a, ..., a), a = `concentration`, in float64; they sum to 1.

    Samples from Gamma(a), by inverting its CDF P(a, x) at uniform numbers, are divided by their sum. If x is too small
    for a float, log x = (log P + log Gamma(a + 1)) / a, because there P(a, x) = x^a / Gamma(a + 1).
    """
    from scipy.special import gammaincinv  # a library that other splits do not need

    index = torch.arange(label * parts, (label + 1) * parts)
    share = uniform(seed, 0, index, Stream.PART_SHARE).clamp(min=2.0**-54)
    drawn = torch.from_numpy(gammaincinv(concentration, share.numpy()))
    tiny = (share.log() + math.lgamma(concentration + 1.0)) / concentration
    return torch.where(drawn > 1e-300, drawn.clamp(min=1e-300).log(), tiny).softmax(0)


def _owners(parts: int, classes_per_partition: int | None, num_classes: int, seed: int) -> list[list[int]]:
    """Return the partitions that have each class, ascending."""
    if classes_per_partition is None:
        return [list(range(parts))] * num_classes
    order = torch.argsort(uniform(seed, 0, torch.arange(num_classes), Stream.PART_CLASS), stable=True).tolist()
    owners: list[list[int]] = [[] for _ in range(num_classes)]
    for place in range(parts * classes_per_partition):
        owners[order[place % num_classes]].append(place // classes_per_partition)
    return owners


def _share_of_each_class(
    positions: Int[Tensor, " n"], labels: Int[Tensor, " n"], fraction: float, *, seed: int
) -> Int[Tensor, " chosen"]:
    """Return the first positions of each class in a random order, so that smaller fractions are subsets of larger."""
    order = torch.argsort(uniform(seed, 0, positions, Stream.FRACTION), stable=True)
    kept = torch.zeros(len(positions), dtype=torch.bool)
    for label in labels.bincount().nonzero().flatten():
        members = order[labels[order] == label]
        kept[members[: max(math.floor(fraction * len(members) + 0.5), 1)]] = True
    return positions[kept]


def _check_parts(options: Data, num_classes: int) -> None:
    """Check that the partition options fit each other and the number of classes."""
    parts, k = options.num_partitions, options.classes_per_partition
    for number in [] if options.partition is None else _as_list(options.partition):
        if number >= parts:
            raise UserError(
                f"data.partition={number}: no such partition, data.num_partitions={parts} has 0 to {parts - 1}"
            )
    for key in ("dirichlet_alpha", "classes_per_partition"):
        if getattr(options, key) is not None and parts == 1:
            raise UserError(
                f"data.{key}={getattr(options, key)} has no effect with data.num_partitions=1: set data.num_partitions"
            )
    if k is None:
        return
    if options.dirichlet_alpha is not None:
        raise UserError(
            f"data.dirichlet_alpha={options.dirichlet_alpha} and data.classes_per_partition={k} exclude each other: "
            "remove one of them"
        )
    if k > num_classes or parts * k < num_classes:
        least = -(-num_classes // parts)
        raise UserError(
            f"data.classes_per_partition={k} with data.num_partitions={parts} does not fit {num_classes} classes: each "
            f"class must be in a partition, at most once, so use {least} to {num_classes}"
        )


def _as_list(part: int | list[int]) -> list[int]:
    return part if isinstance(part, list) else [part]


def _shown(value: float | None) -> str:
    return "null" if value is None else str(value)
