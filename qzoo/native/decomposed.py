"""PyTorch's `quantized_decomposed` operators: quantize and dequantize on plain integer tensors.

`torch.ao` registers them where this PyTorch has it (torchao and ExecuTorch rely on that
registration); elsewhere they are registered here, with the same schemas and values.
"""

from __future__ import annotations

import importlib

import torch
from torch import Tensor

from .markers import TORCH_AO

_SCHEMAS = {
    "quantize_per_tensor": "(Tensor input, float scale, int zero_point, int quant_min, "
    "int quant_max, ScalarType dtype) -> Tensor",
    "dequantize_per_tensor": "(Tensor input, float scale, int zero_point, int quant_min, "
    "int quant_max, ScalarType dtype, *, ScalarType? out_dtype=None) -> Tensor",
    "dequantize_per_channel": "(Tensor input, Tensor scales, Tensor? zero_points, int axis, "
    "int quant_min, int quant_max, ScalarType dtype, *, ScalarType? out_dtype=None) -> Tensor",
}


def quantize_per_tensor(
    input: Tensor, scale: float, zero_point: int, quant_min: int, quant_max: int, dtype: torch.dtype
) -> Tensor:
    """Returns round(input * (1 / scale)) + zero_point, clamped: half to even, in float32."""
    steps = torch.round(input.float() * (1.0 / scale)) + zero_point
    return torch.clamp(steps, quant_min, quant_max).to(dtype)


def dequantize_per_tensor(
    input: Tensor, scale: float, zero_point: int, *_: object, out_dtype: torch.dtype | None = None
) -> Tensor:
    """Returns (input - zero_point) * scale, float32 unless `out_dtype` says otherwise."""
    out = torch.float32 if out_dtype is None else out_dtype
    return (input.to(out) - zero_point) * scale


def dequantize_per_channel(
    input: Tensor,
    scales: Tensor,
    zero_points: Tensor | None,
    axis: int,
    *_: object,  # the integers' bounds and type, which change no value
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Returns (input - zero_points) * scales along a dimension, float32 unless told otherwise."""
    shape = [1] * input.dim()
    shape[axis] = -1
    offset = 0 if zero_points is None else zero_points.reshape(shape)
    real = (input - offset) * scales.reshape(shape)
    return real.to(torch.float32 if out_dtype is None else out_dtype)


def _register() -> torch.library.Library | None:
    if TORCH_AO:
        importlib.import_module("torch.ao.quantization.fx._decomposed")
        return None
    if hasattr(torch.ops.quantized_decomposed, "quantize_per_tensor"):
        return None  # some other package has been here
    library = torch.library.Library("quantized_decomposed", "DEF")
    for function in (quantize_per_tensor, dequantize_per_tensor, dequantize_per_channel):
        name = function.__name__
        library.define(name + _SCHEMAS[name])
        # One composite kernel serves every device, and the meta device's shapes.
        library.impl(name, function, "CompositeExplicitAutograd")
    return library


# Operators are gone when the library that defined them is.
_LIBRARY = _register()
OPERATORS = torch.ops.quantized_decomposed
