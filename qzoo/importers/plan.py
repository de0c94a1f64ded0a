"""What the zoo's architectures consist of: stored data for usual keywords, PyTorch for others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..artifact.blueprints import Blueprint, require_recording, stored_blueprint
from ..builder_kwargs import check_keyword
from ..registry import model_name


def plan(architecture: str | None, kwargs: Mapping[str, Any]) -> Blueprint:
    """Returns what an architecture consists of before any number is known.

    Args:
        architecture: The registry's name of the model.
        kwargs: The model's own keywords, which may come from a file: they are checked.

    Raises:
        ArgumentError: The keywords do not build this model.
        MissingDependencyError: They are unusual, and PyTorch is not installed.
        UnknownNameError: There is no model of this name.
    """
    name = model_name(architecture)
    for key, value in kwargs.items():
        check_keyword(name, key, value)
    found = stored_blueprint(name, kwargs)
    if found is not None and kwargs.keys() <= _usual_keywords(name, found):
        return found
    require_recording(name, kwargs)
    from ..models.blueprints import make_blueprint  # imports PyTorch

    return make_blueprint(name, kwargs)


def _usual_keywords(name: str, found: Blueprint) -> set[str]:
    """Returns the keywords of a model that the stored blueprints know."""
    known = {"num_classes"} | ({"transform_input"} if transforms_input(name) else set())
    return known | ({"aux_logits"} if found.aux else set())


def aux_classifiers(architecture: str | None) -> tuple[str, ...]:
    """Returns the names of an architecture's auxiliary classifiers.

    Raises:
        UnknownNameError: There is no model of this name.
    """
    return plan(architecture, {}).aux


def without_aux(architecture: str | None, entries: Mapping[str, Any]) -> dict[str, Any]:
    """Drops auxiliary classifiers, which help in training from scratch only."""
    aux = tuple(f"{name}." for name in aux_classifiers(architecture))
    return {k: v for k, v in entries.items() if not k.startswith(aux)}


def transforms_input(architecture: str) -> bool:
    """Says whether a model can change its input's normalization (`transform_input`)."""
    return stored_blueprint(model_name(architecture), {"transform_input": True}) is not None
