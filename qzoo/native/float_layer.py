"""Layers of a native int8 model that compute in float32 between two uint8 tensors.

They take the place of PyTorch's int8 modules where an artifact keeps a layer in float (mixed
precision), so that the layers around them notice nothing.
"""

# No `from __future__ import annotations`: torch.jit.script reads the annotations as objects.

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..artifact.layers import Layer


class FloatLayer(nn.Module):
    """A float32 layer with quantized input and output.

    Like PyTorch's int8 modules it holds its range as plain numbers, which `state_dict` writes as
    tensors. It has no parameters, because int8 models are not trained.

    Attributes:
        weight: float32 buffer, output channels first.
        bias: float32 buffer [C], or None.
        relu: Whether negative results are cut to 0 before the output is rounded.
        scale: Step of the output.
        zero_point: The output's integer that stands for 0.0, in [0, 255].
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None, layer: Layer) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.relu, self.scale, self.zero_point = layer.relu, layer.scale, layer.zero_point

    def rounded(self, y: Tensor) -> Tensor:
        """Returns a float32 result on the layer's grid, after its ReLU."""
        if self.relu:
            y = F.relu(y)
        return torch.quantize_per_tensor(y, self.scale, self.zero_point, torch.quint8)

    def extra_repr(self) -> str:
        """Says what `print(model)` shows of it."""
        shape = tuple(self.weight.shape)
        return f"{shape}, relu={self.relu}, scale={self.scale}, zero_point={self.zero_point}"

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        # In float64, which holds every scale of an artifact exactly.
        destination[f"{prefix}scale"] = torch.tensor(self.scale, dtype=torch.float64, device="cpu")
        destination[f"{prefix}zero_point"] = torch.tensor(
            self.zero_point, dtype=torch.int64, device="cpu"
        )

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        for name, kind in (("scale", float), ("zero_point", int)):
            value = state_dict.pop(f"{prefix}{name}", None)
            if value is not None:
                setattr(self, name, kind(value))
            elif strict:
                missing_keys.append(f"{prefix}{name}")
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


class FloatConv2d(FloatLayer):
    """A float32 convolution, with ReLU if asked for: quint8 [N, C, H, W] in and out.

    Attributes:
        stride: Stride (height, width), in pixels.
        padding: Zeros added on each side (height, width), in pixels.
        dilation: Distance of kernel taps (height, width), in pixels.
        groups: Number of independent channel groups.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, layer: Layer) -> None:
        super().__init__(weight, bias, layer)
        self.stride, self.padding, self.dilation = layer.stride, layer.padding, layer.dilation
        self.groups = layer.groups

    def forward(self, x: Tensor) -> Tensor:
        """Returns the quantized result of a quantized batch."""
        geometry = (self.stride, self.padding, self.dilation, self.groups)
        return self.rounded(F.conv2d(x.dequantize(), self.weight, self.bias, *geometry))


class FloatLinear(FloatLayer):
    """A float32 fully connected layer, with ReLU if asked for: quint8 [..., C] in and out."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns the quantized result of a quantized batch."""
        return self.rounded(F.linear(x.dequantize(), self.weight, self.bias))
