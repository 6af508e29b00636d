"""Messages of errors are one plain, short line."""

from __future__ import annotations

import pytest
import torch

from kdschemes.errors import ECHOED, first_line, nearest, out_of_memory, shown, unknown


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("one\ntwo", "one"),
        ("\n\x1b[1mDo this\x1b[0m now", "Do this now"),
        ("a\x1b[38;5;9m\tb\x07\x9b1m", "ab1m"),
        ("", "ValueError"),
        ("\x1b[0m\n", "ValueError"),
    ],
)
def test_first_line(text: str, line: str) -> None:
    assert first_line(ValueError(text)) == line


def test_an_echo_is_short_and_printable() -> None:
    assert shown("a b") == "a b"
    assert shown("a\nb\x1b[31m\u2028\udcff") == "a\\nb\\x1b[31m\\u2028\\udcff"
    assert shown("x" * ECHOED) == "x" * ECHOED
    assert shown("x" * (ECHOED + 1)) == "x" * ECHOED + "..."
    assert len(str(unknown("name", "x" * 10**6, ["a", "b"]))) < 300
    assert nearest("recipe" * 10**5, ["recipes"]) == ""


def test_only_memory_that_is_too_small_is_out_of_memory() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**15)
    for error in (caught.value, MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")):
        told = out_of_memory(error)
        assert told is not None
        assert str(told).startswith("out of memory (")
    assert out_of_memory(RuntimeError("shapes do not match")) is None
