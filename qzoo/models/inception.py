"""Quantizable Inception v3, from "Rethinking the Inception Architecture" (arXiv:1512.00567)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models import Inception_V3_Weights
from torchvision.models import inception as tv

from ..native.markers import FloatFunctional
from ..registry import register_model
from ..weights import QuantizedWeightsEnum, read_weights
from ._build import build_model
from ._common import ConvBnReluMixin, QuantizableMixin

__all__ = [
    "Inception_V3_QuantizedWeights",
    "QuantizableInception3",
    "inception_v3",
]


class QuantizableBasicConv2d(ConvBnReluMixin, tv.BasicConv2d):
    """Convolution, batch norm and a ReLU module."""


class _CatMixin(torch.nn.Module):
    """Concatenates a block's branches at one common scale."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "conv_block": QuantizableBasicConv2d})
        self.myop = FloatFunctional()

    def forward(self, x: Tensor) -> Tensor:
        """Returns the block's output, [N, C, H, W]."""
        return self.myop.cat(self._forward(x), 1)


class QuantizableInceptionA(_CatMixin, tv.InceptionA):
    """35x35 block."""


class QuantizableInceptionB(_CatMixin, tv.InceptionB):
    """35x35 to 17x17 block."""


class QuantizableInceptionC(_CatMixin, tv.InceptionC):
    """17x17 block."""


class QuantizableInceptionD(_CatMixin, tv.InceptionD):
    """17x17 to 8x8 block."""


class QuantizableInceptionE(tv.InceptionE):
    """8x8 block with two inner concatenations."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "conv_block": QuantizableBasicConv2d})
        self.myop1 = FloatFunctional()
        self.myop2 = FloatFunctional()
        self.myop3 = FloatFunctional()

    def forward(self, x: Tensor) -> Tensor:
        """Returns the block's output, [N, C, H, W]."""
        b3 = self.branch3x3_1(x)
        b3 = self.myop1.cat([self.branch3x3_2a(b3), self.branch3x3_2b(b3)], 1)
        dbl = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        dbl = self.myop2.cat([self.branch3x3dbl_3a(dbl), self.branch3x3dbl_3b(dbl)], 1)
        pool = self.branch_pool(F.avg_pool2d(x, kernel_size=3, stride=1, padding=1))
        return self.myop3.cat([self.branch1x1(x), b3, dbl, pool], 1)


class QuantizableInceptionAux(tv.InceptionAux):
    """Auxiliary classifier, used in training only."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "conv_block": QuantizableBasicConv2d})


class QuantizableInception3(QuantizableMixin, tv.Inception3):
    """Inception v3 with quantization markers; same state dict as torchvision's."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        blocks = [
            QuantizableBasicConv2d,
            QuantizableInceptionA,
            QuantizableInceptionB,
            QuantizableInceptionC,
            QuantizableInceptionD,
            QuantizableInceptionE,
            QuantizableInceptionAux,
        ]
        super().__init__(*args, inception_blocks=blocks, **kwargs)

    def forward(self, x: Tensor) -> tv.InceptionOutputs:
        """Returns logits; in training with the auxiliary classifier an `InceptionOutputs`."""
        x = self.quant(self._transform_input(x))
        x, aux = self._forward(x)
        x = self.dequant(x)
        if torch.jit.is_scripting():
            return tv.InceptionOutputs(x, aux)
        return self.eager_outputs(x, aux)


class Inception_V3_QuantizedWeights(QuantizedWeightsEnum):
    """Int8 weights; their facts are in weights_meta/inception_v3.json."""

    IMAGENET1K_FBGEMM_V1 = read_weights("inception_v3", "IMAGENET1K_FBGEMM_V1")
    DEFAULT = IMAGENET1K_FBGEMM_V1


@register_model(
    Inception_V3_QuantizedWeights,
    Inception_V3_Weights,
    QuantizableInception3,
    pretrained_kwargs={"transform_input": True},
    aux=("AuxLogits",),
)
def inception_v3(
    *,
    weights: Inception_V3_QuantizedWeights | Inception_V3_Weights | str | None = None,
    progress: bool = True,
    quantize: bool = False,
    backend: str | None = None,
    **kwargs: Any,
) -> QuantizableInception3:
    """Inception v3 from `Rethinking the Inception Architecture <https://arxiv.org/abs/1512.00567>`_."""
    return build_model("inception_v3", weights, progress, quantize, backend, kwargs)
