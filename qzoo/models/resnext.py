"""Quantizable ResNeXt (arXiv:1611.05431) and Wide ResNet (arXiv:1605.07146)."""

from __future__ import annotations

from functools import partial
from typing import Any

from torchvision.models import (
    ResNeXt50_32X4D_Weights,
    ResNeXt101_32X8D_Weights,
    ResNeXt101_64X4D_Weights,
    Wide_ResNet50_2_Weights,
    Wide_ResNet101_2_Weights,
)

from ..registry import register_model
from ..weights import QuantizedWeightsEnum, read_weights
from ._build import build_model
from .resnet import QuantizableBottleneck, QuantizableResNet, bottleneck_widths

__all__ = [
    "ResNeXt50_32X4D_QuantizedWeights",
    "ResNeXt101_32X8D_QuantizedWeights",
    "ResNeXt101_64X4D_QuantizedWeights",
    "Wide_ResNet50_2_QuantizedWeights",
    "Wide_ResNet101_2_QuantizedWeights",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "wide_resnet50_2",
    "wide_resnet101_2",
]


class ResNeXt50_32X4D_QuantizedWeights(QuantizedWeightsEnum):
    """Int8 weights; their facts are in weights_meta/resnext50_32x4d.json."""


class ResNeXt101_32X8D_QuantizedWeights(QuantizedWeightsEnum):
    """Int8 weights; their facts are in weights_meta/resnext101_32x8d.json."""

    IMAGENET1K_FBGEMM_V1 = read_weights("resnext101_32x8d", "IMAGENET1K_FBGEMM_V1")
    IMAGENET1K_FBGEMM_V2 = read_weights("resnext101_32x8d", "IMAGENET1K_FBGEMM_V2")
    DEFAULT = IMAGENET1K_FBGEMM_V2


class ResNeXt101_64X4D_QuantizedWeights(QuantizedWeightsEnum):
    """Int8 weights; their facts are in weights_meta/resnext101_64x4d.json."""

    IMAGENET1K_FBGEMM_V1 = read_weights("resnext101_64x4d", "IMAGENET1K_FBGEMM_V1")
    DEFAULT = IMAGENET1K_FBGEMM_V1


class Wide_ResNet50_2_QuantizedWeights(QuantizedWeightsEnum):
    """Int8 weights; their facts are in weights_meta/wide_resnet50_2.json."""


class Wide_ResNet101_2_QuantizedWeights(QuantizedWeightsEnum):
    """Int8 weights; their facts are in weights_meta/wide_resnet101_2.json."""


@register_model(
    ResNeXt50_32X4D_QuantizedWeights,
    ResNeXt50_32X4D_Weights,
    partial(QuantizableResNet, QuantizableBottleneck, [3, 4, 6, 3], groups=32, width_per_group=4),
    widths=bottleneck_widths,
)
def resnext50_32x4d(
    *,
    weights: ResNeXt50_32X4D_QuantizedWeights | ResNeXt50_32X4D_Weights | str | None = None,
    progress: bool = True,
    quantize: bool = False,
    backend: str | None = None,
    **kwargs: Any,
) -> QuantizableResNet:
    """ResNeXt-50 (32 groups of 4).

    From `Aggregated Residual Transformations <https://arxiv.org/abs/1611.05431>`_.
    """
    return build_model("resnext50_32x4d", weights, progress, quantize, backend, kwargs)


@register_model(
    ResNeXt101_32X8D_QuantizedWeights,
    ResNeXt101_32X8D_Weights,
    partial(QuantizableResNet, QuantizableBottleneck, [3, 4, 23, 3], groups=32, width_per_group=8),
    widths=bottleneck_widths,
)
def resnext101_32x8d(
    *,
    weights: ResNeXt101_32X8D_QuantizedWeights | ResNeXt101_32X8D_Weights | str | None = None,
    progress: bool = True,
    quantize: bool = False,
    backend: str | None = None,
    **kwargs: Any,
) -> QuantizableResNet:
    """ResNeXt-101 (32 groups of 8).

    From `Aggregated Residual Transformations <https://arxiv.org/abs/1611.05431>`_.
    """
    return build_model("resnext101_32x8d", weights, progress, quantize, backend, kwargs)


@register_model(
    ResNeXt101_64X4D_QuantizedWeights,
    ResNeXt101_64X4D_Weights,
    partial(QuantizableResNet, QuantizableBottleneck, [3, 4, 23, 3], groups=64, width_per_group=4),
    widths=bottleneck_widths,
)
def resnext101_64x4d(
    *,
    weights: ResNeXt101_64X4D_QuantizedWeights | ResNeXt101_64X4D_Weights | str | None = None,
    progress: bool = True,
    quantize: bool = False,
    backend: str | None = None,
    **kwargs: Any,
) -> QuantizableResNet:
    """ResNeXt-101 (64 groups of 4).

    From `Aggregated Residual Transformations <https://arxiv.org/abs/1611.05431>`_.
    """
    return build_model("resnext101_64x4d", weights, progress, quantize, backend, kwargs)


@register_model(
    Wide_ResNet50_2_QuantizedWeights,
    Wide_ResNet50_2_Weights,
    partial(QuantizableResNet, QuantizableBottleneck, [3, 4, 6, 3], width_per_group=128),
    widths=bottleneck_widths,
)
def wide_resnet50_2(
    *,
    weights: Wide_ResNet50_2_QuantizedWeights | Wide_ResNet50_2_Weights | str | None = None,
    progress: bool = True,
    quantize: bool = False,
    backend: str | None = None,
    **kwargs: Any,
) -> QuantizableResNet:
    """Wide ResNet-50-2 from `Wide Residual Networks <https://arxiv.org/abs/1605.07146>`_."""
    return build_model("wide_resnet50_2", weights, progress, quantize, backend, kwargs)


@register_model(
    Wide_ResNet101_2_QuantizedWeights,
    Wide_ResNet101_2_Weights,
    partial(QuantizableResNet, QuantizableBottleneck, [3, 4, 23, 3], width_per_group=128),
    widths=bottleneck_widths,
)
def wide_resnet101_2(
    *,
    weights: Wide_ResNet101_2_QuantizedWeights | Wide_ResNet101_2_Weights | str | None = None,
    progress: bool = True,
    quantize: bool = False,
    backend: str | None = None,
    **kwargs: Any,
) -> QuantizableResNet:
    """Wide ResNet-101-2 from `Wide Residual Networks <https://arxiv.org/abs/1605.07146>`_."""
    return build_model("wide_resnet101_2", weights, progress, quantize, backend, kwargs)
