"""JSON from outside, read strictly: what two readers could understand differently is refused."""

from __future__ import annotations

import json
import math
from typing import Any

#: Objects and lists within each other; an artifact's own fields need 4, the rest is for recipes.
MAX_DEPTH = 32


def parse(text: str | bytes) -> Any:
    """Returns the value that a JSON text holds.

    Raises:
        ValueError: It is no JSON, names a key twice in an object, holds NaN, an infinity or a
            number that becomes one, or is nested more than `MAX_DEPTH` levels deep.
    """
    try:
        value = json.loads(
            text, object_pairs_hook=_object, parse_float=_finite, parse_constant=_no_constant
        )
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    if _depth(value) > MAX_DEPTH:
        raise ValueError(f"it is nested more than {MAX_DEPTH} levels deep")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"it names the key {twice[:80]!r} twice")
    return found


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is too large for a number")
    return number


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number that JSON may hold")


def _depth(value: Any) -> int:
    """Returns how many lists and objects a JSON value has within each other, without recursion."""
    depth, level = 0, [value]
    while level := [v for v in level if isinstance(v, (dict, list))]:
        depth += 1
        level = [c for v in level for c in (v.values() if isinstance(v, dict) else v)]
    return depth
