"""The quantize and dequantize operations that reference models are written in.

They are PyTorch's `quantized_decomposed` operators, because torch.export keeps them whole and
Inductor's, ExecuTorch's and torchao's int8 patterns look for exactly them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..native.decomposed import OPERATORS

QUANTIZE = OPERATORS.quantize_per_tensor.default
DEQUANTIZE = OPERATORS.dequantize_per_tensor.default
DEQUANTIZE_CHANNELS = OPERATORS.dequantize_per_channel.default


@dataclass(frozen=True)
class Grid:
    """The values that a quantized tensor can take: scale * (integer - zero_point).

    Attributes:
        scale: Distance of two neighbouring values, above 0.
        zero_point: The integer that stands for 0.0.
        low: Smallest integer.
        high: Largest integer.
        dtype: torch.uint8 or torch.int8.
    """

    scale: float
    zero_point: int
    low: int = 0
    high: int = 255
    dtype: torch.dtype = torch.uint8

    def signed(self) -> Grid:
        """Returns the same real values on int8 integers, each less by 128."""
        return Grid(self.scale, self.zero_point - 128, -128, 127, torch.int8)

    @property
    def arguments(self) -> tuple[Any, ...]:
        """What `QUANTIZE` and `DEQUANTIZE` take after the tensor."""
        return (self.scale, self.zero_point, self.low, self.high, self.dtype)


class _StraightThrough(torch.autograd.Function):
    """Rounds to a grid going forward; backward, gradients pass where nothing was cut off."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *grid: Any) -> Tensor:
        scale, zero_point, low, high, _ = grid
        steps = torch.round(x * (1.0 / scale)) + zero_point
        ctx.save_for_backward((steps >= low) & (steps <= high))
        return (steps.clamp(low, high) - zero_point) * scale

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        (inside,) = ctx.saved_tensors
        return gradients[0] * inside, None, None, None, None, None


def fake_quantize(
    x: Tensor, scale: float, zero_point: int, low: int, high: int, dtype: torch.dtype
) -> Tensor:
    """Quantizes and dequantizes in one differentiable step, with the straight-through estimator.

    The values are those of `QUANTIZE` followed by `DEQUANTIZE`; the gradient is 1 where `x` lies
    inside the range and 0 outside (arXiv:1308.3432).
    """
    return _StraightThrough.apply(x, scale, zero_point, low, high, dtype)
