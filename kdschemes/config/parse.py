"""YAML and JSON as plain data, within bounds that no real file meets, and plain data as YAML.

Plain words are read as YAML 1.2 says: 010 is 10; 1:30, 2026-01-31, yes and off are text.
"""

from __future__ import annotations

import json
import re
import stat
from pathlib import Path
from typing import Any, ClassVar

import yaml

from kdschemes.checksums import json_is_intact
from kdschemes.errors import UserError, shown

MOST_BYTES = 1 << 21
"""Of a YAML file."""

MOST_NODES = 100_000
"""Values and keys in YAML, those that an alias repeats counted each time."""

DEEPEST = 32
"""Levels of nesting."""

LARGEST = 1 << 64
"""Absolute value of a whole number."""

CORE = {
    "null": (r"~|null|Null|NULL|", "~nN\0"),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+0123456789.",
    ),
    "merge": (r"<<", "<"),
}
"""What YAML 1.2 does not read as text, and merge keys: by tag the pattern and the first characters (`\\0`: none)."""

TAG = "tag:yaml.org,2002:"


class _Bounded(yaml.composer.Composer):
    """PyYAML's composer of nodes, with bounds."""

    def __init__(self) -> None:
        super().__init__()
        self._depth = self._values = 0
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose a node; an alias counts like what it repeats."""
        alias, before = self.check_event(yaml.AliasEvent), self._values  # type: ignore[attr-defined]
        self._depth += 1
        self._values += not alias
        if self._depth > DEEPEST:
            raise _Unusable(f"it is nested more than {DEEPEST} levels deep")
        node: yaml.Node | None = super().compose_node(parent, index)
        if alias and id(node) not in self._sizes:
            raise _Unusable("it contains itself")
        self._values += self._sizes[id(node)] if alias else 0
        self._sizes[id(node)] = self._values - before
        self._depth -= 1
        if self._values > MOST_NODES:
            raise _Unusable(f"it has more than {MOST_NODES:,} values")
        return node


_Safe = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader


class _Loader(_Bounded, _Safe):  # type: ignore[misc, valid-type]
    """PyYAML's loader with YAML 1.2's plain words and tags, and bounds."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}
    yaml_constructors: ClassVar[dict[str | None, Any]] = {
        tag: yaml.SafeLoader.yaml_constructors[tag]
        for tag in (None, *(TAG + name for name in ("null", "bool", "int", "float", "str", "seq", "map")))
    }

    def __init__(self, text: str) -> None:
        _Safe.__init__(self, text)
        _Bounded.__init__(self)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        text = self.construct_scalar(node)
        return int(text, 0 if text[:2] in ("0o", "0x") else 10)


class _Dumper(yaml.SafeDumper):
    """PyYAML's dumper; it puts quotes around text that YAML 1.1 or 1.2 would not read as text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _name, (_pattern, _first) in CORE.items():
    for _class in (_Loader, _Dumper):
        _characters = [character.strip("\0") for character in _first]
        _class.add_implicit_resolver(TAG + _name, re.compile(rf"(?:{_pattern})\Z"), _characters)
_Loader.add_constructor(TAG + "int", _Loader.construct_yaml_int)


class _Unusable(ValueError):
    """Why a text cannot be used."""


def read_file(path: Path, name: str) -> bytes:
    """Return the content of a file that a user wrote, or of its first bytes if it is too large for `parse_yaml`.

    Raises:
        UserError: it cannot be read, or is not a file: a pipe would be waited for.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UserError(f"{name} cannot be read: it is not a file")
        with path.open("rb") as file:
            return file.read(MOST_BYTES)
    except OSError as error:
        raise UserError(f"{name} cannot be read: {error.strerror or error}") from None


def read_yaml(path: Path, name: str | None = None) -> dict[str, Any]:
    """Return the keys and values in a YAML file. An error calls the file `name` (None: its path).

    Raises:
        UserError: it cannot be read, is not YAML, is too large, nests too deep, or has no keys.
    """
    name = shown(path) if name is None else name
    try:
        tree = parse_yaml(read_file(path, name).decode(), name)
    except UnicodeDecodeError:
        raise UserError(f"{name} cannot be read: it is not text in UTF-8") from None
    if not isinstance(tree, dict):
        raise UserError(f"{name} has no keys")
    return {str(key): value for key, value in tree.items()}


def parse_yaml(text: str, name: str) -> Any:
    """Return the plain data in a YAML text. An error calls it `name`.

    Raises:
        UserError: it is not YAML, is too large, or nests too deep.
    """
    try:
        if len(text) >= MOST_BYTES:
            raise _Unusable(f"it has more than {MOST_BYTES:,} bytes")
        return check_plain(yaml.load(text, _Loader))
    except yaml.YAMLError as error:
        line = getattr(getattr(error, "problem_mark", None), "line", 0)
        raise UserError(f"{name} is not YAML (line {1 + min(line, text.count(chr(10)))})") from None
    except _Unusable as error:
        raise UserError(f"{name} cannot be used: {error}") from None
    except (ValueError, KeyError):  # `!!float abc`, `!!bool abc`, a number of 5,000 digits
        raise UserError(f"{name} cannot be used: it has a number or a tagged value that cannot be read") from None


def parse_word(text: str) -> Any:
    """Return the value of a word on the command line: YAML in brackets or quotes, else a number, true, null, or text.

    Raises:
        UserError: the brackets or quotes do not close, or a whole number is too large.
    """
    text = text.strip()
    if text.startswith(("[", "{", "'", '"')):
        return parse_yaml(text, "the value")
    loader = _Loader("")
    tag = loader.resolve(yaml.ScalarNode, text, (True, False))
    try:
        return check_plain(loader.construct_object(yaml.ScalarNode(tag, text)))
    except _Unusable as error:
        raise UserError(f"the value cannot be used: {error}") from None
    except ValueError:
        raise UserError("the value cannot be used: a whole number is too large") from None


def parse_json(text: str | bytes) -> Any:
    """Return the plain data in a JSON text.

    Raises:
        ValueError: it is not JSON, or nests too deep.
    """
    try:
        return check_plain(json.loads(text))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_json(path: Path) -> Any:
    """Return the plain data in a JSON file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not JSON, nests too deep, or does not match its checksum.
    """
    data = parse_json(path.read_bytes())
    if isinstance(data, dict) and not json_is_intact(data):
        raise ValueError("it does not match its checksum")
    return data


def check_plain(value: Any) -> Any:
    """Return a value that consists of mappings, lists, text, numbers, true, false and null, or raise ValueError.

    Also refused: more than `DEEPEST` levels, whole numbers beyond `LARGEST`, zero bytes and lone surrogates in text.
    """
    level = [value]
    for _ in range(DEEPEST):
        level = [part for whole in level for part in _parts(whole)]
        if not level:
            return value
    raise _Unusable(f"it is nested more than {DEEPEST} levels deep")


def _parts(value: Any) -> list[Any]:
    match value:
        case dict():
            return [*value, *value.values()]
        case list() | tuple():
            return list(value)
        case str() if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
            raise _Unusable("it has a zero byte, or bytes that are not text in UTF-8")
        case int() if abs(value) > LARGEST:
            raise _Unusable("a whole number is too large")
        case str() | int() | float() | None:
            return []
    raise _Unusable(f"it has a {type(value).__name__}")


def to_yaml(value: Any, *, width: int = 80, flow: bool = False) -> str:
    """Return plain data as YAML, keys in their order; with `flow` in brackets."""
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, width=width, default_flow_style=flow)
    return text
