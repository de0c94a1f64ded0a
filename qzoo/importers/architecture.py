"""Which model of the zoo a state dict is of, told from the names and shapes of its weights."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from .._core.optional import require_torch
from ..artifact.layers import shape_problem
from ..errors import ArgumentError, ArtifactError, listed
from ..registry import list_models, model_name
from .names import Shape, unwrapped, weight_shapes
from .plan import plan, transforms_input, without_aux


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
        MissingDependencyError: It is of a model of unusual widths, and PyTorch is not installed.
        UnknownNameError: There is no model of this name.
    """
    found = weight_shapes(unwrapped(entries))
    names = list_models() if model is None else [model_name(model)]
    for name in names:  # one at most: no two models have the same layers and widths
        if _fits_as_usual(name, found):
            return name, {}
    for name in names:
        if (stem := _with_three_channels(name, found)) and _fits_as_usual(name, stem[1]):
            raise ArtifactError(stem[0])
    if alike := [name for name in names if _has_layers(name, without_aux(name, found))]:
        require_torch(f"Telling the widths of a {alike[0]} that is not as usual")
        matches = _by_widths(alike, found)
        if matches:
            _, _, name, kwargs = min(matches, key=lambda match: match[:3])
            return name, kwargs
        for name in alike:
            if (stem := _with_three_channels(name, found)) and _by_widths([name], stem[1]):
                raise ArtifactError(stem[0])
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
    return str(plan(name, {}).head)


def fits(found: Mapping[str, Shape], shapes: Mapping[str, Shape]) -> bool:
    """Says whether weights have an architecture's shapes, but for the number of classes.

    Args:
        found: Shapes of weights by layer name, for all of the architecture's convolutions.
        shapes: Those of the architecture; the last linear layer gives the logits.
    """
    head = [name for name, shape in shapes.items() if len(shape) == 2][-1]
    for name, shape in shapes.items():
        got = found.get(name, shape)
        if got != shape and (name != head or got[1:] != shape[1:]):
            return False
    return True


@functools.cache
def _usual_shapes(name: str) -> dict[str, Shape]:
    return plan(name, {}).shapes


def _fits_as_usual(name: str, found: Mapping[str, Shape]) -> bool:
    """Whether these are the weights of an architecture in its usual width."""
    own = without_aux(name, found)
    return _has_layers(name, own) and fits(own, _usual_shapes(name))


def _has_layers(name: str, found: Mapping[str, Shape]) -> bool:
    """Whether the convolutions are those of an architecture, of whatever shapes."""
    convolutions = {layer for layer, shape in found.items() if len(shape) == 4}
    return convolutions == {n for n, shape in _usual_shapes(name).items() if len(shape) == 4}


def _by_widths(
    names: list[str], found: Mapping[str, Shape]
) -> list[tuple[int, int, str, dict[str, Any]]]:
    """Returns the models that have these weights if they are built so wide, and their keywords.

    Several may be the same (resnet50 and wide_resnet50_2 of one width): the fewest keywords and the
    shortest name come first where they are sorted.
    """
    from .widths import widths_of  # imports PyTorch

    told = ((name, widths_of(name, without_aux(name, found))) for name in names)
    return [(len(kwargs), len(name), name, kwargs) for name, kwargs in told if kwargs is not None]


def _with_three_channels(
    name: str, found: Mapping[str, Shape]
) -> tuple[str, dict[str, Shape]] | None:
    """Returns weights as if their first convolution took the 3 channels of RGB.

    Returns:
        What is wrong with them, and their shapes; None where it takes 3, or is not there.
    """
    stem = next(iter(_usual_shapes(name)))
    got = found.get(stem, ())
    if len(got) != 4 or got[1] == 3:
        return None
    three = (got[0], 3, *got[2:])
    return shape_problem(stem, got, three), {**found, stem: three}


def transform_input_keyword(model: str, transform_input: bool | None) -> dict[str, bool]:
    """Returns the keyword that says whether a model changes its input's normalization.

    Raises:
        ArgumentError: It was not said for a model that may, or was for one that cannot.
    """
    if not transforms_input(model):
        if transform_input is not None:
            raise ArgumentError(f"{model} has no input to transform: drop transform_input.")
        return {}
    if transform_input is None:
        raise ArgumentError(
            f"A state dict does not tell whether its {model} transforms its input: say "
            "--transform-input (transform_input=True) if it descends from torchvision's pretrained "
            "weights, else --no-transform-input (False)."
        )
    return {"transform_input": transform_input}


def _shown(names: list[str]) -> str:
    return listed((repr(name) for name in names), 8)
