"""Quantizable ResNet, from "Deep Residual Learning for Image Recognition" (arXiv:1512.03385)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn
from torchvision.models import (
    ResNet18_Weights,
    ResNet34_Weights,
    ResNet50_Weights,
    ResNet101_Weights,
    ResNet152_Weights,
)
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from ..native.markers import FloatFunctional, fuse
from ..registry import register_model
from ..weights import QuantizedWeightsEnum, read_weights
from ._build import build_model
from ._common import SequentialForwardMixin

__all__ = [
    "QuantizableResNet",
    "ResNet18_QuantizedWeights",
    "ResNet34_QuantizedWeights",
    "ResNet50_QuantizedWeights",
    "ResNet101_QuantizedWeights",
    "ResNet152_QuantizedWeights",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
]


class QuantizableBasicBlock(BasicBlock):
    """Two 3x3 convolutions; the sum and the last ReLU are one operation."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.add_relu = FloatFunctional()

    def forward(self, x: Tensor) -> Tensor:
        """Returns the block's output, [N, C, H, W]."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        identity = x
        if self.downsample is not None:
            identity = self.downsample(x)
        return self.add_relu.add_relu(out, identity)

    def fuse_model(self, is_qat: bool | None = None) -> None:
        """Fuses convolutions with batch norm and ReLU."""
        fuse(self, [["conv1", "bn1", "relu"], ["conv2", "bn2"]], is_qat)
        if self.downsample is not None:
            fuse(self.downsample, ["0", "1"], is_qat)


class QuantizableBottleneck(Bottleneck):
    """1x1, 3x3 and 1x1 convolutions, each ReLU a module of its own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.skip_add_relu = FloatFunctional()
        del self.relu  # it would be called twice, which graph quantizers do not take
        self.relu1 = nn.ReLU()
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Returns the block's output, [N, C, H, W]."""
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.relu2(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        identity = x
        if self.downsample is not None:
            identity = self.downsample(x)
        return self.skip_add_relu.add_relu(out, identity)

    def fuse_model(self, is_qat: bool | None = None) -> None:
        """Fuses convolutions with batch norm and ReLU."""
        groups = [["conv1", "bn1", "relu1"], ["conv2", "bn2", "relu2"], ["conv3", "bn3"]]
        fuse(self, groups, is_qat)
        if self.downsample is not None:
            fuse(self.downsample, ["0", "1"], is_qat)


class QuantizableResNet(SequentialForwardMixin, ResNet):
    """ResNet and ResNeXt with quantization markers; same state dict as torchvision's."""

    def fuse_model(self, is_qat: bool | None = None) -> None:
        """Fuses conv+bn+relu in place; `is_qat=None` takes `self.training`."""
        fuse(self, ["conv1", "bn1", "relu"], is_qat)
        super().fuse_model(is_qat)


def bottleneck_widths(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[dict[str, Any]]:
    """Tells groups and their width from the first 3x3 convolution, which is grouped."""
    channels, per_group = shapes["layer1.0.conv2"][:2]
    if per_group:
        yield {"groups": channels // per_group, "width_per_group": per_group}


class ResNet18_QuantizedWeights(QuantizedWeightsEnum):
    """Int8 weights; their facts are in weights_meta/resnet18.json."""

    IMAGENET1K_FBGEMM_V1 = read_weights("resnet18", "IMAGENET1K_FBGEMM_V1")
    DEFAULT = IMAGENET1K_FBGEMM_V1


class ResNet34_QuantizedWeights(QuantizedWeightsEnum):
    """Int8 weights; their facts are in weights_meta/resnet34.json."""


class ResNet50_QuantizedWeights(QuantizedWeightsEnum):
    """Int8 weights; their facts are in weights_meta/resnet50.json."""

    IMAGENET1K_FBGEMM_V1 = read_weights("resnet50", "IMAGENET1K_FBGEMM_V1")
    IMAGENET1K_FBGEMM_V2 = read_weights("resnet50", "IMAGENET1K_FBGEMM_V2")
    DEFAULT = IMAGENET1K_FBGEMM_V2


class ResNet101_QuantizedWeights(QuantizedWeightsEnum):
    """Int8 weights; their facts are in weights_meta/resnet101.json."""


class ResNet152_QuantizedWeights(QuantizedWeightsEnum):
    """Int8 weights; their facts are in weights_meta/resnet152.json."""


@register_model(
    ResNet18_QuantizedWeights,
    ResNet18_Weights,
    partial(QuantizableResNet, QuantizableBasicBlock, [2, 2, 2, 2]),
)
def resnet18(
    *,
    weights: ResNet18_QuantizedWeights | ResNet18_Weights | str | None = None,
    progress: bool = True,
    quantize: bool = False,
    backend: str | None = None,
    **kwargs: Any,
) -> QuantizableResNet:
    """ResNet-18 from `Deep Residual Learning <https://arxiv.org/abs/1512.03385>`_."""
    return build_model("resnet18", weights, progress, quantize, backend, kwargs)


@register_model(
    ResNet34_QuantizedWeights,
    ResNet34_Weights,
    partial(QuantizableResNet, QuantizableBasicBlock, [3, 4, 6, 3]),
)
def resnet34(
    *,
    weights: ResNet34_QuantizedWeights | ResNet34_Weights | str | None = None,
    progress: bool = True,
    quantize: bool = False,
    backend: str | None = None,
    **kwargs: Any,
) -> QuantizableResNet:
    """ResNet-34 from `Deep Residual Learning <https://arxiv.org/abs/1512.03385>`_."""
    return build_model("resnet34", weights, progress, quantize, backend, kwargs)


@register_model(
    ResNet50_QuantizedWeights,
    ResNet50_Weights,
    partial(QuantizableResNet, QuantizableBottleneck, [3, 4, 6, 3]),
    widths=bottleneck_widths,
)
def resnet50(
    *,
    weights: ResNet50_QuantizedWeights | ResNet50_Weights | str | None = None,
    progress: bool = True,
    quantize: bool = False,
    backend: str | None = None,
    **kwargs: Any,
) -> QuantizableResNet:
    """ResNet-50 from `Deep Residual Learning <https://arxiv.org/abs/1512.03385>`_."""
    return build_model("resnet50", weights, progress, quantize, backend, kwargs)


@register_model(
    ResNet101_QuantizedWeights,
    ResNet101_Weights,
    partial(QuantizableResNet, QuantizableBottleneck, [3, 4, 23, 3]),
    widths=bottleneck_widths,
)
def resnet101(
    *,
    weights: ResNet101_QuantizedWeights | ResNet101_Weights | str | None = None,
    progress: bool = True,
    quantize: bool = False,
    backend: str | None = None,
    **kwargs: Any,
) -> QuantizableResNet:
    """ResNet-101 from `Deep Residual Learning <https://arxiv.org/abs/1512.03385>`_."""
    return build_model("resnet101", weights, progress, quantize, backend, kwargs)


@register_model(
    ResNet152_QuantizedWeights,
    ResNet152_Weights,
    partial(QuantizableResNet, QuantizableBottleneck, [3, 8, 36, 3]),
    widths=bottleneck_widths,
)
def resnet152(
    *,
    weights: ResNet152_QuantizedWeights | ResNet152_Weights | str | None = None,
    progress: bool = True,
    quantize: bool = False,
    backend: str | None = None,
    **kwargs: Any,
) -> QuantizableResNet:
    """ResNet-152 from `Deep Residual Learning <https://arxiv.org/abs/1512.03385>`_."""
    return build_model("resnet152", weights, progress, quantize, backend, kwargs)
