"""Quantizable MobileNet V3, from "Searching for MobileNetV3" (arXiv:1905.02244)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn
from torchvision.models import MobileNet_V3_Large_Weights, MobileNet_V3_Small_Weights
from torchvision.models.mobilenetv3 import InvertedResidual, MobileNetV3, _mobilenet_v3_conf
from torchvision.ops.misc import SqueezeExcitation

from ..native.markers import FloatFunctional, fuse
from ..registry import register_model
from ..weights import QuantizedWeightsEnum, read_weights
from ._build import build_model
from ._common import MobileNetMixin, width_multipliers

__all__ = [
    "MobileNet_V3_Large_QuantizedWeights",
    "MobileNet_V3_Small_QuantizedWeights",
    "QuantizableMobileNetV3",
    "mobilenet_v3_large",
    "mobilenet_v3_small",
]


class QuantizableSqueezeExcitation(SqueezeExcitation):
    """Scales channels by a gate in [0, 1]; gate and product are modules of their own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "scale_activation": nn.Hardsigmoid})
        self.skip_mul = FloatFunctional()

    def forward(self, input: Tensor) -> Tensor:
        """Returns the scaled input, [N, C, H, W]."""
        return self.skip_mul.mul(self._scale(input), input)

    def fuse_model(self, is_qat: bool | None = None) -> None:
        """Fuses the first convolution with its ReLU."""
        fuse(self, ["fc1", "activation"], is_qat)


class QuantizableInvertedResidual(InvertedResidual):
    """Expands, filters by depth, gates, projects; adds its input where shapes allow."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"se_layer": QuantizableSqueezeExcitation, **kwargs})
        self.skip_add = FloatFunctional()

    def forward(self, x: Tensor) -> Tensor:
        """Returns the block's output, [N, C, H, W]."""
        if self.use_res_connect:
            return self.skip_add.add(x, self.block(x))
        return self.block(x)


class QuantizableMobileNetV3(MobileNetMixin, MobileNetV3):
    """MobileNet V3 with quantization markers; same state dict as torchvision's."""

    usual_block = QuantizableInvertedResidual


def _constructor(arch: str) -> Callable[..., QuantizableMobileNetV3]:
    """Returns what makes one of the two networks from its own keywords."""

    def construct(
        *,
        width_mult: float = 1.0,
        reduced_tail: bool = False,
        dilated: bool = False,
        num_classes: int = 1000,
        dropout: float = 0.2,
        block: Callable[..., nn.Module] | None = None,
        norm_layer: Callable[..., nn.Module] | None = None,
    ) -> QuantizableMobileNetV3:
        setting, last_channel = _mobilenet_v3_conf(
            arch, width_mult=width_mult, reduced_tail=reduced_tail, dilated=dilated
        )
        return QuantizableMobileNetV3(
            setting,
            last_channel,
            num_classes=num_classes,
            dropout=dropout,
            block=block,
            norm_layer=norm_layer,
        )

    return construct


def _widths(
    last: str, usual: int, shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[dict[str, Any]]:
    """Tells the width, and whether the tail is reduced, from the input of the last convolution."""
    for reduced in (False, True):
        for multiplier in width_multipliers(shapes[last][1], usual // 2 if reduced else usual):
            yield {"width_mult": multiplier, "reduced_tail": reduced}


class MobileNet_V3_Large_QuantizedWeights(QuantizedWeightsEnum):
    """Int8 weights; their facts are in weights_meta/mobilenet_v3_large.json."""

    IMAGENET1K_QNNPACK_V1 = read_weights("mobilenet_v3_large", "IMAGENET1K_QNNPACK_V1")
    DEFAULT = IMAGENET1K_QNNPACK_V1


class MobileNet_V3_Small_QuantizedWeights(QuantizedWeightsEnum):
    """Int8 weights; their facts are in weights_meta/mobilenet_v3_small.json."""

    DIGITS_X86_V1 = read_weights("mobilenet_v3_small", "DIGITS_X86_V1")


@register_model(
    MobileNet_V3_Large_QuantizedWeights,
    MobileNet_V3_Large_Weights,
    _constructor("mobilenet_v3_large"),
    widths=partial(_widths, "features.16.0", 160),
)
def mobilenet_v3_large(
    *,
    weights: MobileNet_V3_Large_QuantizedWeights | MobileNet_V3_Large_Weights | str | None = None,
    progress: bool = True,
    quantize: bool = False,
    backend: str | None = None,
    **kwargs: Any,
) -> QuantizableMobileNetV3:
    """MobileNet V3 Large from `Searching for MobileNetV3 <https://arxiv.org/abs/1905.02244>`_."""
    return build_model("mobilenet_v3_large", weights, progress, quantize, backend, kwargs)


@register_model(
    MobileNet_V3_Small_QuantizedWeights,
    MobileNet_V3_Small_Weights,
    _constructor("mobilenet_v3_small"),
    widths=partial(_widths, "features.12.0", 96),
)
def mobilenet_v3_small(
    *,
    weights: MobileNet_V3_Small_QuantizedWeights | MobileNet_V3_Small_Weights | str | None = None,
    progress: bool = True,
    quantize: bool = False,
    backend: str | None = None,
    **kwargs: Any,
) -> QuantizableMobileNetV3:
    """MobileNet V3 Small from `Searching for MobileNetV3 <https://arxiv.org/abs/1905.02244>`_."""
    return build_model("mobilenet_v3_small", weights, progress, quantize, backend, kwargs)
