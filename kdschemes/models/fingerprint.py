"""What identifies a network that is passed in Python, so that the same call finds the same run again."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def fingerprint(network: nn.Module | Callable[..., nn.Module]) -> str:
    """Return the SHA-256 of a network: the code that makes it; of a module also its layers and weights.

    The code is the text of a class or function with its defaults and what a `partial` adds, and, in turn, all that it
    refers to in its closure or its own module: a width, another class. What is imported counts by its name.
    """
    made = root = type(network) if isinstance(network, nn.Module) else network
    while isinstance(root, partial):
        root = root.func
    digest = hashlib.sha256("\n".join(_texts(made, root, set())).encode())
    if isinstance(network, nn.Module):
        digest.update(repr(network).encode())
        for name, tensor in network.state_dict().items():
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode() + _bytes(tensor))
    return digest.hexdigest()


def _texts(value: Any, root: Any, seen: set[int]) -> Iterator[str]:
    """Yield what tells a value that code refers to from others; `root` is the code with which it began."""
    if isinstance(value, nn.Module):
        yield fingerprint(value)
    elif isinstance(value, Tensor | np.ndarray):
        yield hashlib.sha256(_bytes(torch.as_tensor(value))).hexdigest()
    elif isinstance(value, ModuleType):
        yield value.__name__
    elif isinstance(value, partial):
        yield from _texts([value.func, value.args, value.keywords], root, seen)
    elif isinstance(value, Mapping):
        yield from _texts([part for pair in value.items() for part in pair], root, seen)
    elif isinstance(value, set | frozenset):
        yield from sorted(map(repr, value))
    elif isinstance(value, list | tuple):
        yield str(len(value))
        for each in value:
            yield from _texts(each, root, seen)
    elif inspect.isclass(value) or inspect.isroutine(value):
        yield from _code(value, root, seen)
    else:
        yield repr(value)


def _code(value: Any, root: Any, seen: set[int]) -> Iterator[str]:
    yield f"{value.__module__}.{getattr(value, '__qualname__', value)}"
    if value.__module__ != getattr(root, "__module__", None) or id(value) in seen:
        return
    seen.add(id(value))
    with contextlib.suppress(OSError, TypeError):  # it may be made where there is no file
        yield inspect.getsource(value)
    if inspect.ismethod(value):
        yield from _texts([value.__self__, value.__func__], root, seen)
    elif isinstance(value, FunctionType):
        found = inspect.getclosurevars(value)
        yield from _texts([value.__defaults__, value.__kwdefaults__], root, seen)
        for names in (found.nonlocals, found.globals):
            yield from _texts({name: names[name] for name in sorted(names)}, root, seen)
    elif inspect.isclass(value):
        yield from _texts(list(value.__bases__), root, seen)
        for each in vars(value).values():
            if isinstance(each, FunctionType):
                yield from _texts(each, root, seen)


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
