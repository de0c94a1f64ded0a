"""The quantize and dequantize operations that reference models are written in.

They are PyTorch's `quantized_decomposed` operators, because torch.export keeps them whole and
Inductor's, ExecuTorch's and torchao's int8 patterns look for exactly them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from ..artifact.grid import Grid
from ..native.decomposed import OPERATORS

QUANTIZE = OPERATORS.quantize_per_tensor.default
DEQUANTIZE = OPERATORS.dequantize_per_tensor.default
DEQUANTIZE_CHANNELS = OPERATORS.dequantize_per_channel.default


def dtype_of(grid: Grid) -> torch.dtype:
    """Returns the type of a grid's integers, torch.uint8 or torch.int8."""
    return torch.int8 if grid.low < 0 else torch.uint8


def arguments(grid: Grid) -> tuple[Any, ...]:
    """Returns what `QUANTIZE`, `DEQUANTIZE` and `fake_quantize` take after the tensor."""
    return (*grid.arguments, dtype_of(grid))


def grid_of(node: fx.Node) -> Grid:
    """Returns the grid of a `QUANTIZE` or `DEQUANTIZE` node."""
    scale, zero_point, low, high, *_ = node.args[1:]
    return Grid(scale, zero_point, low, high)  # type: ignore[arg-type]


class _StraightThrough(torch.autograd.Function):
    """Rounds to a grid going forward; backward, gradients pass where nothing was cut off."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *grid: Any) -> Tensor:
        scale, zero_point, low, high = grid
        steps = torch.round(x * (1.0 / scale)) + zero_point
        ctx.save_for_backward((steps >= low) & (steps <= high))
        return (steps.clamp(low, high) - zero_point) * scale

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        (inside,) = ctx.saved_tensors
        return gradients[0] * inside, None, None, None, None, None


def fake_quantize(
    x: Tensor,
    scale: float,
    zero_point: int,
    low: int,
    high: int,
    dtype: torch.dtype = torch.uint8,
) -> Tensor:
    """Quantizes and dequantizes in one differentiable step, with the straight-through estimator.

    The values are those of `QUANTIZE` followed by `DEQUANTIZE`; the gradient is 1 where `x` lies
    inside the range and 0 outside (arXiv:1308.3432). The integers' type changes none of them.
    """
    return _StraightThrough.apply(x, scale, zero_point, low, high)
