"""Options of a public function: a frozen dataclass that keywords may be given instead of."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from ..errors import ArgumentError, did_you_mean

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")


def chosen(kind: type[T], options: T | None, changes: Mapping[str, Any]) -> T:
    """Returns options with some of them changed.

    Args:
        kind: The dataclass of the options.
        options: Where to start from; None takes the defaults.
        changes: The other values by name, as keywords of a function.

    Raises:
        ArgumentError: `options` is something else, or a changed value is out of range.
        TypeError: There is no such option.
    """
    if options is not None and not isinstance(options, kind):
        raise ArgumentError(f"options should be {kind.__name__}, not {options!r}.")
    known = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    for name in changes:
        if name not in known:
            raise TypeError(f"There is no option {name!r} here." + did_you_mean(name, known))
    return dataclasses.replace(options or kind(), **changes)  # type: ignore[type-var]


def takes(kind: Callable[..., Any]) -> Callable[[F], F]:
    """Shows options in the signature of a function that takes them as keywords.

    `help()` and editors then list them with their defaults.

    Args:
        kind: The dataclass of the options, or another function that takes them.
    """

    def decorate(function: F) -> F:
        own = inspect.signature(function)
        named = [p for p in own.parameters.values() if p.kind is not p.VAR_KEYWORD]
        fields = inspect.signature(kind).parameters.values()
        shown = [p.replace(kind=p.KEYWORD_ONLY) for p in fields if p.name not in own.parameters]
        function.__signature__ = own.replace(  # type: ignore[attr-defined]
            parameters=[*named, *shown]
        )
        return function

    return decorate


def check_count(name: str, value: Any) -> None:
    """Checks a number of images.

    Raises:
        ArgumentError: It is no whole number above 0.
    """
    if type(value) is not int or value < 1:
        raise ArgumentError(f"{name} should be a whole number above 0, not {value!r}.")
