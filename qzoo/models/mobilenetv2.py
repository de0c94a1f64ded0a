"""Quantizable MobileNet V2, from arXiv:1801.04381."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor
from torchvision.models import MobileNet_V2_Weights
from torchvision.models.mobilenetv2 import InvertedResidual, MobileNetV2

from ..native.markers import FloatFunctional, fuse
from ..registry import register_model
from ..weights import QuantizedWeightsEnum, read_weights
from ._build import build_model
from ._common import MobileNetMixin, width_multipliers

__all__ = [
    "MobileNet_V2_QuantizedWeights",
    "QuantizableMobileNetV2",
    "mobilenet_v2",
]


class QuantizableInvertedResidual(InvertedResidual):
    """Expands, filters by depth, projects; adds its input where shapes allow."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.skip_add = FloatFunctional()

    def forward(self, x: Tensor) -> Tensor:
        """Returns the block's output, [N, C, H, W]."""
        if self.use_res_connect:
            return self.skip_add.add(x, self.conv(x))
        return self.conv(x)

    def fuse_model(self, is_qat: bool | None = None) -> None:
        """Fuses the projection with its batch norm; the other groups are the model's to fuse."""
        last = len(self.conv) - 2
        fuse(self.conv, [str(last), str(last + 1)], is_qat)


class QuantizableMobileNetV2(MobileNetMixin, MobileNetV2):
    """MobileNet V2 with quantization markers; same state dict as torchvision's.

    As in torchvision's quantizable model, ReLU6 is a plain ReLU, which fuses with convolutions.
    """

    usual_block = QuantizableInvertedResidual


def _widths(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[dict[str, Any]]:
    """Tells the width from what the last block projects to."""
    for multiplier in width_multipliers(shapes["features.17.conv.2"][0], 320):
        yield {"width_mult": multiplier}


class MobileNet_V2_QuantizedWeights(QuantizedWeightsEnum):
    """Int8 weights; their facts are in weights_meta/mobilenet_v2.json."""

    IMAGENET1K_QNNPACK_V1 = read_weights("mobilenet_v2", "IMAGENET1K_QNNPACK_V1")
    DEFAULT = IMAGENET1K_QNNPACK_V1


@register_model(
    MobileNet_V2_QuantizedWeights, MobileNet_V2_Weights, QuantizableMobileNetV2, widths=_widths
)
def mobilenet_v2(
    *,
    weights: MobileNet_V2_QuantizedWeights | MobileNet_V2_Weights | str | None = None,
    progress: bool = True,
    quantize: bool = False,
    backend: str | None = None,
    **kwargs: Any,
) -> QuantizableMobileNetV2:
    """MobileNet V2.

    From `Inverted Residuals and Linear Bottlenecks <https://arxiv.org/abs/1801.04381>`_.
    """
    return build_model("mobilenet_v2", weights, progress, quantize, backend, kwargs)
