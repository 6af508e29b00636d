"""A whole scheme as one module, for custom training loops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor, nn

from kdschemes.config import Config
from kdschemes.config.aliases import ALIASES, short_keys
from kdschemes.config.code import forget, give
from kdschemes.config.load import load_config
from kdschemes.core.averages import PredictionBank
from kdschemes.core.distillation import Distillation
from kdschemes.core.nodes import Node
from kdschemes.core.terms import Transfer
from kdschemes.core.types import Batch, DataSpec, Progress
from kdschemes.distributed.collectives import world_size
from kdschemes.errors import UserError, shown
from kdschemes.models import CustomNetwork, StagedNetwork
from kdschemes.schemes import build_scheme

KEYS = ("scheme", "method", "losses", "teacher", "model", "seed")
"""What the options of a scheme begin with."""

OF_A_LOOP = ("experiment", *(field.name for field in fields(Config) if field.name not in KEYS))
"""What the options of a loop begin with, which have no effect here."""

IMAGES, LABELS = ("images", "image", "pixel_values", "x"), ("labels", "label", "y")
"""Keys of a batch that is a mapping."""


def distill(
    *options: str,
    student: nn.Module | Sequence[nn.Module],
    teacher: nn.Module | Sequence[nn.Module] | None = None,
    images: Float[Tensor, "n c h w"],
    num_classes: int,
    total_steps: int,
    steps_per_epoch: int | None = None,
    train_labels: Int[Tensor, " samples"] | None = None,
    multi_label: bool = False,
) -> Distiller:
    """Return a scheme as one module, whose output is the loss of a batch: `loss = scheme(images, labels)`.

    Args:
        options: KEY=VALUE of the groups scheme, losses, teacher and model, as for `kdschemes train`, short keys too.
        student: the network to train, in place; a list: one per peer of an online scheme.
        teacher: the trained network of an offline scheme, or several. It is frozen: evaluation mode, no gradient.
        images: a batch of images, of which only the shape is used.
        num_classes: the number of classes.
        total_steps: optimizer steps in all, for weights and temperatures that change in training.
        steps_per_epoch: optimizer steps per epoch (None: `total_steps`).
        train_labels: the labels of all training samples, for methods that store predictions per sample (each batch then
            needs `index`, the samples' positions in it).
        multi_label: whether labels are rows of 0 and 1, one column for each class: an image may have several.

    Raises:
        UserError: an option is wrong or has no effect, a network does not fit or is given twice, or the method needs
            more than a loss.
    """
    words = list(options)
    for word in words:
        if word.partition("=")[0].partition(".")[0] in OF_A_LOOP:
            raise _of_a_loop(word)
    for name, value in (("total_steps", total_steps), ("steps_per_epoch", steps_per_epoch or total_steps)):
        if value < 1:
            raise UserError(f"{name}={value}: give a number of optimizer steps, 1 or more")
    students, teachers = _several(student), _several(teacher) if teacher is not None else []
    networks = [*students, *teachers]
    if len({id(network) for network in networks}) < len(networks):
        raise UserError("student and teacher hold one network twice: pass copies, copy.deepcopy(network)")
    specs = [(network, network.spec) for network in networks if isinstance(network, StagedNetwork)]
    names = [_give(network, f"student{number}") for number, network in enumerate(students)]
    words.append(f"model.name={names[0]}")
    if len(students) > 1:
        words.append(f"scheme.peers=[{','.join(names)}]")
    if teachers:
        given = [_give(network, f"teacher{number}") for number, network in enumerate(teachers)]
        words.append(f"teacher.name=[{','.join(given)}]")
        names += given
    try:
        config = load_config(words, recipes=Path(), say=_silent)
        own = {field.name for field in fields(config.scheme)}
        known = {**short_keys(), **ALIASES}
        for word in options:
            key = word.partition("=")[0]
            if key.removeprefix("scheme.") not in own and known.get(key, key).partition(".")[0] in OF_A_LOOP:
                raise _of_a_loop(word)
        if config.scheme.uses_teacher and teacher is None:
            raise UserError(f"scheme={config.scheme.name} needs a teacher: pass teacher=NETWORK")
        if config.scheme.prerequisites():
            raise UserError(f"method={config.scheme.method} trains other networks first: use kdschemes.train")
        sizes = num_classes, images.shape[1], images.shape[2]
        scheme = build_scheme(config, DataSpec(*sizes, train_labels, multi_label=multi_label))
    finally:
        forget(names)
        for network, spec in specs:
            network.spec = spec
    return Distiller(scheme, config.scheme.method, total_steps, steps_per_epoch or total_steps, multi_label=multi_label)


def _of_a_loop(word: str) -> UserError:
    return UserError(f"{shown(word)}: data, optimizer and loop are yours; the options here are {_listed(KEYS)}")


def _silent(note: str) -> None:
    """Say nothing about short keys: the caller wrote them in code."""


class Distiller(nn.Module):
    """A scheme as one module; its output is the loss of a batch, a scalar with gradient.

    `parameters()` are those to train: students, exits, projections. With several processes, each gets as many samples,
    and the gradients are averaged, as DDP does; with gradient accumulation, divide the loss as usual.

    `losses` and `weights` are each term's value and weight in the last batch; `logits` are those of each head.
    """

    def __init__(
        self, scheme: Distillation, method: str, total_steps: int, steps_per_epoch: int, *, multi_label: bool = False
    ) -> None:
        super().__init__()
        _check(scheme, method)
        self.multi_label = multi_label
        self.scheme = scheme
        self.total_steps, self.steps_per_epoch = total_steps, steps_per_epoch
        self.steps = 0
        self.saved_steps: Tensor
        self.register_buffer("saved_steps", torch.zeros((), dtype=torch.long))
        self.register_load_state_dict_post_hook(_resume)  # type: ignore[no-untyped-call]
        self.losses: dict[str, Tensor] = {}
        self.weights: dict[str, float] = {}
        self.logits: dict[str, Tensor] = {}
        self._by_index = any(
            isinstance(part, PredictionBank) or (isinstance(part, Transfer) and part.loss.has_memory_bank)
            for part in scheme.modules()
        )

    def forward(
        self, images: Any, labels: Num[Tensor, "n ..."] | None = None, index: Int[Tensor, " n"] | None = None
    ) -> Float[Tensor, ""]:
        """Return the loss of a batch: images, labels (and index), or one tuple or mapping of them."""
        if isinstance(images, Mapping):
            batch = images
            images, labels = _of(batch, IMAGES), _of(batch, LABELS)
            index = batch.get("index", index)
        elif isinstance(images, tuple | list):
            images, labels, *more = images
            index = more[0] if more else index
        if index is None and self._by_index:
            raise UserError("this scheme stores something for each sample: pass index, the samples' positions")
        if labels is None:
            raise UserError("a batch needs labels: pass them after the images")
        if (labels.dim() == 2) != self.multi_label:
            raise UserError(
                f"labels are {list(labels.shape)}: give class indices, one per image, or rows of 0 and 1 and "
                "distill(multi_label=True)"
            )
        size = len(labels) * world_size()
        index = torch.arange(len(labels), device=labels.device) if index is None else index
        batch_of_all = Batch(images, labels, index, micro_size=size, step_size=size)
        step = min(self.steps, self.total_steps - 1)
        result = self.scheme(batch_of_all, Progress(step, self.total_steps, self.steps_per_epoch))
        self.losses, self.weights = result.losses, result.weights
        self.logits = {head: result.outputs[head].logits for head in self.scheme.heads if head in result.outputs}
        total: Tensor = result.total
        return total

    def after_step(self) -> None:
        """Count an optimizer step, and update moving averages and stored predictions."""
        self.scheme.after_step()
        self.steps += 1
        self.saved_steps.fill_(self.steps)

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Call `after_step` after each step of an optimizer."""
        optimizer.register_step_post_hook(lambda *_: self.after_step())

    def network(self, head: str | None = None) -> nn.Module:
        """Return the network of a head (None: the first) for inference; for a network of the user's own, that itself.

        Raises:
            UserError: there is no such head, or it is not a single network (an ensemble).
        """
        heads = self.scheme.heads
        name = heads[0] if head is None else head
        if name not in heads:
            raise UserError(f"there is no head {shown(name)}: {_listed(heads)}")
        found = self.scheme.node_of(name).inference_network(name)
        if found is None:
            raise UserError(f"{name} is not a single network: choose another head of {_listed(heads)}")
        return found.network if isinstance(found, CustomNetwork) else found


def _resume(module: nn.Module, _: object) -> None:
    assert isinstance(module, Distiller)
    module.steps = int(module.saved_steps)


def _check(scheme: Distillation, method: str) -> None:
    """Refuse what needs more than a loss: other views of the images, steps in turn, the validation split.

    Raises:
        UserError: the scheme needs one of these.
    """
    nodes = [node for node in scheme.nodes.values() if isinstance(node, Node)]
    needs = []
    if scheme.aux_batches:
        needs.append(f"other views or samples ({', '.join(scheme.aux_batches)})")
    if scheme.phases:
        needs.append("several optimizer steps in turn")
    if any(node.skips_updates for node in nodes):
        needs.append("optimizer steps that leave a network out")
    if any(type(node).before_epoch is not Node.before_epoch for node in nodes):
        needs.append("the validation images")
    if needs:
        raise UserError(f"method={method} needs {' and '.join(needs)}, which a loss does not have: use kdschemes.train")


def _give(network: nn.Module, label: str) -> str:
    if not isinstance(network, nn.Module):
        raise UserError(f"{label} is a {type(network).__name__}: pass a torch.nn.Module")
    return give(lambda **_: network, label, f"{id(network):x}")


def _several(networks: nn.Module | Sequence[nn.Module]) -> list[nn.Module]:
    return list(networks) if isinstance(networks, list | tuple) else [networks]  # type: ignore[list-item]


def _of(batch: Mapping[str, Any], keys: Sequence[str]) -> Any:
    for key in keys:
        if key in batch:
            return batch[key]
    raise UserError(f"the batch has {_listed(list(batch))}, but none of {_listed(keys)}")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(str, names))
