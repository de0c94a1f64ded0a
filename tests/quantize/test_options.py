"""Options of everything that makes int8 models: one form, one place for defaults, one check."""

from __future__ import annotations

import dataclasses
import inspect
import typing
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from qzoo.errors import QuantizationWarning, QzooError
from qzoo.native.model import from_native
from qzoo.quantize import PTQOptions, TuneOptions, ptq, qat, quantize_weight_only, tune
from qzoo.quantize.mixed.tune import TuneKeywords
from qzoo.quantize.options import PTQKeywords
from tests.helpers.zoo import float_model, small_images

NAME = "shufflenet_v2_x0_5"
MODEL, IMAGES = float_model(NAME, num_classes=5), small_images(NAME, 8)
KINDS: list[tuple[Callable[..., Any], Any, Any]] = [
    (ptq, PTQOptions, PTQKeywords),
    (tune, TuneOptions, TuneKeywords),
    (qat.prepare, qat.QATOptions, qat.QATKeywords),
]


@pytest.mark.parametrize(("function", "kind", "keywords"), KINDS)
def test_keywords_are_the_options(function: Any, kind: Any, keywords: Any) -> None:
    fields = {field.name: field for field in dataclasses.fields(kind)}
    own = set(function.__code__.co_varnames[: function.__code__.co_argcount])
    assert set(keywords.__annotations__) == set(fields) - own
    wanted = typing.get_type_hints(kind)
    assert all(wanted[name] == t for name, t in typing.get_type_hints(keywords).items())
    shown = inspect.signature(function).parameters
    assert all(shown[name].default == field.default for name, field in fields.items())
    with pytest.raises(dataclasses.FrozenInstanceError):
        kind().seed = 1


def test_options_and_keywords_give_the_same_model() -> None:
    def numbers(**how: Any) -> str:
        return from_native(ptq(MODEL, IMAGES, progress=False, **how)).digest()

    wanted = numbers(recipe="fast", backend="qnnpack", keep_float="fc", images=6)
    gathered = PTQOptions(recipe="default", backend="qnnpack", keep_float=["fc"], images=6)
    assert numbers(options=gathered, recipe="fast") == wanted
    assert gathered.recipe == "default", "the options given are left as they were"


def test_training_takes_its_backend_by_place_by_name_or_with_the_options() -> None:
    def backend(*args: Any, **how: Any) -> str:
        model: Any = qat.prepare(MODEL, *args, progress=False, **how)
        return model.plan.state.backend.name

    assert backend("qnnpack") == backend(backend="qnnpack") == "qnnpack"
    options = qat.QATOptions(backend="fbgemm")
    assert (backend(options=options), backend("qnnpack", options=options)) == ("fbgemm", "qnnpack")


WRONG: list[dict[str, Any]] = [
    {"backend": "cuda"},
    {"backend": 3},
    {"recipe": "bset"},
    {"recipe": None},
    {"recipe": ["fast"]},
    {"images": 0},
    {"images": 1.5},
    {"batch_size": True},
    {"batch_size": None},
    {"seed": "1"},
    {"seed": 2**64},
    {"seed": None},
    {"keep_float": 3},
    {"keep_float": [3]},
    {"keep_float": {"fc"}},
    {"transforms": "imagenet"},
    {"options": {"recipe": "fast"}},
]
OWN: list[tuple[Callable[..., Any], dict[str, Any]]] = [
    (ptq, {"flow": "fxx"}),
    (ptq, {"flow": ["fx"]}),
    (ptq, {"quantizer": object()}),
    (ptq, {"flow": "pt2e", "qconfig_mapping": object()}),
    (ptq, {"flow": "pt2e", "recipe": "best"}),
    (tune, {"sensitivity_images": 0}),
    (tune, {"time_budget": -1}),
    (tune, {"time_budget": float("nan")}),
    (tune, {"max_drop": float("nan")}),
    (qat.prepare, {"batch_norm": "folded"}),
    (qat.prepare, {"flow": "fx"}),
    (qat.prepare, {"flow": "pt2e", "learn_ranges": True}),
    (qat.prepare, {"flow": "pt2e", "batch_norm": "keep"}),
]


@pytest.mark.parametrize(
    ("function", "wrong"), [(function, w) for function, *_ in KINDS for w in WRONG] + OWN
)
def test_a_wrong_option_is_one_clear_error(function: Any, wrong: dict[str, Any]) -> None:
    data = {"data": IMAGES} if function is qat.prepare else {}
    args = (MODEL,) if function is qat.prepare else (MODEL, IMAGES)
    with pytest.raises(QzooError) as caught:
        function(*args, **{**data, "progress": False, **wrong})
    assert any(name in str(caught.value) for name in [*wrong, *map(str, wrong.values())])


@pytest.mark.parametrize(("function", "kind", "keywords"), KINDS)
def test_an_unknown_option_names_the_nearest(function: Any, kind: Any, keywords: Any) -> None:
    with pytest.raises(TypeError, match=r"no option 'bach_size'.*'batch_size'"):
        function(MODEL, data=IMAGES, bach_size=4)


LOSSY = torch.nn.Sequential(torch.nn.Linear(64, 8), torch.nn.Linear(8, 8))
WARNED: dict[str, Callable[[], Any]] = {
    "train mode": lambda: ptq(
        float_model(NAME, num_classes=5).train(), IMAGES, recipe="fast", progress=False
    ),
    "single image": lambda: ptq(MODEL, IMAGES[:1], recipe="fast", progress=False),
    "does not record": lambda: ptq(
        MODEL, IMAGES, recipe="fast", progress=False, transforms=lambda picture: picture
    ),
    "record its transforms": lambda: qat.prepare(
        MODEL, data=IMAGES, progress=False, transforms=lambda picture: picture
    ),
    "the same images": lambda: tune(MODEL, IMAGES, 100, recipe="fast", progress=False),
    "stay float": lambda: quantize_weight_only(LOSSY, 8, group_size=32, progress=False),
}


@pytest.mark.parametrize("words", WARNED)
def test_warnings_name_the_line_of_the_caller(words: str) -> None:
    if words == "stay float":
        pytest.importorskip("torchao", reason="torchao is not installed")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        WARNED[words]()
    found = [w for w in caught if w.category is QuantizationWarning and words in str(w.message)]
    assert [Path(w.filename).name for w in found] == [Path(__file__).name]
