"""Quantizable GoogLeNet, from "Going Deeper with Convolutions" (arXiv:1409.4842)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import GoogLeNet_Weights
from torchvision.models.googlenet import (
    BasicConv2d,
    GoogLeNet,
    GoogLeNetOutputs,
    Inception,
    InceptionAux,
)

from ..native.markers import FloatFunctional
from ..registry import register_model
from ..weights import QuantizedWeightsEnum, read_weights
from ._build import build_model
from ._common import ConvBnReluMixin, QuantizableMixin

__all__ = [
    "GoogLeNet_QuantizedWeights",
    "QuantizableGoogLeNet",
    "googlenet",
]


class QuantizableBasicConv2d(ConvBnReluMixin, BasicConv2d):
    """Convolution, batch norm and a ReLU module."""


class QuantizableInception(Inception):
    """Four branches, concatenated at one common scale."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "conv_block": QuantizableBasicConv2d})
        self.cat = FloatFunctional()

    def forward(self, x: Tensor) -> Tensor:
        """Returns the block's output, [N, C, H, W]."""
        return self.cat.cat(self._forward(x), 1)


class QuantizableInceptionAux(InceptionAux):
    """Auxiliary classifier, used in training only; its ReLU is a module."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "conv_block": QuantizableBasicConv2d})
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Returns auxiliary logits [N, num_classes]."""
        x = self.conv(F.adaptive_avg_pool2d(x, (4, 4)))
        x = self.relu(self.fc1(torch.flatten(x, 1)))
        return self.fc2(self.dropout(x))


class QuantizableGoogLeNet(QuantizableMixin, GoogLeNet):
    """GoogLeNet with quantization markers; same state dict as torchvision's."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        blocks = [QuantizableBasicConv2d, QuantizableInception, QuantizableInceptionAux]
        super().__init__(*args, blocks=blocks, **kwargs)

    def forward(self, x: Tensor) -> GoogLeNetOutputs:
        """Returns logits; in training with auxiliary classifiers a `GoogLeNetOutputs`."""
        x = self.quant(self._transform_input(x))
        x, aux2, aux1 = self._forward(x)
        x = self.dequant(x)
        if torch.jit.is_scripting():
            return GoogLeNetOutputs(x, aux2, aux1)
        return self.eager_outputs(x, aux2, aux1)


class GoogLeNet_QuantizedWeights(QuantizedWeightsEnum):
    """Int8 weights; their facts are in weights_meta/googlenet.json."""

    IMAGENET1K_FBGEMM_V1 = read_weights("googlenet", "IMAGENET1K_FBGEMM_V1")
    DEFAULT = IMAGENET1K_FBGEMM_V1


@register_model(
    GoogLeNet_QuantizedWeights,
    GoogLeNet_Weights,
    QuantizableGoogLeNet,
    pretrained_kwargs={"transform_input": True},
    aux=("aux1", "aux2"),
)
def googlenet(
    *,
    weights: GoogLeNet_QuantizedWeights | GoogLeNet_Weights | str | None = None,
    progress: bool = True,
    quantize: bool = False,
    backend: str | None = None,
    **kwargs: Any,
) -> QuantizableGoogLeNet:
    """GoogLeNet from `Going Deeper with Convolutions <https://arxiv.org/abs/1409.4842>`_."""
    return build_model("googlenet", weights, progress, quantize, backend, kwargs)
