"""Options of the soft term that have no effect, because the scheme gives it no weight."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RESPONSE = "losses.response"


def effective(keys: Mapping[str, Any], scheme: Mapping[str, Any]) -> dict[str, Any]:
    """Return dotted keys without those of `losses.response` if `scheme` (its options) has alpha = 0.

    A run with alpha = 0 is then the same whatever the temperature is.
    """
    unused = scheme.get("alpha") == 0 and not scheme.get("teacher_alpha")
    return {key: value for key, value in keys.items() if not (unused and is_response(key))}


def is_response(key: str) -> bool:
    """Return whether a dotted key belongs to `losses.response`."""
    return f"{key}.".startswith(f"{RESPONSE}.")
