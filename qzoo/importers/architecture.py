"""Which model of the zoo a state dict is of, told from the names and shapes of its weights."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import nn

from ..artifact.layers import shape_problem
from ..builder_kwargs import builder_keywords
from ..errors import ArgumentError, ArtifactError, listed
from ..registry import get_entry, list_models
from .names import Shape, unwrapped, weight_shapes
from .published import without_aux


class _Layers(NamedTuple):
    """The weights of an architecture by layer name; `head` is the linear layer of the logits."""

    convolutions: dict[str, Shape]
    linear: dict[str, Shape]
    head: str


def guess_architecture(entries: Mapping[str, Any]) -> str:
    """Returns the model of the registry that a state dict is of.

    Args:
        entries: A state dict as the safe reader gives it.

    Raises:
        ArgumentError: It is of none.
        ArtifactError: It is of one whose first convolution takes other than 3 channels.
    """
    return recognize(entries)[0]


def recognize(entries: Mapping[str, Any], model: str | None = None) -> tuple[str, dict[str, Any]]:
    """Returns the model that a state dict is of, and the keywords that its widths call for.

    Args:
        entries: A state dict, float, prepared for QAT or int8, as the safe reader gives it.
        model: The registry's name where it is known; then only the keywords are looked for.

    Returns:
        The name, and such keywords as `width_mult` or `groups`. `num_classes` is not among them,
        nor what no shape tells (`transform_input`).

    Raises:
        ArgumentError: It is of no model, or of one that needs keywords which are not told by it.
        ArtifactError: It is of one whose first convolution takes other than 3 channels.
        UnknownNameError: There is no model of this name.
    """
    found = weight_shapes(unwrapped(entries))
    names = list_models() if model is None else [get_entry(model).name]
    for name in names:  # one at most: no two models have the same layers and widths
        if _fits_as_usual(name, found):
            return name, {}
    # Here several may be the same (resnet50 and wide_resnet50_2 of one width).
    matches = [
        (len(kwargs), len(name), name, kwargs)
        for name in names
        if (kwargs := _widths(name, found)) is not None
    ]
    if matches:
        _, _, name, kwargs = min(matches, key=lambda match: match[:3])
        return name, kwargs
    _check_stem(names, found)
    if model is not None:
        return names[0], {}  # what is wrong will be said of the first layer that does not fit
    convolutions = [name for name, shape in found.items() if len(shape) == 4]
    if convolutions:
        raise ArgumentError(
            f"The {len(convolutions)} convolutions of this checkpoint ({_shown(convolutions)}) fit "
            "no model of the zoo: name the model with --model, or model=... and its keywords in "
            "Python."
        )
    raise ArgumentError(
        f"This checkpoint holds no convolutions, so its weights fit no model of the zoo: name the "
        f"model with --model, or the key that holds the state dict with --part. {expected(entries)}"
    )


def expected(entries: Mapping[str, Any]) -> str:
    """Returns the sentence on which keys there are instead of those of a model."""
    return (
        f"Its keys are {_shown(list(entries)) or 'none'}; expected are those of "
        "model.state_dict(), such as 'conv1.weight', also in a dict under 'model', 'state_dict' "
        "and the like."
    )


def head_of(name: str) -> str:
    """Returns the name of an architecture's last linear layer, which gives the logits."""
    return _layers(name).head


def _fits_as_usual(name: str, found: Mapping[str, Shape]) -> bool:
    """Whether these are the weights of an architecture in its usual width."""
    own = without_aux(get_entry(name), found)
    return _has_layers(name, own) and _fits(own, _layers(name))


def _widths(name: str, found: Mapping[str, Shape]) -> dict[str, Any] | None:
    """Returns the keywords that give an architecture these weights, None where none do."""
    entry = get_entry(name)
    own = without_aux(entry, found)
    if entry.widths is None or not _has_layers(name, own):
        return None
    defaults = builder_keywords(entry.construct)
    for kwargs in entry.widths(own):
        changed = {k: v for k, v in kwargs.items() if v != defaults.get(k)}
        with contextlib.suppress(ArgumentError):  # sizes that no model has
            if _fits(own, _layers(name, tuple(changed.items()))):
                return changed
    return None


def _has_layers(name: str, found: Mapping[str, Shape]) -> bool:
    convolutions = {layer for layer, shape in found.items() if len(shape) == 4}
    return convolutions == set(_layers(name).convolutions)


def _fits(found: Mapping[str, Shape], layers: _Layers) -> bool:
    if any(found[name] != shape for name, shape in layers.convolutions.items()):
        return False
    for name, shape in layers.linear.items():
        got = found.get(name, shape)
        if got[1:] != shape[1:] or (name != layers.head and got != shape):
            return False
    return True


@functools.lru_cache(maxsize=256)
def _layers(name: str, kwargs: tuple[tuple[str, Any], ...] = ()) -> _Layers:
    entry = get_entry(name)
    aux = {"aux_logits": False} if entry.aux else {}
    convolutions, linear = {}, {}
    for key, module in entry.skeleton({**dict(kwargs), **aux}).named_modules():
        if isinstance(module, nn.Conv2d):
            convolutions[key] = tuple(module.weight.shape)
        elif isinstance(module, nn.Linear):
            linear[key] = tuple(module.weight.shape)
    return _Layers(convolutions, linear, list(linear)[-1])


def _check_stem(names: list[str], found: Mapping[str, Shape]) -> None:
    """Refuses weights that lack nothing but the 3 channels of RGB in their first convolution.

    Raises:
        ArtifactError: They would fit a model if their first convolution took 3 channels.
    """
    for name in names:
        stem, wanted = next(iter(_layers(name).convolutions.items()))
        got = found.get(stem, wanted)
        if len(got) == 4 and got[1] != 3:
            three = {**found, stem: (got[0], 3, *got[2:])}
            if _fits_as_usual(name, three) or _widths(name, three) is not None:
                raise ArtifactError(shape_problem(stem, got, three[stem]))


def _shown(names: list[str]) -> str:
    return listed((repr(name) for name in names), 8)
