"""Trained float models for tests, made of the int8 weights that come with the package."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.data import Subset

import qzoo
from qzoo.datasets.digits import Digits
from qzoo.native.model import attach_info, model_info
from qzoo.quantize.simulate import int8_weight
from qzoo.transforms import ImageClassification

#: Layers of mobilenet_v3_small with nothing but ReLUs, or nothing, between them.
PAIRS = (
    ("features.1.block.2.0", "features.2.block.0.0"),
    ("features.2.block.0.0", "features.2.block.1.0"),
    ("features.2.block.1.0", "features.2.block.2.0"),
    ("features.3.block.0.0", "features.3.block.1.0"),
    ("features.3.block.1.0", "features.3.block.2.0"),
)


def digits_model(name: str = "mobilenet_v3_small") -> nn.Module:
    """Returns a float model that knows the digits: the embedded weights, dequantized."""
    enum = qzoo.get_model_weights(name)
    artifact = enum["DIGITS_X86_V1"].artifact(False)  # type: ignore[attr-defined]
    model = qzoo.get_model(name, num_classes=10)
    modules = dict(model.named_modules())
    with torch.no_grad():
        for layer, plan in artifact.layers.items():
            if plan.op not in ("conv2d", "linear"):
                continue
            weight, bias = int8_weight(artifact, layer)
            modules[layer].weight.copy_(weight)
            if modules[layer].bias is None:
                norm = _norm(modules, layer)
                norm.running_mean.zero_()
                norm.running_var.fill_(1 - norm.eps)
                norm.weight.fill_(1)
                norm.bias.copy_(bias)
            else:
                modules[layer].bias.copy_(bias)
    info = dataclasses.replace(
        model_info(model), transforms=artifact.info.transforms, classes=artifact.info.classes
    )
    return attach_info(model.eval(), info)


def digits(split: str, model: nn.Module, count: int | None = None) -> Any:
    """Returns digits through a model's transforms; evenly spread ones where a count is given."""
    preset = ImageClassification.from_dict(model_info(model).transforms)
    data = Digits(split, preset)
    step = 1 if count is None else len(data) // count
    return Subset(data, range(0, len(data), step)[:count])


def imbalance(
    model: nn.Module, strength: int = 3, pairs: Sequence[tuple[str, str]] = PAIRS
) -> nn.Module:
    """Scales channels between layers by powers of two, in place.

    No output of the float model changes by a bit, but the channels of a weight come to differ by
    up to 4 ** strength, more than a scale per tensor can hold.
    """
    generator = torch.Generator().manual_seed(0)
    modules = dict(model.named_modules())
    with torch.no_grad():
        for made, read in pairs:
            first, second = modules[made].weight, modules[read].weight
            powers = torch.randint(-strength, strength + 1, (len(first),), generator=generator)
            factor = 2.0**powers
            first.mul_(factor[:, None, None, None])
            bias = modules[made].bias
            (_norm(modules, made).bias if bias is None else bias).mul_(factor)
            depthwise = second.shape[1] == 1
            second.div_(factor[:, None, None, None] if depthwise else factor[None, :, None, None])
    return model


def _norm(modules: dict[str, nn.Module], layer: str) -> nn.Module:
    parent, _, child = layer.rpartition(".")
    names = (f"{parent}.{int(child) + 1}" if child.isdigit() else "", f"{parent}.bn")
    found = next(modules[n] for n in names if n in modules)
    assert isinstance(found, nn.BatchNorm2d)
    return found
