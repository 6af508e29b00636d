"""Splits, parts and shares of the training images: they depend on nothing but labels, options and a seed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from scipy.special import gammaincinv
from torch import Tensor

from kdschemes.config.data import Data
from kdschemes.data.views import Stream
from kdschemes.errors import UserError
from kdschemes.seeding import uniform


def stratified_split(
    labels: Int[Tensor, " n"], fraction: float, *, seed: int, classes: Sequence[str]
) -> tuple[Int[Tensor, " kept"], Int[Tensor, " held"]]:
    """Hold out `fraction` of each class at random; return the positions kept and held out, ascending.

    Each class is rounded by itself (half up) and keeps at least one sample; a class too small to give one away gives
    none.

    Raises:
        UserError: a class has no sample, or `fraction` is above 0 and yet no class can give one.
    """
    order = torch.argsort(uniform(seed, 0, torch.arange(len(labels)), Stream.SPLIT), stable=True)
    ranked = labels[order]
    held = torch.zeros(len(labels), dtype=torch.bool)
    for label, name in enumerate(classes):
        members = order[ranked == label]
        if len(members) == 0:
            raise UserError(f"class '{name}' has no training image: remove the class or add images of it")
        held[members[: min(math.floor(fraction * len(members) + 0.5), len(members) - 1)]] = True
    if fraction > 0 and not held.any():
        raise UserError(
            f"data.val_fraction={fraction} holds out no image at all, the classes are too small: "
            "give a larger share, or 0 for no validation split"
        )
    return (~held).nonzero().flatten(), held.nonzero().flatten()


def trained_on(
    options: Data, labels: Int[Tensor, " n"], train: Int[Tensor, " split"], *, classes: Sequence[str]
) -> Int[Tensor, " chosen"]:
    """Return the positions of the training split `train` that are trained on, ascending.

    Of `options.partition` (null: of the whole split) the classes in `options.exclude_classes` are left out, and
    `options.train_fraction` of what is left of each class is kept, rounded half up, one sample at least. `labels` has
    an entry for every position that `train` can name.

    Raises:
        UserError: options do not fit each other or the classes, a part has no sample, or nothing is left.
    """
    _check_parts(options, len(classes))
    chosen = train
    if options.num_partitions > 1:
        part = deal_parts(options, labels[train], num_classes=len(classes))
        sizes = part.bincount(minlength=options.num_partitions).tolist()
        if 0 in sizes:
            raise UserError(
                f"data.num_partitions={options.num_partitions} leaves part {sizes.index(0)} without a training image "
                f"(data.dirichlet_alpha={_shown(options.dirichlet_alpha)}): use fewer partitions, a larger "
                "data.dirichlet_alpha or another data.split_seed"
            )
        if options.partition is not None:
            chosen = train[torch.isin(part, torch.tensor(_as_list(options.partition)))]
    for label in options.exclude_classes:
        if label >= len(classes):
            raise UserError(
                f"data.exclude_classes={options.exclude_classes}: there is no class {label}, "
                f"they are 0 to {len(classes) - 1}"
            )
    chosen = chosen[~torch.isin(labels[chosen], torch.tensor(options.exclude_classes, dtype=torch.long))]
    if len(chosen) == 0:
        where = "" if options.partition is None else f" of data.partition={options.partition}"
        raise UserError(
            f"data.exclude_classes={options.exclude_classes} leaves no training image{where}: leave fewer classes out"
        )
    return _share_of_each_class(chosen, labels[chosen], options.train_fraction, seed=options.split_seed)


def deal_parts(options: Data, labels: Int[Tensor, " split"], *, num_classes: int) -> Int[Tensor, " split"]:
    """Return the part, 0 to `options.num_partitions` - 1, of each sample of the training split.

    The samples of each class, in random order, are dealt to the parts one by one, so that parts have equal shares of
    every class; with `classes_per_partition` = k only to the parts that have the class: classes in random order are
    given to the parts k at a time, from the first again after the last. With `dirichlet_alpha` = beta a class is cut
    into pieces whose shares are drawn from Dirichlet(beta, ..., beta), each boundary rounded half up.
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
    """Return shares ~ Dirichlet(a, ..., a), a = `concentration`, of one class, in float64: they sum to 1.

    Numbers ~ Gamma(a), the inverse of the distribution function P(a, x) of uniform ones, divided by their sum. Where x
    is too small for a float, log x = (log P + log Gamma(a + 1)) / a, as P(a, x) = x^a / Gamma(a + 1) there.
    """
    index = torch.arange(label * parts, (label + 1) * parts)
    share = uniform(seed, 0, index, Stream.PART_SHARE).clamp(min=2.0**-54)
    drawn = torch.from_numpy(gammaincinv(concentration, share.numpy()))
    tiny = (share.log() + math.lgamma(concentration + 1.0)) / concentration
    return torch.where(drawn > 1e-300, drawn.clamp(min=1e-300).log(), tiny).softmax(0)


def _owners(parts: int, classes_per_partition: int | None, num_classes: int, seed: int) -> list[list[int]]:
    """Return for each class the parts that have it, ascending."""
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
    """Return the first of each class in a random order of all positions, so that a smaller share is in a larger one."""
    order = torch.argsort(uniform(seed, 0, positions, Stream.FRACTION), stable=True)
    kept = torch.zeros(len(positions), dtype=torch.bool)
    for label in labels.bincount().nonzero().flatten():
        members = order[labels[order] == label]
        kept[members[: max(math.floor(fraction * len(members) + 0.5), 1)]] = True
    return positions[kept]


def _check_parts(options: Data, num_classes: int) -> None:
    """Check that the options of the parts fit each other and the number of classes."""
    parts, k = options.num_partitions, options.classes_per_partition
    for number in [] if options.partition is None else _as_list(options.partition):
        if number >= parts:
            raise UserError(
                f"data.partition={number}: there is no such part, data.num_partitions={parts} has 0 to {parts - 1}"
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
            "leave one out"
        )
    if k > num_classes or parts * k < num_classes:
        least = -(-num_classes // parts)
        raise UserError(
            f"data.classes_per_partition={k} with data.num_partitions={parts} does not fit {num_classes} classes: each "
            f"must be in a part and a part has each once, so use {least} to {num_classes}"
        )


def _as_list(part: int | list[int]) -> list[int]:
    return part if isinstance(part, list) else [part]


def _shown(value: float | None) -> str:
    return "null" if value is None else str(value)
