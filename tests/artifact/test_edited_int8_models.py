"""An int8 model with other parts than its builder's is not saved as if it had the builder's."""

from __future__ import annotations

import copy
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import qzoo
from qzoo.errors import ArtifactError
from qzoo.native.model import from_native, to_native
from qzoo.reference import build_reference
from tests.helpers.zoo import small_images, uncalibrated

MODELS = {name: uncalibrated(name, num_classes=5) for name in ("resnet18", "mobilenet_v3_small")}


def put(name: str, module: nn.Module) -> Callable[[Any], None]:
    parent, _, child = name.rpartition(".")
    return lambda model: setattr(model.get_submodule(parent), child, module)


def own_forward(model: Any) -> None:
    block = model.layer1[0]
    block.forward = types.MethodType(lambda self, x: self.conv1(x), block)


class Other(type(MODELS["resnet18"])):  # type: ignore[misc]
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.flip(3))


@pytest.mark.parametrize(
    ("name", "change", "place"),
    [
        ("resnet18", put("maxpool", nn.Sequential()), "'maxpool'"),
        ("resnet18", put("maxpool", nn.MaxPool2d(2, 2)), "'maxpool'"),
        ("resnet18", put("maxpool", nn.MaxPool2d(3, 2, 1, ceil_mode=True)), "'maxpool'"),
        ("resnet18", put("avgpool", nn.AdaptiveMaxPool2d(1)), "'avgpool'"),
        ("resnet18", put("layer2.2", nn.ReLU()), "'layer2.2'"),
        ("resnet18", own_forward, "'layer1.0'"),
        ("resnet18", lambda m: setattr(m, "__class__", Other), "'The model'"),
        ("mobilenet_v3_small", put("features.1.block.1.scale_activation", nn.Sigmoid()),
         "scale_activation'"),
    ],
)  # fmt: skip
def test_edits_are_refused_with_their_place(
    name: str, change: Callable[[Any], None], place: str, tmp_path
) -> None:
    model = copy.deepcopy(MODELS[name])
    change(model)
    with pytest.raises(ArtifactError, match=place):
        qzoo.save(model, tmp_path / "m.safetensors")
    with pytest.raises(ArtifactError, match=place):
        build_reference(model)


@pytest.mark.parametrize(
    "change",
    [
        put("avgpool", nn.AdaptiveAvgPool2d(1)),
        put("maxpool", nn.MaxPool2d((3, 3), (2, 2), (1, 1))),
        lambda model: model.layer1.register_forward_hook(lambda *_: None),
    ],
)
def test_the_same_in_other_words_is_saved(change: Callable[[Any], None]) -> None:
    model, images = copy.deepcopy(MODELS["resnet18"]), small_images("resnet18")
    change(model)
    assert torch.equal(to_native(from_native(model))(images), model(images))
