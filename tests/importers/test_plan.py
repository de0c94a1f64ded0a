"""What is stored of the architectures is what their modules say."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from qzoo.errors import ArgumentError, UnknownNameError
from qzoo.importers import plan as stored
from qzoo.native.layers import float_weights, plan_layers
from qzoo.registry import get_entry
from tests.helpers import zoo

#: One of each family, those with auxiliary classifiers, and several widths of one.
NAMES = [
    *("googlenet", "inception_v3", "mobilenet_v2", "mobilenet_v3_small", "resnet18"),
    *("resnext50_32x4d", "wide_resnet50_2", "shufflenet_v2_x0_5", "shufflenet_v2_x1_5"),
]


def fused(name: str, kwargs: dict[str, Any]) -> Any:
    model: Any = get_entry(name).skeleton(kwargs)
    model.fuse_model(is_qat=False)
    return model


def eps_of(model: nn.Module) -> dict[str, float]:
    """The epsilon of the batch norm that directly follows each convolution."""
    eps, previous = {}, ""
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            eps[previous] = module.eps
        elif isinstance(module, nn.Conv2d):
            previous = name
    return eps


@pytest.mark.parametrize(
    ("name", "transformed"),
    [*((name, False) for name in NAMES), *((name, True) for name in zoo.WITH_AUX)],
)
def test_stored_layers_are_those_of_the_modules(name: str, transformed: bool) -> None:
    kwargs: dict[str, Any] = {"aux_logits": False} if name in zoo.WITH_AUX else {}
    kwargs |= {"transform_input": True} if transformed else {}
    plan = stored.plan(name, {**kwargs, "num_classes": 7})
    model = fused(name, kwargs)
    layers = plan_layers(model)
    assert plan.layers() == layers
    weighted = [key for key, layer in layers.items() if layer.op in ("conv2d", "linear")]
    assert plan.shapes == {key: tuple(float_weights(model, key)[0].shape) for key in weighted}
    assert plan.eps == eps_of(get_entry(name).skeleton(kwargs)) and len(plan.eps) > 10
    assert plan.head == [key for key in weighted if layers[key].op == "linear"][-1]
    assert stored.aux_classifiers(name) == get_entry(name).aux
    assert stored.transforms_input(name) == bool(get_entry(name).pretrained_kwargs)


def test_epsilons_differ_from_model_to_model() -> None:
    assert {*stored.plan("inception_v3", {}).eps.values()} == {0.001}
    assert {*stored.plan("resnet18", {}).eps.values()} == {1e-5}


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("mobilenet_v2", {"width_mult": 0.35, "num_classes": 3}),
        ("mobilenet_v3_small", {"reduced_tail": True}),
        ("resnet50", {"width_per_group": 96}),
        ("shufflenet_v2_x0_5", {"num_classes": 3}),
        ("googlenet", {"transform_input": 1, "aux_logits": False}),
        ("mobilenet_v2", {"dropout": 0.5}),
    ],
)
def test_unusual_keywords_are_recorded(name: str, kwargs: dict[str, Any]) -> None:
    plan, model = stored.plan(name, kwargs), fused(name, kwargs)
    assert plan.layers() == plan_layers(model)
    shapes = {key: tuple(float_weights(model, key)[0].shape) for key in plan.shapes}
    head = str(plan.head)
    assert plan.shapes | {head: shapes[head]} == shapes


@pytest.mark.parametrize(
    ("name", "kwargs", "words"),
    [
        ("resnet18", {"surprise": True}, "has no keyword 'surprise'"),
        ("resnet18", {"transform_input": False}, "has no keyword 'transform_input'"),
        ("resnet18", {"aux_logits": False}, "has no keyword 'aux_logits'"),
        ("resnet18", {"dropout": 0.5}, "has no keyword 'dropout'"),
        ("resnet18", {"num_classes": 0}, "num_classes must be a whole number"),
        ("googlenet", {"num_classes": "7"}, "num_classes must be a whole number"),
        ("googlenet", {"num_classes": 10**9}, "num_classes must be a whole number"),
        ("googlenet", {"transform_input": "no"}, "transform_input must be true or false"),
        ("googlenet", {"aux_logits": []}, "aux_logits must be true or false"),
        ("mobilenet_v2", {"width_mult": -1}, "width_mult must be"),
    ],
)
def test_keywords_that_build_nothing_are_refused(
    name: str, kwargs: dict[str, Any], words: str
) -> None:
    with pytest.raises(ArgumentError, match=words) as caught:
        stored.plan(name, kwargs)
    assert str(caught.value).startswith(f"Cannot build {name} with ")


def test_an_unknown_model_is_named() -> None:
    with pytest.raises(UnknownNameError, match="resnet19"):
        stored.plan("resnet19", {})
    with pytest.raises(UnknownNameError):
        stored.aux_classifiers(None)
