"""The state dict in a file that some program wrote: the tensors only, without what wrappers add to their names."""

from __future__ import annotations

import io
import itertools
import pickletools
import warnings
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from kdschemes.checksums import safetensors_is_intact
from kdschemes.errors import UserError, first_line, printable
from kdschemes.storage.archive import check_archive

STATE_KEYS = ("state_dict", "model", "net", "model_state_dict", "student", "model_ema", "state_dict_ema")
"""Where training programs put the weights in their files; the first wins, so averages come last."""

WRAPPERS = ("module.", "model.", "backbone.", "student.")
"""What wrappers put before the names, in any order and number."""

COMPILED = "_orig_mod."
"""What torch.compile puts before the names of what it compiled, also inside a network."""

COUNTERS = ("total_ops", "total_params", "n_averaged")
"""Buffers that profilers (thop) and averages add to a network's modules."""

PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}
"""Modules that torch's pickles call by their names in Python 2."""

CURE = "load it where you trust it, and save the network's state_dict() alone with torch.save"


class _Foreign:
    """Stands for any object other than tensors and plain data; what it was made of is dropped, nothing of it runs."""

    def __init__(self, *arguments: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def read_state(file: Path) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors in a .safetensors or torch file by name, on the CPU, and what the user should know of them.

    No code in the file is executed: objects other than tensors and plain data (an argparse.Namespace, NumPy scalars,
    ...) are skipped. Raises `UserError` if the file is damaged or does not contain a state dict of tensors.
    """
    try:
        content = load_file(file) if file.suffix == ".safetensors" else _load(file)
        if file.suffix == ".safetensors" and not safetensors_is_intact(file):
            raise UserError(
                f"{file} is damaged: it does not match its checksum; restore it from a copy, or make it again"
            )
    except UserError:
        raise
    except Exception as error:  # a broken file can make its reader fail in any way
        reason = first_line(error.__context__ or error).partition(". ")[0][:200]
        raise UserError(f"{file} cannot be read as tensors only ({reason}): if it is not damaged, {CURE}") from error
    notes = []
    while isinstance(content, Mapping) and (keys := [k for k in STATE_KEYS if isinstance(content.get(k), Mapping)]):
        if len(keys) > 1:
            notes.append(f"read from '{keys[0]}', not from {', '.join(map(repr, keys[1:]))}")
        content = content[keys[0]]
    if not isinstance(content, Mapping) or not any(isinstance(tensor, Tensor) for tensor in content.values()):
        names = ", ".join(map(str, content)) if isinstance(content, Mapping) else ""
        what = f"{_in_words(content)} of {names}" if names else _in_words(content)
        raise UserError(f"{file} is not a dictionary of tensors, but {printable(what)[:200]}: {CURE}")
    for name, tensor in content.items():
        if not _is_plain(tensor):
            raise UserError(
                f"{file} is not a dictionary of tensors, '{printable(str(name))[:200]}' is {_in_words(tensor)}: {CURE}"
            )
    return {str(name): tensor for name, tensor in content.items()}, notes


def unwrapped(state: Mapping[str, Tensor], wanted: Collection[str]) -> tuple[dict[str, Tensor], list[str]]:
    """Return a state dict without wrappers' prefixes and counters, and what the user should know of it.

    `wanted` are the network's own names. If only some names have a wrapper's prefix, the others belong to something
    else (a teacher, a loss) and are left out.
    """
    state = {name.replace(COMPILED, ""): tensor for name, tensor in state.items()}
    notes = []
    prefixes = [prefix for prefix in WRAPPERS if not any(name.startswith(prefix) for name in wanted)]
    while prefix := next((p for p in prefixes if any(name.startswith(p) for name in state)), None):
        inside = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
        others = [name for name in state if not name.startswith(prefix) and not _is_counter(name)]
        if others:
            notes.append(f"{len(inside)} tensors are read from '{prefix}', not the other {len(others)}")
        state = inside
    return {name: tensor for name, tensor in state.items() if name in wanted or not _is_counter(name)}, notes


def _is_plain(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_cpu and value.layout is torch.strided and not value.is_quantized


def _is_counter(name: str) -> bool:
    return name.rpartition(".")[2] in COUNTERS


def _load(file: Path) -> Any:
    """Load a torch file with every class and function that torch does not know as tensors' replaced by `_Foreign`."""
    if zipfile.is_zipfile(file):
        check_archive(file)
    stand_ins: list[Any] = [(_stand_in(name), name) for name in sorted(_names_used(file))]
    with warnings.catch_warnings(), torch.serialization.safe_globals(stand_ins):
        warnings.simplefilter("ignore")
        return torch.load(file, map_location="cpu", weights_only=True)


def _names_used(file: Path) -> set[str]:
    """Return the classes and functions that the pickles of a torch file name."""
    with file.open("rb") as opened:
        pickles: list[Any] = [opened] * 4  # format until torch 1.5: magic number, version, platform, content
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(opened) as archive:
                pickles = [io.BytesIO(archive.read(name)) for name in archive.namelist() if name.endswith("/data.pkl")]
        operations = itertools.chain.from_iterable(map(pickletools.genops, pickles))
        named = [str(name).split(" ", 1) for operation, name, _ in operations if operation.name == "GLOBAL"]
        return {f"{PYTHON_2.get(module, module)}.{name}" for module, name in named}


def _stand_in(name: str) -> type[_Foreign]:
    module, _, own = name.rpartition(".")
    return type(own, (_Foreign,), {"__module__": module})


def _in_words(value: object) -> str:
    kind = type(value)
    if isinstance(value, Tensor):
        return "sparse, quantized or without values"
    return f"a pickled {kind.__module__}.{kind.__name__}" if isinstance(value, _Foreign) else f"a {kind.__name__}"
