"""`analyze` takes its options as keywords, as one object, or both."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import pytest

from qzoo.analysis import AnalysisOptions, analyze
from qzoo.errors import ArgumentError
from tests.helpers.zoo import float_model

CALL: tuple[Any, ...] = (float_model("shufflenet_v2_x0_5"), None, None)


def test_the_signature_shows_every_option_with_its_default() -> None:
    shown = inspect.signature(analyze).parameters
    for field in dataclasses.fields(AnalysisOptions):
        assert shown[field.name].default == field.default
        assert shown[field.name].kind is inspect.Parameter.KEYWORD_ONLY


@pytest.mark.parametrize("name", ["images", "sensitivity_images", "batch_size"])
@pytest.mark.parametrize("value", [0, -1, 2.0, True, "8"])
def test_numbers_of_images(name: str, value: Any) -> None:
    with pytest.raises(ArgumentError, match=f"{name} should be a whole number above 0"):
        analyze(*CALL, **{name: value})
    with pytest.raises(ArgumentError, match=name):
        AnalysisOptions(**{name: value})


def test_what_is_no_option() -> None:
    with pytest.raises(TypeError, match=r"'sed'.*'seed'"):
        analyze(*CALL, sed=1)  # type: ignore[call-arg]
    with pytest.raises(ArgumentError, match="options should be AnalysisOptions"):
        analyze(*CALL, options={"seed": 1})  # type: ignore[arg-type]
