"""All exports take the same model and the same options, check them alike, and show them in help."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import qzoo
from qzoo.cli.export import FORMATS
from qzoo.sharing.convert import convert_checkpoint, read_any, read_model
from tests.helpers.places import INT8

SHARED = {"batch_size": None, "input_size": None, "preprocess": False}


def export_of(name: str) -> Callable[..., Any]:
    row = FORMATS[name]
    found: Any = getattr(importlib.import_module(f"qzoo.export.{row.module}"), row.function)
    return found


def defaults(function: Callable[..., Any]) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


@pytest.mark.parametrize("name", FORMATS)
def test_the_options_are_shown_with_their_defaults(name: str) -> None:
    assert defaults(export_of(name)).items() >= SHARED.items()


@pytest.mark.parametrize("function", [convert_checkpoint, read_any, read_model])
def test_what_is_told_of_a_checkpoint_is_shown(function: Callable[..., Any]) -> None:
    names = ("model", "num_classes", "backend", "classes", "part", "transform_input", "like")
    assert defaults(function) == dict.fromkeys(names)
    with pytest.raises(TypeError, match="bakend"):
        convert_checkpoint("model.pth", bakend="x86")  # type: ignore[call-arg]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 0}, "batch_size must be a whole number above 0 or None, not 0"),
        ({"batch_size": 1.5}, "batch_size must be"),
        ({"input_size": (1, 2, 3)}, "input_size must be a height and width"),
        ({"input_size": 0}, "input_size"),
    ],
)
def test_they_are_checked_alike(
    name: str, options: dict[str, Any], words: str, tmp_path: Path
) -> None:
    path = tmp_path / f"model{FORMATS[name].suffix}"
    with pytest.raises(qzoo.ArgumentError, match=words):
        export_of(name)(INT8, path, **options)
    with pytest.raises(TypeError, match="batch"):
        export_of(name)(INT8, path, batch=1)
    assert not list(tmp_path.iterdir())
