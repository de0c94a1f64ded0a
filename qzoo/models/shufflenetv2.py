"""Quantizable ShuffleNet V2, from arXiv:1807.11164."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor
from torchvision.models import (
    ShuffleNet_V2_X0_5_Weights,
    ShuffleNet_V2_X1_0_Weights,
    ShuffleNet_V2_X1_5_Weights,
    ShuffleNet_V2_X2_0_Weights,
)
from torchvision.models.shufflenetv2 import InvertedResidual, ShuffleNetV2, channel_shuffle

from ..native.markers import FloatFunctional, fuse
from ..registry import register_model
from ..weights import QuantizedWeightsEnum, read_weights
from ._build import build_model
from ._common import SequentialForwardMixin

__all__ = [
    "QuantizableShuffleNetV2",
    "ShuffleNet_V2_X0_5_QuantizedWeights",
    "ShuffleNet_V2_X1_0_QuantizedWeights",
    "ShuffleNet_V2_X1_5_QuantizedWeights",
    "ShuffleNet_V2_X2_0_QuantizedWeights",
    "shufflenet_v2_x0_5",
    "shufflenet_v2_x1_0",
    "shufflenet_v2_x1_5",
    "shufflenet_v2_x2_0",
]


class QuantizableInvertedResidual(InvertedResidual):
    """Concatenates its two branches and mixes their channels."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cat = FloatFunctional()

    def forward(self, x: Tensor) -> Tensor:
        """Returns the block's output, [N, C, H, W]."""
        if self.stride == 1:
            x1, x2 = x.chunk(2, dim=1)
            out = self.cat.cat([x1, self.branch2(x2)], dim=1)
        else:
            out = self.cat.cat([self.branch1(x), self.branch2(x)], dim=1)
        return channel_shuffle(out, 2)

    def fuse_model(self, is_qat: bool | None = None) -> None:
        """Fuses convolutions with batch norm and ReLU."""
        if len(self.branch1) > 0:
            fuse(self.branch1, [["0", "1"], ["2", "3", "4"]], is_qat)
        fuse(self.branch2, [["0", "1", "2"], ["3", "4"], ["5", "6", "7"]], is_qat)


class QuantizableShuffleNetV2(SequentialForwardMixin, ShuffleNetV2):
    """ShuffleNet V2 with quantization markers; same state dict as torchvision's."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, inverted_residual=QuantizableInvertedResidual, **kwargs)

    def _forward_impl(self, x: Tensor) -> Tensor:
        x = self.stage2(self.maxpool(self.conv1(x)))
        x = self.conv5(self.stage4(self.stage3(x)))
        # The same numbers as torchvision's x.mean([2, 3]), which PyTorch's int8 kernel refuses on
        # the 1x1 maps of small pictures ("required rank 4 tensor to use channels_last format").
        x = x.mean([2, 3], keepdim=True).flatten(1)
        return self.fc(x)

    def fuse_model(self, is_qat: bool | None = None) -> None:
        """Fuses conv+bn+relu in place; `is_qat=None` takes `self.training`."""
        for module in (self.conv1, self.conv5):
            fuse(module, ["0", "1", "2"], is_qat)
        super().fuse_model(is_qat)


class ShuffleNet_V2_X0_5_QuantizedWeights(QuantizedWeightsEnum):
    """Int8 weights; their facts are in weights_meta/shufflenet_v2_x0_5.json."""

    IMAGENET1K_FBGEMM_V1 = read_weights("shufflenet_v2_x0_5", "IMAGENET1K_FBGEMM_V1")
    DIGITS_X86_V1 = read_weights("shufflenet_v2_x0_5", "DIGITS_X86_V1")
    DEFAULT = IMAGENET1K_FBGEMM_V1


class ShuffleNet_V2_X1_0_QuantizedWeights(QuantizedWeightsEnum):
    """Int8 weights; their facts are in weights_meta/shufflenet_v2_x1_0.json."""

    IMAGENET1K_FBGEMM_V1 = read_weights("shufflenet_v2_x1_0", "IMAGENET1K_FBGEMM_V1")
    DEFAULT = IMAGENET1K_FBGEMM_V1


class ShuffleNet_V2_X1_5_QuantizedWeights(QuantizedWeightsEnum):
    """Int8 weights; their facts are in weights_meta/shufflenet_v2_x1_5.json."""

    IMAGENET1K_FBGEMM_V1 = read_weights("shufflenet_v2_x1_5", "IMAGENET1K_FBGEMM_V1")
    DEFAULT = IMAGENET1K_FBGEMM_V1


class ShuffleNet_V2_X2_0_QuantizedWeights(QuantizedWeightsEnum):
    """Int8 weights; their facts are in weights_meta/shufflenet_v2_x2_0.json."""

    IMAGENET1K_FBGEMM_V1 = read_weights("shufflenet_v2_x2_0", "IMAGENET1K_FBGEMM_V1")
    DEFAULT = IMAGENET1K_FBGEMM_V1


@register_model(
    ShuffleNet_V2_X0_5_QuantizedWeights,
    ShuffleNet_V2_X0_5_Weights,
    partial(QuantizableShuffleNetV2, [4, 8, 4], [24, 48, 96, 192, 1024]),
)
def shufflenet_v2_x0_5(
    *,
    weights: ShuffleNet_V2_X0_5_QuantizedWeights | ShuffleNet_V2_X0_5_Weights | str | None = None,
    progress: bool = True,
    quantize: bool = False,
    backend: str | None = None,
    **kwargs: Any,
) -> QuantizableShuffleNetV2:
    """ShuffleNet V2 x0.5 from `Practical Guidelines <https://arxiv.org/abs/1807.11164>`_."""
    return build_model("shufflenet_v2_x0_5", weights, progress, quantize, backend, kwargs)


@register_model(
    ShuffleNet_V2_X1_0_QuantizedWeights,
    ShuffleNet_V2_X1_0_Weights,
    partial(QuantizableShuffleNetV2, [4, 8, 4], [24, 116, 232, 464, 1024]),
)
def shufflenet_v2_x1_0(
    *,
    weights: ShuffleNet_V2_X1_0_QuantizedWeights | ShuffleNet_V2_X1_0_Weights | str | None = None,
    progress: bool = True,
    quantize: bool = False,
    backend: str | None = None,
    **kwargs: Any,
) -> QuantizableShuffleNetV2:
    """ShuffleNet V2 x1.0 from `Practical Guidelines <https://arxiv.org/abs/1807.11164>`_."""
    return build_model("shufflenet_v2_x1_0", weights, progress, quantize, backend, kwargs)


@register_model(
    ShuffleNet_V2_X1_5_QuantizedWeights,
    ShuffleNet_V2_X1_5_Weights,
    partial(QuantizableShuffleNetV2, [4, 8, 4], [24, 176, 352, 704, 1024]),
)
def shufflenet_v2_x1_5(
    *,
    weights: ShuffleNet_V2_X1_5_QuantizedWeights | ShuffleNet_V2_X1_5_Weights | str | None = None,
    progress: bool = True,
    quantize: bool = False,
    backend: str | None = None,
    **kwargs: Any,
) -> QuantizableShuffleNetV2:
    """ShuffleNet V2 x1.5 from `Practical Guidelines <https://arxiv.org/abs/1807.11164>`_."""
    return build_model("shufflenet_v2_x1_5", weights, progress, quantize, backend, kwargs)


@register_model(
    ShuffleNet_V2_X2_0_QuantizedWeights,
    ShuffleNet_V2_X2_0_Weights,
    partial(QuantizableShuffleNetV2, [4, 8, 4], [24, 244, 488, 976, 2048]),
)
def shufflenet_v2_x2_0(
    *,
    weights: ShuffleNet_V2_X2_0_QuantizedWeights | ShuffleNet_V2_X2_0_Weights | str | None = None,
    progress: bool = True,
    quantize: bool = False,
    backend: str | None = None,
    **kwargs: Any,
) -> QuantizableShuffleNetV2:
    """ShuffleNet V2 x2.0 from `Practical Guidelines <https://arxiv.org/abs/1807.11164>`_."""
    return build_model("shufflenet_v2_x2_0", weights, progress, quantize, backend, kwargs)
