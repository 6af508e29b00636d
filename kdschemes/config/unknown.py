"""Errors for names that a key does not have; one that belongs to another key is shown its place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from kdschemes.config.data import DATA
from kdschemes.config.losses import KINDS
from kdschemes.config.models import MODELS
from kdschemes.config.schemes import SCHEMES
from kdschemes.errors import UserError, shown, unknown


def no_such(key: str, name: object, allowed: Iterable[str]) -> UserError:
    """Return the error for a name that is none of the `allowed` of a key."""
    own = str(name).lower().replace("-", "_")
    places = [f"{what}, write {cure}" for what, cure in _places(own)]
    if not isinstance(name, str) or not places or own in (allowed := list(allowed)):
        return unknown(key, str(name), allowed)
    return UserError(f"{key}={shown(name)}: {own} is {'; or '.join(places)}")


def _places(name: str) -> Iterator[tuple[str, str]]:
    """Yield what a name is, and how to choose it."""
    if name in SCHEMES:
        yield "a scheme", f"scheme={name}"
    for scheme, methods in SCHEMES.items():
        if name in methods:
            yield f"a method of scheme={scheme}", f"scheme={scheme} method={name}"
    for kind, losses in KINDS.items():
        if name in losses and name != "none":
            yield f"a {kind} loss", f"losses.{kind}={name}"
    if name in DATA:
        yield "a data set", f"data={name}"
    if name in MODELS:
        yield "a network", f"model={name}"
