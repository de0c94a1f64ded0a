"""Fake quantization for training: rounding going forward, straight-through gradients going back.

On CPUs these are plain in-place passes over tensors in the cache, which take a twentieth of the
time of `torch.fake_quantize_per_tensor_affine`. ReLU is part of the rounding, whose lower end it
is: both together cost about what ReLU alone does.

Source of the straight-through estimator: Y. Bengio et al., "Estimating or Propagating Gradients
Through Stochastic Neurons for Conditional Computation", 2013, https://arxiv.org/abs/1308.3432.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

#: The largest magnitude of an int8 weight; -128 has no positive counterpart and is not used.
WEIGHT_MAX = 127


def round_output(
    x: Tensor, scale: float | Tensor, low: float | Tensor, high: float | Tensor, relu: bool
) -> Tensor:
    """Rounds a layer's output to its grid: `scale * clamp(round(x / scale), low, high)`.

    The gradient is 1 where `x` rounds to a value of the grid and 0 where it is cut off; with ReLU
    it is 0 below 0 as well, though values above `-scale / 2` round to 0.

    Args:
        x: Of any shape; may be overwritten where no gradient is asked for.
        scale: Step of the grid, above 0. Tensors, all three, where `torch.compile` looks on, which
            would compile anew for other numbers.
        low: Lowest integer less the zero point, at most 0.
        high: Highest integer less the zero point, at least 0.
        relu: Whether negative values become 0.

    Returns:
        A tensor like `x`.
    """
    if relu:
        low = torch.zeros_like(low) if isinstance(low, Tensor) else 0.0
    if torch.is_grad_enabled() and x.requires_grad:
        return _RoundOutput.apply(x, scale, low, high, relu)
    if torch.compiler.is_compiling():
        return _rounded(x, scale, low, high)
    return x.mul_(_inverse(scale)).round_().clamp_(low, high).mul_(scale)  # type: ignore[arg-type]


def round_average(x: Tensor, scale: float | Tensor) -> Tensor:
    """Rounds averages of values of a grid to that grid; all lie inside, so the gradient is 1.

    Args:
        x: Of any shape; may be overwritten where no gradient is asked for.
        scale: Step of the grid, above 0.
    """
    if torch.is_grad_enabled() and x.requires_grad:
        return _RoundInside.apply(x, scale)
    return x.mul_(_inverse(scale)).round_().mul_(scale)


def round_weight(weight: Tensor, step: Tensor, clip: bool) -> Tensor:
    """Rounds weights to int8 steps: `step * round(weight / step)`, at most 127 steps from 0.

    Args:
        weight: Output channels first.
        step: Of a shape that multiplies the weight, above 0; gets no gradient.
        clip: Whether weights may be more than 127 steps from 0. Their gradient is then 0.

    Returns:
        A tensor like `weight`.
    """
    if clip:
        return _RoundAndClipWeight.apply(weight, step)
    return _RoundInside.apply(weight, step)


def learned_round_output(x: Tensor, scale: Tensor, low: float, high: float, relu: bool) -> Tensor:
    """Rounds as `round_output` does, with a gradient for the step too.

    Source: S. K. Esser et al., "Learned Step Size Quantization", 2020, section 2,
    https://arxiv.org/abs/1902.08153.

    Args:
        x: [N, ...].
        scale: Step of the grid, 0-d.
        low: Lowest integer less the zero point, at most 0.
        high: Highest integer less the zero point, at least 0.
        relu: Whether negative values become 0.
    """
    # A step that an optimizer took below 0 means the same as the one above.
    scale = scale.abs().clamp(min=torch.finfo(torch.float32).tiny)
    features = x[0].numel()
    return _LearnedRound.apply(x, scale, 0.0 if relu else low, high, relu, features)


def learned_round_weight(weight: Tensor, step: Tensor) -> Tensor:
    """Rounds as `round_weight` with clipping does, with a gradient for the steps too.

    Args:
        weight: Output channels first.
        step: Of a shape that multiplies the weight, above 0.
    """
    features = weight[0].numel() if step.dim() else weight.numel()
    return _LearnedRound.apply(weight, step, -WEIGHT_MAX, WEIGHT_MAX, False, features)


class _RoundOutput(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: float | Tensor,
        low: float | Tensor,
        high: float | Tensor,
        relu: bool,
    ) -> Tensor:
        ctx.lower = (0.0 if relu else (low - 0.5)) * scale
        ctx.upper = (high + 0.5) * scale
        # The input and not a mask: a mask takes two more passes forward and saves no memory,
        # because the input, the output of the layer in front, is there anyway.
        ctx.save_for_backward(x)
        return _rounded(x, scale, low, high)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        if isinstance(ctx.upper, Tensor):
            inside = (x > ctx.lower) & (x < ctx.upper)
            return torch.where(inside, gradients[0], 0.0), None, None, None, None
        inside = torch.ops.aten.hardtanh_backward(gradients[0], x, ctx.lower, ctx.upper)
        return inside, None, None, None, None


class _RoundInside(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, step: float | Tensor) -> Tensor:
        return torch.mul(x, _inverse(step)).round_().mul_(step)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return gradients[0], None


class _RoundAndClipWeight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, step: Tensor) -> Tensor:
        ctx.save_for_backward(weight, step)
        steps = torch.mul(weight, _inverse(step)).round_()
        return steps.clamp_(-WEIGHT_MAX, WEIGHT_MAX).mul_(step)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        weight, step = ctx.saved_tensors
        inside = weight.abs() <= step * (WEIGHT_MAX + 0.5)
        return gradients[0] * inside, None


class _LearnedRound(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, step: Tensor, low: float, high: float, relu: bool, features: int
    ) -> Tensor:
        ctx.save_for_backward(x, step)
        ctx.low, ctx.high, ctx.relu = low, high, relu
        ctx.share = (features * high) ** -0.5
        return _rounded(x, step, low, high)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, step = ctx.saved_tensors
        steps = x / step
        inside = (steps > (0.0 if ctx.relu else ctx.low - 0.5)) & (steps < ctx.high + 0.5)
        slope = steps.round().clamp_(ctx.low, ctx.high).sub_(steps * inside)
        slope.mul_(gradients[0])
        summed = slope.sum_to_size(step.shape) * ctx.share
        return gradients[0] * inside, summed.to(step.dtype), None, None, None, None


def _rounded(x: Tensor, scale: float | Tensor, low: float | Tensor, high: float | Tensor) -> Tensor:
    # Division and multiplication by the inverse differ in the last bit; kernels do the latter.
    steps = torch.mul(x, _inverse(scale)).round_()
    return steps.clamp_(low, high).mul_(scale)  # type: ignore[arg-type]


def _inverse(scale: float | Tensor) -> Any:
    return 1.0 / scale
