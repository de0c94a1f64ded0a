"""Builders' keywords from files: every one has bounds, and no unknown one is ignored."""

from __future__ import annotations

import json
from typing import Any

import pytest

import qzoo
from qzoo.builder_kwargs import builder_keywords, validate_builder_kwargs
from qzoo.registry import get_entry
from tests.helpers.zoo import BUILDERS


def refused(name: str, kwargs: dict[str, Any]) -> str:
    entry = get_entry(name)
    with pytest.raises(qzoo.QzooError) as caught:
        validate_builder_kwargs(name, entry.construct, kwargs)
    message = str(caught.value)
    assert len(message) < 500 and "\n" not in message
    return message


@pytest.mark.parametrize("name", BUILDERS)
def test_defaults_are_allowed_and_nothing_unknown(name: str) -> None:
    entry = get_entry(name)
    defaults = builder_keywords(entry.construct)
    assert "num_classes" in defaults
    validate_builder_kwargs(name, entry.construct, defaults)
    assert type(entry.skeleton(defaults)).__name__.startswith("Quantizable")
    for key in ("weights", "quantize", "self", "layers", "blocks", "x\n", "", "num_clases"):
        assert "has no keyword" in refused(name, {key: None})
    assert "'num_classes'" in refused(name, {"num_clases": 3})


@pytest.mark.parametrize("name", BUILDERS)
def test_every_keyword_refuses_what_makes_no_sense(name: str) -> None:
    for key in builder_keywords(get_entry(name).construct):
        for value in (
            "x",
            [],
            {},
            [[]],
            -1,
            1e400,
            10**30,
            10**400,
            float("nan"),
            "\ud800",
            [True] * 4,
        ):
            assert key in refused(name, {key: value})


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("resnet18", {"num_classes": 10**6}),
        ("resnet18", {"num_classes": True}),
        ("resnet18", {"num_classes": 10.0}),
        ("resnet18", {"num_classes": 0}),
        ("resnext50_32x4d", {"groups": 10**5}),
        ("resnet50", {"groups": 4096, "width_per_group": 4096}),
        ("wide_resnet50_2", {"width_per_group": 4000}),
        ("resnet18", {"replace_stride_with_dilation": [False, 2, False]}),
        ("mobilenet_v2", {"width_mult": 1e9}),
        ("mobilenet_v2", {"inverted_residual_setting": [[1, 16, 10**6, 1]]}),
        ("mobilenet_v2", {"inverted_residual_setting": [[6, 16, 30, 1]] * 1000}),
        ("mobilenet_v2", {"inverted_residual_setting": [[64, 16_384, 64, 1]] * 64}),
        ("mobilenet_v2", {"inverted_residual_setting": [[1, 16, 1]]}),
        ("mobilenet_v2", {"inverted_residual_setting": ["1234"]}),
        ("mobilenet_v2", {"inverted_residual_setting": [[10**400, 8, 1, 2]]}),
        ("mobilenet_v2", {"block": "os.system"}),
        ("mobilenet_v3_large", {"width_mult": 60.0}),
        ("googlenet", {"dropout": "all"}),
        ("inception_v3", {"transform_input": "yes"}),
    ],
)
def test_no_model_is_built_from_absurd_keywords(name: str, kwargs: dict[str, Any]) -> None:
    with pytest.raises(qzoo.ArgumentError, match="Cannot build"):
        get_entry(name).skeleton(json.loads(json.dumps(kwargs)))


@pytest.mark.parametrize(
    ("name", "key"),
    [("mobilenet_v3_small", "depth"), ("googlenet", "blocks"), ("inception_v3", "inception_blocks"),
     ("shufflenet_v2_x0_5", "dropout"), ("resnet18", "width_mult")],
)  # fmt: skip
def test_builders_in_python_ignore_no_keyword_either(name: str, key: str) -> None:
    for quantize in (False, True):
        with pytest.raises(qzoo.ArgumentError, match=key):
            qzoo.get_model(name, quantize=quantize, **{key: [1, 2, 3]})
