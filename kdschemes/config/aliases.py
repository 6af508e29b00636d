"""Short keys of the command line: what people type first, where only one key can be meant."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

from kdschemes.config.losses import KINDS, loss_named
from kdschemes.config.naming import in_line
from kdschemes.config.recipes import GROUPS
from kdschemes.config.validate import all_keys
from kdschemes.errors import UserError, shown

ALIASES = {
    "temperature": "losses.response.temperature",
    "T": "losses.response.temperature",
    "scheme.temperature": "losses.response.temperature",
    "alpha": "scheme.alpha",
    "label_smoothing": "train.label_smoothing",
    "scheme.label_smoothing": "train.label_smoothing",
    "momentum": "optim.momentum",
    "wd": "optim.weight_decay",
    "optimizer": "optim",
    "dataset": "data",
    "student": "model",
}
"""What keys stand for that are none of the run's method; so does the last part of a key, by `short_keys`."""

VALUES = {("device", "gpu"): "cuda"}

LOSS_KEYS = ("losses", *(f"losses.{kind}" for kind in KINDS))


def expand(pairs: Sequence[tuple[str, Any]], method: type) -> Iterator[tuple[list[tuple[str, Any]], str]]:
    """Yield, for each key and value of a command line, the true ones, and what to say where they are others.

    `method` is the options class of the run's method, whose own keys come first.

    Raises:
        UserError: a list of losses names one that does not exist, or `losses.extra` is given too.
    """
    own = {f"scheme.{field.name}" for field in fields(method)} - {"scheme.name", "scheme.method"}
    known = {**short_keys(), **ALIASES, **{key.removeprefix("scheme."): key for key in own}}
    for key, value in pairs:
        found = [(key if key in own else known.get(key, key), VALUES.get((key, str(value)), value))]
        if (key == "losses" and isinstance(value, str | list)) or (key in LOSS_KEYS and isinstance(value, list)):
            if any(given == "losses.extra" for given, _ in pairs):
                raise UserError(f"{key}={shown(in_line(value))} and losses.extra both name losses: remove one of them")
            found = _by_kind(key, value)
        said = " ".join(f"{true}={in_line(of)}" for true, of in found)
        yield found, "" if found == [(key, value)] else f"{key}={in_line(value)} stands for {said}"


def short_keys() -> dict[str, str]:
    """Return the key of each last part that only one key has, not counting those of methods, teachers and losses.

    That of a network, which a teacher has too, is none: `checkpoint` may be either's.
    """
    keys = [key for key in all_keys() if not key.startswith(("scheme.", "teacher.", "losses."))]
    leaves = [key.rpartition(".")[2] for key in keys]
    unique = {leaf: key for leaf, key in zip(leaves, keys, strict=True) if leaves.count(leaf) == 1 and leaf != key}
    return {
        leaf: key
        for leaf, key in unique.items()
        if leaf not in GROUPS and not (key == f"model.{leaf}" and f"teacher.{leaf}" in all_keys())
    }


def _by_kind(key: str, value: str | list[Any]) -> list[tuple[str, Any]]:
    """Return the keys that choose losses: the first of each kind by its own key, the others in `losses.extra`."""
    chosen: dict[str, Any] = {}
    extra = []
    for name in value if isinstance(value, list) else [value]:
        found = loss_named(str(name))
        if found is None:
            raise UserError(
                f"{key}={shown(in_line(value))}: no loss is called '{shown(name)}' (kdschemes methods lists them)"
            )
        own = f"losses.{found[0]}"
        if key not in ("losses", own):
            raise UserError(f"{key}={shown(in_line(value))}: {name} is a {found[0]} loss, write {own}={name}")
        if own in chosen:
            extra.append(str(name))
        else:
            chosen[own] = str(name)
    return [*chosen.items(), *([("losses.extra", extra)] if extra else [])]
