"""The entries of a state dict under the model's own names, whatever it was wrapped in."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from .._core.given import is_tensor
from ..errors import ArtifactError
from .pth import QuantizedArray

Shape = tuple[int, ...]
#: Parts of names that wrappers put in, around a model or any part of it: data parallelism,
#: averaging, torch.compile, fully sharded data parallelism, activation checkpointing.
_WRAPPERS = re.compile(
    r"(?:^|(?<=\.))(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
#: What modules that hold a model and a loss (Lightning's, for one) call the model.
_HOLDERS = ("model", "net", "network", "backbone")
#: How linear layers of int8 models store their weights, and all others.
_WEIGHTS = ("._packed_params._packed_params", "._packed_params.weight", ".weight")
#: Entries that averaging adds.
_COUNTER = "n_averaged"
#: More prefixes than anybody puts before a name.
_MAX_PREFIXES = 16


def is_numbers(value: Any) -> bool:
    """Says whether an entry of a state dict is a numpy array or a tensor of PyTorch."""
    return isinstance(value, np.ndarray) or is_tensor(value)


def unwrapped(entries: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the entries of the model alone, under its own names.

    Prefixes in any combination go: those of wrappers wherever they stand, and whatever all names
    have in front. Entries without a dot in their name (`epoch`) are no layer's.

    Raises:
        ArtifactError: Two entries would get the same name.
    """
    return _split(entries)[0]


def warn_of_others(entries: Mapping[str, Any]) -> None:
    """Warns of tensors beside the model, which `unwrapped` leaves out: those of a loss, say."""
    others = _split(entries)[1]
    if others:
        warnings.warn(
            f"The checkpoint holds {len(others)} tensors beside the model, such as "
            f"{others[0][:100]!r}, which are left out.",
            UserWarning,
            stacklevel=3,
        )


def _split(entries: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Returns the entries of the model, and the names of the others."""
    named: dict[str, Any] = {}
    for key, value in entries.items():
        name = _WRAPPERS.sub("", key)
        if name.rpartition(".")[2] == _COUNTER:
            continue
        if "." not in name and not (is_numbers(value) or isinstance(value, QuantizedArray)):
            continue
        if name in named:
            raise ArtifactError(
                f"Two entries of the checkpoint are both {name[:100]!r} without the prefixes that "
                "wrappers put before names: save the state dict of one model alone."
            )
        named[name] = value
    others: list[str] = []
    for _ in range(_MAX_PREFIXES):
        others += [name for name in named if "." not in name]  # no layer of any model
        named = {name: value for name, value in named.items() if "." in name}
        prefix = _prefix(named)
        if prefix is None:
            break
        others += [name for name in named if not name.startswith(prefix)]
        named = {k.removeprefix(prefix): v for k, v in named.items() if k.startswith(prefix)}
    return named, others


def _prefix(named: Mapping[str, Any]) -> str | None:
    """Returns what the model's names begin with, None for nothing."""
    first = {name.partition(".")[0] for name in named}
    if len(first) == 1 and all(name.count(".") > 1 for name in named):
        return f"{next(iter(first))}."  # the names of every model differ at once
    holder = next((name for name in _HOLDERS if name in first), None)
    return None if holder is None else f"{holder}."


def weight_shapes(entries: Mapping[str, Any]) -> dict[str, Shape]:
    """Returns the shapes of convolutions' (4-d) and linear layers' (2-d) weights by layer name."""
    shapes = {}
    for key, value in entries.items():
        ending = next((ending for ending in _WEIGHTS if key.endswith(ending)), None)
        weight = value[0] if isinstance(value, tuple) and value else value
        weight = weight.values if isinstance(weight, QuantizedArray) else weight
        if ending is not None and is_numbers(weight) and weight.ndim in (2, 4):
            shapes[key.removesuffix(ending)] = tuple(weight.shape)
    return shapes


def classes_of(entries: Mapping[str, Any], head: str) -> int:
    """Returns the outputs of the linear layer `head`; 1000 where it is missing."""
    shape = weight_shapes(entries).get(head, ())
    return shape[0] if len(shape) == 2 and shape[0] > 0 else 1000
