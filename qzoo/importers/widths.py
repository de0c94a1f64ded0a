"""Which keywords give an architecture the widths of a state dict: builds models to see."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from torch import nn

from ..builder_kwargs import builder_keywords
from ..errors import ArgumentError
from ..registry import ModelEntry, get_entry
from .architecture import fits
from .names import Shape


def widths_of(name: str, found: Mapping[str, Shape]) -> dict[str, Any] | None:
    """Returns the keywords that give an architecture these weights, None where none do.

    Args:
        name: The registry's name of the architecture.
        found: Shapes of weights by layer name, without auxiliary classifiers, for all of its
            convolutions and no others.
    """
    entry = get_entry(name)
    if entry.widths is None:
        return None
    defaults = builder_keywords(entry.construct)
    for kwargs in entry.widths(found):
        changed = {k: v for k, v in kwargs.items() if v != defaults.get(k)}
        with contextlib.suppress(ArgumentError):  # sizes that no model has
            if fits(found, _shapes(entry, changed)):
                return changed
    return None


def _shapes(entry: ModelEntry, kwargs: Mapping[str, Any]) -> dict[str, Shape]:
    aux = {"aux_logits": False} if entry.aux else {}
    return {
        name: tuple(module.weight.shape)
        for name, module in entry.skeleton({**kwargs, **aux}).named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
    }
