"""Turn a data set into batches: which process gets which samples at which step, in which view."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from kdschemes.config.data import Data, ImageFolder, InMemory, OwnData
from kdschemes.core.types import Batch, DataSpec
from kdschemes.data import views
from kdschemes.data.augment import Augmentation
from kdschemes.data.datasets import READERS
from kdschemes.data.image_folder import FolderSource
from kdschemes.data.own import OwnSource, open_own
from kdschemes.data.sources import MemorySource, Source
from kdschemes.data.splits import stratified_split, trained_on
from kdschemes.errors import UserError


@dataclass(frozen=True)
class Share:
    """One process's share of a micro-batch: positions in the training array, and the global sizes."""

    index: Int[Tensor, " n"]
    micro_size: int
    step_size: int


@dataclass(frozen=True)
class DataModule:
    """An opened data set: its properties and batches.

    `positions` holds each split's positions in its array: "train" (the images trained on) and "val" share the training
    array (`labels["train"]`), "test" has its own. `Batch.index` is such a position. Images without labels, which have
    the label -1 and the last positions, are trained on, in one order with the others, and not evaluated. All batches
    are pure functions of the seed and the arguments. `notes` are lines about the images for the user.
    """

    source: Source
    options: Data
    labels: dict[str, Tensor]
    positions: dict[str, Tensor]
    seed: int
    device: torch.device
    memory_format: torch.memory_format
    notes: Sequence[str] = ()

    @property
    def classes(self) -> list[str]:
        """Names of the classes, in the order of the labels."""
        return self.source.classes

    @property
    def digest(self) -> str:
        """Digest of the labels in their order and, for image files, their names and sizes."""
        return self.source.digest

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.source.classes)

    @property
    def multi_label(self) -> bool:
        """Whether an image has any number of labels: rows of 0 and 1, one column for each class."""
        return self.labels["test"].dim() == 2

    @property
    def train_labels(self) -> Int[Tensor, " positions"]:
        """The label of every position of the training array, -1 if it is not trained on; of one label per image."""
        labels = torch.full_like(self.labels["train"], -1)
        trained = self.positions["train"].to(labels.device)
        labels[trained] = self.labels["train"][trained]
        return labels

    @property
    def channels(self) -> int:
        """Channels of an image: 1 or 3."""
        return self.source.channels

    @property
    def image_size(self) -> int:
        """Side in pixels of the (square) images."""
        return self.source.image_size

    @property
    def spec(self) -> DataSpec:
        """What schemes must know about the data."""
        source = self.source
        return DataSpec(
            *(self.num_classes, source.channels, source.image_size, None if self.multi_label else self.train_labels),
            multi_label=self.multi_label,
            classes=tuple(self.classes),
            mean=source.mean,
            std=source.std,
            kept=source.kept,
        )

    @property
    def sizes(self) -> dict[str, int]:
        """Number of samples per split: train, val, test."""
        return {split: len(positions) for split, positions in self.positions.items()}

    def evaluated(self, split: str, at_most: int | None = None) -> int:
        """Return how many samples `eval_batches` has: those with labels."""
        count = int(self._labelled(split).sum())
        return min(count, at_most or count)

    def _labelled(self, split: str) -> Tensor:
        labels = self.labels["test" if split == "test" else "train"].cpu()[self.positions[split]]
        return labels >= 0 if labels.dim() == 1 else torch.ones(len(labels), dtype=torch.bool)

    def steps_per_epoch(self, *, batch_size: int, drop_last: bool) -> int:
        """Return the number of optimizer steps per epoch."""
        size = self.sizes["train"]
        return size // batch_size if drop_last else -(-size // batch_size)

    def check_batches(self, batch_size: int, grad_accum_steps: int, world: int, drop_last: bool) -> None:
        """Check that every process gets at least 2 samples of every micro-batch, which batch norm needs.

        Raises:
            UserError: a process would get fewer, or there is no full batch and smaller ones are dropped.
        """
        size = self.sizes["train"]
        if drop_last and size < batch_size:
            raise UserError(
                f"train.batch_size={batch_size} exceeds the {size} training images, and train.drop_last=true drops "
                f"them all: use train.batch_size={size} or less"
            )
        split = f"over {grad_accum_steps} micro-batch(es) and {world} process(es) leaves one with fewer than 2 samples"
        if batch_size // grad_accum_steps // world < 2:
            raise UserError(
                f"train.batch_size={batch_size} {split}: use train.batch_size={2 * grad_accum_steps * world} or more"
            )
        last = size % batch_size
        if last and not drop_last and last // grad_accum_steps // world < 2:
            raise UserError(
                f"the epoch's last batch of {last} samples (of {size}, train.batch_size={batch_size}) {split}: "
                "use train.drop_last=true or another train.batch_size"
            )

    def train_steps(
        self,
        epoch: int,
        *,
        batch_size: int,
        grad_accum_steps: int,
        rank: int,
        world: int,
        drop_last: bool,
        start: int = 0,
        aux_batches: Sequence[str] = (),
    ) -> Iterator[list[Batch]]:
        """Yield the micro-batches of process `rank` for each optimizer step of `epoch`, from step `start` on.

        The epoch's order is split into steps of `batch_size` samples, each step into `grad_accum_steps` micro-batches,
        each micro-batch into `world` shares: contiguous, with sizes that differ by at most one, larger ones first.
        Each batch has the requested `aux_batches` (`Batch.aux_batches`), for the same process and micro-batch.
        """
        order = self._order(epoch)

        def shares_of(samples: Tensor) -> Iterator[Share]:
            for micro in samples.tensor_split(grad_accum_steps):
                yield Share(micro.tensor_split(world)[rank], len(micro), len(samples))

        count = self.steps_per_epoch(batch_size=batch_size, drop_last=drop_last)
        of_step = [order[step * batch_size : (step + 1) * batch_size] for step in range(count)]
        plan = [share for samples in of_step[start:] for share in shares_of(samples)]
        batches = self._train_batches(epoch, plan)
        streams = {name: self._aux_batch(name, epoch, plan) for name in aux_batches if name != "previous"}
        if "previous" in aux_batches:
            before = [share for samples in of_step[max(start, 1) - 1 : -1] for share in shares_of(samples)]
            streams["previous"] = self._train_batches(epoch, before, number=1)
            if start == 0:
                order = self._order(epoch - 1)
                last = order[(count - 1) * batch_size : count * batch_size] if epoch else order[:0]
                first = self._train_batches(max(epoch - 1, 0), list(shares_of(last)), number=1)
                streams["previous"] = itertools.chain(first, streams["previous"])
        for _ in range(len(plan) // grad_accum_steps):
            micro_batches = [next(batches) for _ in range(grad_accum_steps)]
            yield [
                replace(batch, aux_batches={name: next(more) for name, more in streams.items()})
                for batch in micro_batches
            ]

    def _order(self, epoch: int) -> Tensor:
        """Return the positions of an epoch's samples in their order."""
        positions = self.positions["train"]
        if self.options.sampling == "balanced":
            return views.balanced_order(self.seed, epoch, positions, self.labels["train"].cpu()[positions])
        return views.epoch_order(self.seed, epoch, positions)

    def seen_in(self, epoch: int, batches: Iterable[Int[Tensor, " _"]]) -> Iterator[Batch]:
        """Yield batches of training positions as they are seen in `epoch`."""
        return self._train_batches(epoch, [Share(index, len(index), len(index)) for index in batches])

    def _aux_batch(self, name: str, epoch: int, plan: list[Share]) -> Iterator[Batch]:
        if name == "same_class":
            train = self.positions["train"]
            labels = self.labels["train"].cpu()[train]
            found = [views.same_class_samples(self.seed, epoch, share.index, train, labels) for share in plan]
            mates = [replace(share, index=index) for share, index in zip(plan, found, strict=True)]
            return self._train_batches(epoch, mates, number=1)
        if name == "plain":
            return self._plain_batches("train", [share.index for share in plan])
        assert name.startswith("view"), f"no auxiliary batch {name}"
        return self._train_batches(epoch, plan, number=int(name.removeprefix("view")))

    def _train_batches(self, epoch: int, plan: list[Share], number: int = 0) -> Iterator[Batch]:
        """Yield the batches of a plan in view `number`; mixup and CutMix partners are the same in every view."""
        mixes = bool(self.options.mixup or self.options.cutmix)
        partners = self._order(epoch) if mixes and self.options.sampling == "balanced" else self.positions["train"]

        def with_partners(index: Tensor) -> Tensor:
            if not mixes:
                return index
            return torch.cat([index, views.mixup_partners(self.seed, epoch, index, partners)])

        requests = [with_partners(share.index) for share in plan]
        for share, request, images in zip(plan, requests, self.source.views(epoch, requests, number), strict=True):
            shown = request.to(self.device)
            seed = views.view_seed(self.seed, number)
            if self.options.cutout:
                views.cutout(images, shown, seed=seed, epoch=epoch, side=self.options.cutout)
            if self.options.random_erasing:
                erased = self.options.random_erasing
                views.random_erasing(images, request, seed=seed, epoch=epoch, probability=erased)
            labels, partner_labels, mix = self.labels["train"][shown], None, None
            if mixes:
                images, mix = self._mix(epoch, share.index, *images.tensor_split(2))
                labels, partner_labels = labels.tensor_split(2)
            index = shown[: len(share.index)]
            images = images.contiguous(memory_format=self.memory_format)
            yield Batch(
                images,
                labels,
                index,
                partner_labels,
                mix,
                share.micro_size,
                share.step_size,
                epoch=None if number else epoch,
            )

    def _mix(self, epoch: int, index: Tensor, own: Tensor, partner: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mixed images and their own fractions; with both, those without a box of CutMix are mixed up."""
        options, shown = self.options, index.to(self.device)
        if options.mixup:
            mix = views.mixup_weights(self.seed, epoch, index, options.mixup).to(self.device)
            mixed = partner.lerp(own, mix[:, None, None, None])
            if not options.cutmix:
                return mixed, mix
        boxed, left = views.cutmix(
            own,
            partner,
            shown,
            seed=self.seed,
            epoch=epoch,
            concentration=options.cutmix,
            probability=options.cutmix_probability,
        )
        if not options.mixup:
            return boxed, left
        has_box = views.has_box(self.seed, epoch, shown, options.cutmix_probability)
        return torch.where(has_box[:, None, None, None], boxed, mixed), torch.where(has_box, left, mix)

    def eval_batches(
        self, split: str, *, batch_size: int, rank: int, world: int, at_most: int | None = None
    ) -> Iterator[Batch]:
        """Yield process `rank`'s batches of "train", "val" or "test", normalized without augmentation.

        Each sample is in exactly one process; a process may have none. With `at_most`, as many samples are taken at
        equal distances.
        """
        array, positions = "test" if split == "test" else "train", self.positions[split]
        positions = positions[self._labelled(split)]
        if at_most is not None and at_most < len(positions):
            positions = positions[torch.arange(at_most) * len(positions) // at_most]
        share = positions.tensor_split(world)[rank]
        yield from self._plain_batches(array, [share[i : i + batch_size] for i in range(0, len(share), batch_size)])

    def _plain_batches(self, array: str, batches: Sequence[Tensor]) -> Iterator[Batch]:
        """Yield batches of positions of an array, normalized without augmentation."""
        for batch, images in zip(batches, self.source.plain(array, batches), strict=True):
            index = batch.to(self.device)
            images = images.contiguous(memory_format=self.memory_format)
            yield Batch(images, self.labels[array][index], index)


def open_data(options: Data, *, seed: int, device: torch.device, channels_last: bool = False) -> DataModule:
    """Open the data set described by `options`, with sample order and views seeded by `seed`.

    The validation split, unless it is a folder of its own, and the selection of training images (`trained_on`) depend
    only on `options.split_seed`.

    Raises:
        UserError: files are missing, damaged or invalid, or options do not fit the images.
    """
    source: FolderSource | MemorySource | OwnSource
    if isinstance(options, ImageFolder):
        source = FolderSource(options, seed=seed, device=device)
    elif isinstance(options, OwnData):
        source = open_own(options, seed=seed, device=device)
    else:
        assert isinstance(options, InMemory)
        arrays = READERS[type(options)](Path(options.root))
        arrays = replace(arrays, mean=tuple(options.mean or arrays.mean), std=tuple(options.std or arrays.std))
        source = MemorySource(
            arrays,
            flip=options.flip,
            crop_padding=options.crop_padding,
            seed=seed,
            device=device,
            augment=Augmentation.of(options),
        )
    if options.cutout > source.image_size:
        raise UserError(
            f"data.cutout={options.cutout} is larger than the image side, {source.image_size} pixels: use a smaller one"
        )
    labelled = source.labels["train"]
    several = labelled.dim() == 2
    strata, names = (torch.zeros(len(labelled), dtype=torch.long), ["all"]) if several else (labelled, source.classes)
    if several and (options.num_partitions > 1 or options.exclude_classes):
        key = "num_partitions" if options.num_partitions > 1 else "exclude_classes"
        raise UserError(f"data.{key} needs images with one label each, and these have several: remove it")
    if source.validation is not None:
        train, val = torch.arange(int(source.validation[0])), source.validation
    else:
        train, val = stratified_split(strata, options.val_fraction, seed=options.split_seed, classes=names)
    unlabelled = (strata < 0).nonzero().flatten()
    train = train[strata[train] >= 0]
    train = torch.cat([trained_on(options, strata, train, classes=names), unlabelled])
    positions = {"train": train, "val": val, "test": torch.arange(len(source.labels["test"]))}
    labels = {array: values.to(device) for array, values in source.labels.items()}
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    notes = list(source.notes)
    if len(unlabelled):
        notes.append(
            f"{len(unlabelled):,} images without labels are trained on, among {len(train):,}; in cross-entropy their "
            "weight is 0"
        )
    return DataModule(source, options, labels, positions, seed, device, memory_format, notes)
