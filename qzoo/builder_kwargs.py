"""What builders' keywords may be where they come from a file: known names, sane types and sizes.

A file decides with a few bytes how large a model is built, so each keyword has a bound here, far
above what any model of the zoo needs. Builders called in Python take what torchvision's take.
"""

from __future__ import annotations

import functools
import inspect
import numbers
import reprlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from .errors import ArgumentError, did_you_mean


@dataclass(frozen=True)
class _Rule:
    """What one keyword may be: a test, and the words for it."""

    fits: Callable[[Any], bool]
    words: str


def _whole(low: int, high: int) -> _Rule:
    return _Rule(
        lambda value: _is_whole(value) and low <= value <= high,
        f"a whole number from {low:,} to {high:,}",
    )


def _real(low: float, high: float) -> _Rule:
    return _Rule(
        lambda value: _is_real(value) and low <= value <= high, f"a number from {low} to {high}"
    )


def _is_whole(value: object) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _is_real(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _is_flag(value: object) -> bool:
    return isinstance(value, int) and value in (0, 1)


def _are_dilations(value: Any) -> bool:
    return value is None or (
        isinstance(value, (list, tuple)) and len(value) == 3 and all(map(_is_flag, value))
    )


#: Rows of MobileNet V2's table: expansion, channels, blocks, stride.
_ROW = (_real(0.01, 64), _whole(1, 16_384), _whole(1, 64), _whole(1, 2))


def _is_table(value: Any) -> bool:
    return value is None or (
        isinstance(value, (list, tuple))
        and 1 <= len(value) <= 64
        and all(
            isinstance(row, (list, tuple))
            and len(row) == len(_ROW)
            and all(rule.fits(cell) for rule, cell in zip(_ROW, row, strict=True))
            for row in value
        )
    )


_FLAG = _Rule(_is_flag, "true or false")
_SHARE = _real(0.0, 1.0)
# Python code may give a class, a file cannot.
_CLASS = _Rule(lambda value: value is None or callable(value), "left out")

_RULES = {
    "num_classes": _whole(1, 100_000),
    # ResNet and ResNeXt
    "groups": _whole(1, 4096),
    "width_per_group": _whole(1, 4096),
    "zero_init_residual": _FLAG,
    "replace_stride_with_dilation": _Rule(_are_dilations, "null or three times true or false"),
    # MobileNet V2 and V3
    "width_mult": _real(0.01, 64.0),
    "inverted_residual_setting": _Rule(
        _is_table,
        "null or 1 to 64 rows [expansion, channels, blocks, stride] of at most "
        "[64, 16384, 64, 2] each",
    ),
    "round_nearest": _whole(1, 1024),
    "reduced_tail": _FLAG,
    "dilated": _FLAG,
    # GoogLeNet and Inception
    "aux_logits": _FLAG,
    "transform_input": _FLAG,
    "init_weights": _Rule(lambda value: value is None or _is_flag(value), "true or false"),
    # several families
    "dropout": _SHARE,
    "dropout_aux": _SHARE,
    "block": _CLASS,
    "norm_layer": _CLASS,
}


def validate_builder_kwargs(
    name: str, construct: Callable[..., Any], kwargs: Mapping[str, Any]
) -> None:
    """Checks keywords that come from a file before anything is built from them.

    Args:
        name: The model's name, for the message.
        construct: What makes the model from its keywords (`ModelEntry.construct`).
        kwargs: The keywords, without `weights`, `progress`, `quantize` and `backend`.

    Raises:
        ArgumentError: The model has no such keyword, or its value is of another type or outside of
            what any model needs.
    """
    known = builder_keywords(construct)
    for key, value in kwargs.items():
        check_keyword(name, key, value, known)


def check_keyword(
    name: str, key: str, value: Any, known: Collection[str] = frozenset(_RULES)
) -> None:
    """Checks one keyword of a builder.

    Args:
        name: The model's name, for the message.
        key: The keyword.
        value: Its value.
        known: The model's keywords, or those of all models.

    Raises:
        ArgumentError: It is not among the known ones, of another type, or outside of what any model
            needs.
    """
    if key not in known:
        raise ArgumentError(
            f"Cannot build {name} with {str(key)[:80]}={reprlib.repr(value)}: it has no "
            f"keyword {reprlib.repr(key)}." + did_you_mean(str(key)[:80], known)
        )
    if not _RULES[key].fits(value):
        raise ArgumentError(
            f"Cannot build {name} with {key}={reprlib.repr(value)}: {key} must be "
            f"{_RULES[key].words}."
        )


@functools.cache
def builder_keywords(construct: Callable[..., Any]) -> dict[str, Any]:
    """Returns the keywords that a builder hands on to its model, and their defaults.

    Args:
        construct: `ModelEntry.construct`: a function with its keywords in its signature, or one of
            the zoo's classes, which take those of their torchvision class.
    """
    inner = getattr(construct, "func", construct)
    if isinstance(inner, type):
        inner = next((c for c in inner.__mro__ if c.__module__.startswith("torchvision.")), inner)
    given = getattr(construct, "args", ())
    own = getattr(construct, "keywords", {})
    parameters = inspect.signature(functools.partial(inner, *given, **own)).parameters
    return {key: parameter.default for key, parameter in parameters.items() if key in _RULES}
