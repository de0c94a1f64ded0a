"""Int8 models some of whose layers keep their float weights."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn

import qzoo
from qzoo.native.model import from_native
from tests.helpers.zoo import eager_ptq, float_model, small_images

#: Model to the layers that stay float: a first and an inner convolution, with ReLU and without, a
#: depthwise one, those of a gate, a linear layer that hardswish follows, and the head.
KEPT = {
    "resnet18": ("conv1", "layer1.0.conv1", "layer2.0.downsample.0", "fc"),
    "mobilenet_v3_small": (
        "features.0.0", "features.2.block.1.0", "features.4.block.2.fc1",
        "features.4.block.2.fc2", "classifier.0", "classifier.3",
    ),
    "shufflenet_v2_x0_5": ("stage2.0.branch1.0", "stage2.1.branch2.3", "conv5.0", "fc"),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Mixed:
    """A model in three forms.

    Attributes:
        fused: The float model with batch norm folded into its layers, as PyTorch does it.
        int8: What PTQ makes of it.
        artifact: The same with the weights of `kept` out of `fused`.
        kept: Names of the layers that stay float.
        images: What it was calibrated with, [2, 3, H, W].
    """

    fused: nn.Module
    int8: qzoo.Artifact
    artifact: qzoo.Artifact
    kept: tuple[str, ...]
    images: Tensor


def fused_layer(fused: nn.Module, name: str) -> nn.Module:
    """Returns the convolution or linear layer of that name, without the ReLU behind it."""
    module = fused.get_submodule(name)
    return module[0] if isinstance(module, nn.Sequential) else module


def keep_float(artifact: qzoo.Artifact, fused: nn.Module, names: Sequence[str]) -> qzoo.Artifact:
    """Puts the float weights of the named layers in place of the int8 ones, by hand."""
    layers, tensors = dict(artifact.layers), dict(artifact.tensors)
    for name in names:
        layer = fused_layer(fused, name)
        del tensors[f"{name}.weight_scale"]
        tensors.pop(f"{name}.weight_zero_point", None)
        tensors[f"{name}.weight"] = layer.weight.detach().clone()
        assert torch.equal(tensors[f"{name}.bias"], layer.bias)
        layers[name] = dataclasses.replace(layers[name], float=True)
    return dataclasses.replace(artifact, layers=layers, tensors=tensors)


def mixed(name: str, images: Tensor | None = None, backend: str = "x86") -> Mixed:
    """Quantizes a random model and keeps the layers of `KEPT` in float."""
    model = float_model(name)
    images = small_images(name) if images is None else images
    int8 = from_native(eager_ptq(model, images, backend))
    fused = copy.deepcopy(model).eval()
    fused.fuse_model()  # type: ignore[operator]
    return Mixed(fused, int8, keep_float(int8, fused, KEPT[name]), KEPT[name], images)
