"""Python code that the user names: files and modules, which of them may run, and how they run.

Code is named as `FILE.py`, `FILE.py:NAME` or `MODULE:NAME`. It runs only if the user typed it on a command line or in
Python. What a recipe, a study, a run's folder or a file beside weights says may come from somebody else: it can choose
among the allowed code, but not allow any. Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import module_from_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from kdschemes.config.parse import read_file
from kdschemes.config.paths import expand
from kdschemes.errors import UserError, first_line, nearest, shown

ALLOWED = "KDSCHEMES_ALLOWED_CODE"
"""Environment variable: the digests of the allowed code. A study's processes and jobs inherit it."""

DIGITS = 16
"""Hexadecimal digits of a SHA-256 that a configuration keeps: changed code is another run."""

_NAME = r"[^\W\d]\w*"
_REFERENCE = re.compile(rf"(.+\.py)(?::({_NAME}))?|({_NAME}(?:\.{_NAME})*):({_NAME})")


@dataclass(frozen=True)
class Code:
    """A file (`is_file`) or a module, and the name in it that is meant; None: the whole file is run."""

    source: str
    name: str | None
    is_file: bool

    def __str__(self) -> str:
        return self.source if self.name is None else f"{self.source}:{self.name}"

    @property
    def short(self) -> str:
        """What names it without folders: `my.Net`."""
        stem = Path(self.source).stem if self.is_file else self.source
        return stem if self.name is None else f"{stem}.{self.name}"


class CodeRefused(UserError):
    """Code that the user did not name. The message ends where what allows it belongs."""

    def __init__(self, refused: Iterable[tuple[str, str]], cure: str = "") -> None:
        self.refused = tuple(refused)
        named = ", ".join(f"{kind} {name}" for kind, name in self.refused)
        message = f"{named} is Python code that a file names, not you; if you trust it, allow it"
        super().__init__(f"{message}: {cure}" if cure else message)


def parse_code(text: Any) -> Code | None:
    """Return the code that a text names; None if it is another kind of name."""
    found = _REFERENCE.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        return None
    file, name, module, attribute = found.groups()
    return Code(file, name, True) if file else Code(module, attribute, False)


def code_digest(code: Code) -> str:
    """Return the SHA-256 of the code's file, which is not run.

    Raises:
        UserError: there is no such file or module.
    """
    return hashlib.sha256(_read(code)).hexdigest()


def allow(code: Code) -> None:
    """Allow code that the user typed: in this process and in those that it starts from now on.

    Raises:
        UserError: there is no such file or module.
    """
    allowed = [*_allowed(), _permission(code, code_digest(code))]
    os.environ[ALLOWED] = " ".join(dict.fromkeys(allowed))


def allow_named(names: Iterable[str]) -> None:
    """Allow code by its names, as after `--allow`.

    Raises:
        UserError: something else is named, or there is no such file or module.
    """
    for name in names:
        code = parse_code(name)
        if code is None:
            raise UserError(f"--allow {shown(name)}: name Python code, as FILE.py, FILE.py:NAME or MODULE:NAME")
        allow(code)


def refused(named: Iterable[tuple[str, Code]]) -> list[tuple[str, str]]:
    """Return what is not allowed of named code, each with what it is: a topology, a network, ...

    Raises:
        UserError: there is no such file or module.
    """
    every = dict.fromkeys(named)
    return [(kind, str(code)) for kind, code in every if _permission(code, code_digest(code)) not in _allowed()]


def read_allowed(code: Code, kind: str, digest: str = "") -> bytes:
    """Return the text of allowed code, to be run.

    Raises:
        CodeRefused: it was not allowed.
        UserError: it cannot be read, or its digest does not begin with the recorded one.
    """
    text = _read(code)
    found = hashlib.sha256(text).hexdigest()
    if _permission(code, found) not in _allowed():
        raise CodeRefused([(kind, str(code))])
    if not found.startswith(digest):
        raise UserError(f"{kind} {code} has changed since this run began: type its name to use the new version")
    return text


def load_code(code: Code, kind: str, digest: str = "") -> Any:
    """Run allowed code, once in a process, and return what its name means: a module if it has no name.

    Of a file, and of a module that is not imported yet, exactly the text that was checked is run, not what the file or
    a compiled copy of it holds by now. Its folder is on Python's path for what it imports: first meanwhile, then last,
    for functions that import when they are called.

    Raises:
        CodeRefused: it was not allowed.
        UserError: it has changed since, cannot be imported, or does not have the name.
    """
    text = read_allowed(code, kind, digest)
    module = _run_file(code, kind, text) if code.is_file else _import(code, kind, text)
    if code.name is None:
        return module
    try:
        return getattr(module, code.name)
    except AttributeError:
        names = [name for name in vars(module) if not name.startswith("_")]
        raise UserError(f"{kind} {code}: there is no {code.name} in {code.source}{nearest(code.name, names)}") from None


def where_raised(error: BaseException, code: str) -> str:
    """Return an error of the user's code on one line: its type, its message, and its last line in that code's file."""
    place, trace = "", error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename.endswith(code) and code:
            place = f", {Path(code).name} line {trace.tb_lineno}"
        trace = trace.tb_next
    return f"{type(error).__name__}: {first_line(error)}{place}"


# ----------------------------------------------------------------------------------------------------- given in Python

GIVEN = "given/"
"""How the names of objects begin that were passed in Python, such as `given/Net-1a2b3c4d`; they end with a digest."""

_GIVEN: dict[str, Any] = {}


def give(value: Any, label: str, digest: str) -> str:
    """Keep an object that the user passed in Python, and return its name for a configuration."""
    name = f"{GIVEN}{label}-{digest[:8]}"
    _GIVEN[name] = value
    return name


def forget(names: Iterable[str]) -> None:
    """Keep these objects no longer."""
    for name in names:
        _GIVEN.pop(name, None)


def given(name: str, cure: str) -> Any:
    """Return the object with this name.

    Raises:
        UserError: it was passed in another process; `cure` says how to pass it again.
    """
    if name not in _GIVEN:
        raise UserError(f"{name} was passed in Python, but not in this process: {cure}")
    return _GIVEN[name]


# ------------------------------------------------------------------------------------------------------------- private


def _allowed() -> list[str]:
    return os.environ.get(ALLOWED, "").split()


def _permission(code: Code, digest: str) -> str:
    return digest if code.name is None else f"{digest}.{code.name}"


def _read(code: Code) -> bytes:
    if code.is_file:
        return read_file(
            Path(expand(code.source)), f"recipe {shown(code.source)}" if code.name is None else code.source
        )
    return read_file(Path(str(_spec(code.source).origin)), code.source)


def _spec(module: str) -> ModuleSpec:
    """Return where a module is, in the current folder or installed, without running it or its packages."""
    path, spec = [str(Path.cwd()), *sys.path], None
    parts = module.split(".")
    for number in range(len(parts)):
        spec = PathFinder.find_spec(".".join(parts[: number + 1]), path)
        if spec is None:
            break
        path = list(spec.submodule_search_locations or [])
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        raise UserError(f"there is no module {shown(module)} in {Path.cwd()} or among the installed packages")
    return spec


def _run_file(code: Code, kind: str, text: bytes) -> ModuleType:
    path = Path(expand(code.source))
    name = f"kdschemes_file_{path.stem}_{hashlib.sha256(str(path.absolute()).encode() + text).hexdigest()[:8]}"
    if name not in sys.modules:
        module = ModuleType(name)
        module.__file__ = str(path)
        _run(module, kind, code, text, path.absolute().parent)
    return sys.modules[name]


def _import(code: Code, kind: str, text: bytes) -> ModuleType:
    module, digest = sys.modules.get(code.source), hashlib.sha256(text).hexdigest()
    if module is not None and _RAN.get(code.source, digest) == digest:
        return module
    spec = _spec(code.source)
    parent = code.source.rpartition(".")[0]
    if parent:
        with _told(kind, code, str(spec.origin)), _on_path(Path.cwd()):
            importlib.import_module(parent)
    if not str(spec.origin).endswith(".py"):
        with _told(kind, code, ""), _on_path(Path.cwd()):
            return importlib.import_module(code.source)
    made = module_from_spec(spec)
    _run(made, kind, code, text, Path.cwd())
    _RAN[code.source] = digest
    return made


_RAN: dict[str, str] = {}
"""The digests of the modules that ran here, as they were then."""


def _run(module: ModuleType, kind: str, code: Code, text: bytes, folder: Path) -> None:
    sys.modules[module.__name__] = module
    try:
        with _told(kind, code, str(module.__file__)), _on_path(folder):
            exec(compile(text, str(module.__file__), "exec"), vars(module))
    except BaseException:
        del sys.modules[module.__name__]
        raise


@contextlib.contextmanager
def _told(kind: str, code: Code, file: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        why = where_raised(error, file)
        raise UserError(f"{kind} {shown(code)} cannot be imported ({why})") from error


@contextlib.contextmanager
def _on_path(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(folder))
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
