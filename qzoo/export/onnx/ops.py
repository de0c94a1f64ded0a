"""Rounding, layers with weights and pointwise operations in ONNX, in the form that runtimes fuse.

Whatever computes new values stands between DequantizeLinear and QuantizeLinear.
"""

from __future__ import annotations

from typing import Any

import torch

from ...artifact.grid import Grid
from ...errors import ArgumentError
from ...reference.biases import widened
from ...reference.ops import DEQUANTIZE, DEQUANTIZE_CHANNELS, QUANTIZE
from .writer import Constant, Pixels, Value, Writer, emits, window

aten = torch.ops.aten

# Rounding.


@emits(QUANTIZE)
def _quantize(w: Writer, x: Value, *arguments: Any, step: str, in_between: bool) -> Value:
    grid = Grid(*arguments[:4])
    if x.grid == grid:
        return x
    if isinstance(x, Pixels):
        result = Value(x.shape, integers=_quantize_pixels(w, x, grid), grid=grid)
    elif w.openvino and in_between:
        result = Value(x.shape, w.rounded(w.real(x), grid, step), grid=grid)
    elif x.pieces and x.grid is None:
        result = Value(x.shape, grid=grid, pieces=x.pieces)
    else:
        integers = w.quantize(w.real(x), grid, f"{step}.integers")
        result = Value(x.shape, integers=integers, grid=grid)
    return w.cut(step, result) if w.isolate else result


def _quantize_pixels(w: Writer, x: Pixels, grid: Grid) -> str:
    """Normalizes pixels and rounds them to the grid of the first layer's input.

    The transposition of the uint8 image costs next to nothing, because runtimes compute int8
    layers channels last and cancel it.
    """
    assert x.real is not None
    planes = w.op("Transpose", x.real, perm=[0, 3, 1, 2])
    gain, offset = x.gain.float(), x.offset.float()
    if w.openvino:
        zeros = torch.zeros(3, dtype=torch.uint8, device="cpu")
        inputs = (planes, w.constant("pixel_gain", gain), w.constant("pixel_zero", zeros))
        scaled = w.op("DequantizeLinear", *inputs, axis=1)
        shift = w.constant("pixel_offset", offset.reshape(1, 3, 1, 1))
        return w.quantize(w.op("Add", scaled, shift), grid)
    # A 1x1 int8 convolution takes onnxruntime a third of the time of the float operations.
    kernel = (
        (127 * torch.eye(3, dtype=torch.float32, device="cpu")).to(torch.int8).reshape(3, 3, 1, 1)
    )
    weight = Constant(
        "pixel_gain", kernel, gain / 127, torch.zeros(3, dtype=torch.int8, device="cpu")
    )
    pixels = Value(x.shape, integers=planes, grid=Grid(1.0, 0))
    operands = _operands(w, pixels, weight, Constant("pixel_offset", offset))
    return w.quantize(w.op("Conv", *operands, kernel_shape=[1, 1]), grid)


@emits(DEQUANTIZE)
def _dequantize(w: Writer, x: Value | Constant, *arguments: Any) -> Value | Constant:
    if isinstance(x, Value):
        return x
    grid = Grid(*arguments[:4])
    zero_point = torch.tensor(grid.zero_point, dtype=torch.int8, device="cpu")
    return Constant(
        x.name, x.tensor, torch.tensor(grid.scale, dtype=torch.float32, device="cpu"), zero_point
    )


@emits(DEQUANTIZE_CHANNELS)
def _dequantize_channels(
    w: Writer, x: Constant, scale: Constant, zero_point: Constant, *_: Any
) -> Constant:
    return Constant(x.name, x.tensor, scale.tensor, zero_point.tensor)


# Layers with weights.


@emits(aten.conv2d.default)
def _conv2d(w: Writer, x: Value, weight: Constant, bias: Constant | None, *settings: Any) -> Value:
    stride, padding, dilation, groups = settings
    channels, _, *kernel = weight.tensor.shape
    name = w.op(
        "Conv",
        *_operands(w, x, weight, bias),
        name=weight.name.removesuffix(".weight"),
        kernel_shape=kernel,
        strides=stride,
        pads=padding * 2,
        dilations=dilation,
        group=groups,
    )
    size = window(x.shape[1:], kernel, stride, padding, dilation)
    return Value((channels, *size), name)


@emits(aten.linear.default)
def _linear(w: Writer, x: Value, weight: Constant, bias: Constant | None) -> Value:
    name = weight.name.removesuffix(".weight")
    name = w.op("Gemm", *_operands(w, x, weight, bias), name=name, transB=1)
    return Value((weight.tensor.shape[0],), name)


def _operands(w: Writer, x: Value, weight: Constant, bias: Constant | None) -> list[str]:
    """Writes down what a layer multiplies and adds: input, weight and, if any, bias."""
    if weight.scale is None:  # a layer that the artifact keeps in float
        real = w.real(x) if w.openvino else w.real_by_channels(x)
        return [real, *(w.constant(c.name, c.tensor) for c in (weight, bias) if c is not None)]
    if x.grid is None:
        raise ArgumentError(f"The layer of {weight.name} has no int8 input, so it has no QDQ form.")
    if bias is None:
        return [w.real(x), w.dequantized(weight)]
    numbers = (weight.tensor, weight.scale, weight.zero_point, bias.tensor, x.grid.scale)
    wide = widened(*(x if isinstance(x, float) else x.numpy() for x in numbers))  # type: ignore
    weight = Constant(weight.name, *(torch.from_numpy(x) for x in wide if x is not None))
    operands = [w.real(x), w.dequantized(weight)]
    if w.openvino:  # which keeps float biases, without the rounding
        return [*operands, w.constant(bias.name, bias.tensor)]
    assert weight.scale is not None
    scale = (weight.scale * x.grid.scale).expand(len(bias.tensor))
    integers = torch.round(bias.tensor.double() / scale.double()).to(torch.int32)
    inputs = (w.constant(bias.name, integers), w.constant(f"{bias.name}_scale", scale))
    return [*operands, w.op("DequantizeLinear", *inputs, name=f"{bias.name}.real", axis=0)]


# Element by element.


@emits(aten.add.Tensor)
def _add(w: Writer, x: Value, y: Value | Constant) -> Value:
    if isinstance(x, Pixels) and isinstance(y, Constant):
        x.offset = x.offset + y.tensor.double().flatten()
        return x
    return _pointwise(w, "Add", x, y)


@emits(aten.mul.Tensor)
def _mul(w: Writer, x: Value, y: Value | Constant) -> Value:
    if isinstance(x, Pixels) and isinstance(y, Constant):
        gain = y.tensor.double().flatten()
        x.gain, x.offset = x.gain * gain, x.offset * gain
        return x
    return _pointwise(w, "Mul", x, y)


def _pointwise(w: Writer, kind: str, x: Value, y: Value | Constant) -> Value:
    if isinstance(y, Constant):
        return Value(x.shape, w.op(kind, w.real(x), w.constant(y.name, y.tensor)))
    shape = tuple(max(a, b) for a, b in zip(x.shape, y.shape, strict=True))
    return Value(shape, w.op(kind, w.real(x), w.real(y)))


@emits(aten.relu.default)
def _relu(w: Writer, x: Value) -> Value:
    return _cut(w, x, w.op("Relu", w.real(x)))


@emits(aten.clamp.default)
@emits(aten.hardtanh.default)
def _clamp(w: Writer, x: Value, low: float, high: float) -> Value:
    return _cut(w, x, w.op("Clip", w.real(x), w.number(low), w.number(high)))


def _cut(w: Writer, x: Value, name: str) -> Value:
    """Returns what was cut off at some ends, on the grid that it lay on before."""
    if x.grid is None:
        return Value(x.shape, name)
    return Value(x.shape, integers=w.quantize(name, x.grid), grid=x.grid)


@emits(aten.sigmoid.default)
def _sigmoid(w: Writer, x: Value) -> Value:
    return Value(x.shape, w.op("Sigmoid", w.real(x)))


@emits(aten.tanh.default)
def _tanh(w: Writer, x: Value) -> Value:
    return Value(x.shape, w.op("Tanh", w.real(x)))


@emits(aten.silu.default)
def _silu(w: Writer, x: Value) -> Value:
    return Value(x.shape, w.op("Mul", w.real(x), w.op("Sigmoid", w.real(x))))


@emits(aten.gelu.default)
def _gelu(w: Writer, x: Value) -> Value:
    share = w.op("Erf", w.op("Mul", w.real(x), w.number(0.5**0.5)))
    half = w.op("Mul", w.real(x), w.number(0.5))
    return Value(x.shape, w.op("Mul", half, w.op("Add", share, w.number(1.0))))


@emits(aten.hardswish.default)
def _hardswish(w: Writer, x: Value) -> Value:
    return Value(x.shape, w.op("HardSwish", w.real(x)))


@emits(aten.hardsigmoid.default)
def _hardsigmoid(w: Writer, x: Value) -> Value:
    if not w.openvino:
        return Value(x.shape, w.op("HardSigmoid", w.real(x), alpha=1 / 6, beta=0.5))
    # OpenVINO knows this form as its own operation and fuses it; ONNX's it computes by itself.
    raised = w.op("Add", w.real(x), w.number(3.0))
    clipped = w.op("Clip", raised, w.number(0.0), w.number(6.0))
    return Value(x.shape, w.op("Mul", clipped, w.number(1 / 6)))
