"""YAML 1.2's plain words, the bounds of what is read, and text that comes back as it was written."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from kdschemes.config.naming import in_line
from kdschemes.config.parse import DEEPEST, MOST_BYTES, parse_json, parse_word, parse_yaml, read_yaml, to_yaml
from kdschemes.errors import UserError

WORDS: dict[str, Any] = {
    "010": 10, "-010": -10, "+7": 7, "0x1F": 31, "0o17": 15, "1e3": 1000.0, "1.": 1.0, ".5": 0.5, "5e-4": 5e-4,
    ".inf": math.inf, "-.INF": -math.inf, "true": True, "False": False, "null": None, "~": None, "": None,
    **dict.fromkeys(
        ["1:30", "1:30.5", "1_000", "2026-01-31", "2024-13-01", "yes", "No", "on", "off", "y", "nan", "inf", "=", "0b1"]
    ),
}  # fmt: skip


@pytest.mark.parametrize(("word", "value"), [(word, word if value is None and word not in ("null", "~", "") else value)
                                             for word, value in WORDS.items()])  # fmt: skip
def test_plain_words_are_those_of_yaml_1_2(word: str, value: Any) -> None:
    for found in (parse_word(word), parse_yaml(f"key: {word}", "it")["key"]):
        assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    "text",
    ["exp #1", "a: b", "a, b", "- a", "*a", "&a", "!a", "@a", "%a", "| a", "> a", "? a", "a]", "x'y", "`a`", "#1"],
)
def test_text_on_the_command_line_stays_text(text: str) -> None:
    assert parse_word(text) == parse_word(f" {text} ") == text


def test_brackets_and_quotes_are_yaml() -> None:
    assert parse_word("[a, 010, {b: yes}, null]") == ["a", 10, {"b": "yes"}, None]
    assert parse_word("'010'") == parse_word('"010"') == "010"
    for text in ("[", "{a", "'a", "[exp #1]", '["\\0"]', "[!!float abc]", "[!!python/name:os.system x]"):
        with pytest.raises(UserError, match=r"^the value (is not YAML|cannot be used)"):
            parse_word(text)


@pytest.mark.parametrize(
    "value",
    [
        *(
            "yes",
            "1e3",
            "1_0",
            "010",
            "0o7",
            "1:30",
            "2026-01-31",
            "exp #1",
            " a ",
            "a\nb",
            "a: b",
            "~",
            "",
            "null",
            "=",
        ),
        *("'", '"', "[", "é\u2028", "\x1b[31m", "<<", "a" * 300, "1234567890e12345"),
        *(1e-5, 1e16, 0.1, -3, 2**63, True, None, math.inf, [], {}, [["a"], {"b": ["1e3", "x, y"]}]),
    ],
)
def test_what_is_written_is_read_again(value: Any) -> None:
    assert parse_word(in_line(value)) == value
    assert parse_yaml(to_yaml({"key": value}), "it") == {"key": value}
    if not isinstance(value, str) or value != "é\u2028":
        assert yaml.safe_load(to_yaml({"key": value})) == {"key": value}


def test_a_value_used_twice_is_written_twice() -> None:
    shared = ["a"]
    assert in_line([shared, shared]) == "[[a], [a]]"


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "\n".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "a: &a {k: 1}\n" + "\n".join(f"a{n + 1}: &a{n + 1} {{<<: [*a{n or ''}, *a{n or ''}]}}" for n in range(40))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: " + "[" * 600 + "]" * 600, f"nested more than {DEEPEST} levels"),
        ("a: " + "{b: " * 100_000, f"nested more than {DEEPEST} levels"),
        ("- " * 600 + "a", f"nested more than {DEEPEST} levels"),
        ("a: &a [*a]", "contains itself"),
        ("a: &a {b: {c: *a}}", "contains itself"),
        (BOMB, "more than 100,000 values"),
        (MERGES, "more than 100,000 values"),
        pytest.param("a: [" + "1," * 110_000 + "]", "more than 100,000 values", marks=pytest.mark.slow),
        ("#" * MOST_BYTES, "more than 2,097,152 bytes"),
        ("seed: !!float abc", "cannot be read"),
        ("seed: !!bool abc", "cannot be read"),
        ("seed: !!int abc", "cannot be read"),
        ("seed: " + "1" * 5_000, "cannot be read"),
        ("seed: 0x" + "f" * 5_000, "whole number is too large"),
        ("seed: " + "1" * 100, "whole number is too large"),
        ("seed: !!timestamp 2024-01-01", "is not YAML"),
        ("seed: !!binary aGk=", "is not YAML"),
        ("seed: !!set {a}", "is not YAML"),
        ("seed: !!python/object/apply:os.getcwd []", "is not YAML"),
        ("{[a]: b}", "is not YAML"),
        ('root: "\\0"', "zero byte"),
        ('root: "\\ud800"', "is not YAML"),
        ('"\\0": 1', "zero byte"),
        ("a: *b", "is not YAML"),
        ("a: 1\n---\nb: 2", "is not YAML"),
        ("\x1b[31m", "is not YAML"),
    ],
    ids=lambda text: text[:24].encode("unicode_escape").decode(),
)
def test_what_cannot_be_used_is_refused_in_one_line(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "file.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=problem) as caught:
        read_yaml(path)
    message = str(caught.value)
    assert message.startswith(f"{path} ")
    assert "\n" not in message
    assert len(message) < len(str(path)) + 200


def test_aliases_and_merge_keys_are_read() -> None:
    text = "one: &one {a: 1, b: [2]}\ntwo: {<<: *one, a: 3}\nthree: [*one, *one]"
    one = {"a": 1, "b": [2]}
    assert parse_yaml(text, "it") == {"one": one, "two": {"a": 3, "b": [2]}, "three": [one, one]}


def test_what_is_no_file_of_keys_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"a: \xff")
    (tmp_path / "list.yaml").write_text("- a")
    for name, problem in (
        *(("pipe.yaml", "is not a file"), ("bytes.yaml", "not text"), ("list.yaml", "has no keys")),
        *((".", "is not a file"), ("none.yaml", "No such file"), ("x" * 300, "File name too long")),
    ):
        with pytest.raises(UserError, match=problem):
            read_yaml(tmp_path / name)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "[" * 600 + "]" * 600, '{"a":' * 40 + "1" + "}" * 40, "1" * 5_000, "{", '"\\u0000"']
)
def test_json_beyond_the_bounds_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_json(text)
    assert parse_json('{"a": [1, 2.5, null, true, "\\u001b"]}') == {"a": [1, 2.5, None, True, "\x1b"]}
