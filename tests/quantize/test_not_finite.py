"""Numbers that are not finite, or no real numbers, never become part of an int8 model."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

from qzoo.errors import ArgumentError
from qzoo.quantize import ptq, qat
from tests.helpers.zoo import float_model, small_images

IMAGES = small_images("resnet18", 4)


@pytest.fixture(scope="module")
def fresh() -> nn.Module:
    return float_model("resnet18", num_classes=5)


TENSORS = [
    "conv1.weight", "fc.bias", "layer1.0.bn2.weight", "layer2.0.bn1.bias",
    "layer3.1.bn1.running_mean", "layer4.0.downsample.1.running_var",
]  # fmt: skip


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("key", TENSORS)
def test_a_float_model_with_such_numbers_is_refused(key: str, value: float, fresh) -> None:
    model = copy.deepcopy(fresh)
    with torch.no_grad():
        model.state_dict()[key].view(-1)[-1] = value
    with pytest.raises(ArgumentError, match=f"'{key}'.*not finite"):
        ptq(model, IMAGES, recipe="fast", progress=False)


@pytest.mark.parametrize(
    "quantize",
    [
        lambda m: qat.prepare(m),
        lambda m: ptq(m, IMAGES, recipe="torchvision", progress=False),
        lambda m: ptq(m, IMAGES, flow="pt2e", progress=False),
        lambda m: ptq(m, IMAGES, flow="fx", progress=False),
    ],
)
def test_every_way_to_int8_refuses_them(quantize: Any, fresh) -> None:
    model: Any = copy.deepcopy(fresh)
    with torch.no_grad():
        model.bn1.bias[0] = math.nan
    with pytest.raises(ArgumentError, match=r"'bn1.bias'.*not finite"):
        quantize(model)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int32])
def test_weights_are_real_numbers(dtype: torch.dtype, fresh) -> None:
    model: Any = copy.deepcopy(fresh)
    model.fc.bias = nn.Parameter(torch.ones(5, dtype=dtype), requires_grad=False)
    with pytest.raises(ArgumentError, match=r"'fc.bias'.*real floating-point"):
        ptq(model, IMAGES, recipe="fast", progress=False)


def test_numbers_too_large_for_float32_and_variances_below_zero(fresh) -> None:
    model: Any = copy.deepcopy(fresh).double()
    model.fc.weight.data[0, 0] = 1e300
    with pytest.raises(ArgumentError, match=r"'fc.weight'.*not finite"):
        ptq(model, IMAGES, recipe="fast", progress=False)
    model = copy.deepcopy(fresh)
    model.layer1[0].bn1.running_var[0] = -1.0
    with pytest.raises(ArgumentError, match=r"'layer1.0.conv1.*not finite"):
        ptq(model, IMAGES, recipe="fast", progress=False)


@pytest.mark.parametrize("learn_ranges", [False, True])
def test_a_model_in_training_names_what_diverged(learn_ranges: bool, fresh) -> None:
    model: Any = qat.prepare(fresh, data=IMAGES, learn_ranges=learn_ranges, progress=False)
    with torch.no_grad():
        model.ranges.scale[0] = math.nan
    with pytest.raises(ArgumentError, match=r"'ranges.scale'.*not finite.*diverged"):
        qat.convert(model)


def test_a_model_in_pt2es_training_names_it_too(fresh) -> None:
    model: Any = qat.prepare(fresh, data=IMAGES, flow="pt2e", progress=False)
    model(IMAGES)
    with torch.no_grad():
        next(p for n, p in model.named_parameters() if n.endswith("fc.weight")).fill_(math.inf)
    with pytest.raises(ArgumentError, match=r"fc.weight'.*not finite"):
        qat.convert(model)
