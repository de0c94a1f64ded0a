"""What each operation of a reference model becomes in ONNX, in the form that runtimes fuse.

Operations that move values without changing them (max pooling, split, shuffle, flatten,
concatenation on one grid) work on the integers, so that no runtime has to find out that it may do
so. Everything else stands between DequantizeLinear and QuantizeLinear.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, fx

from ..errors import ArgumentError
from ..reference import ReferenceModel
from ..reference.ops import DEQUANTIZE, DEQUANTIZE_CHANNELS, QUANTIZE, Grid
from ._onnx_writer import Constant, Pixels, Value, Writer

aten = torch.ops.aten
#: Largest bias in steps of the sums that it joins; as much again is left for the sums.
BIAS_MAX = 2**30

Emitter = TypeVar("Emitter", bound=Callable[..., Any])
_EMITTERS: dict[Any, Callable[..., Any]] = {}


def write_graph(writer: Writer, model: ReferenceModel, x: Value) -> Value:
    """Writes a reference model's graph.

    Args:
        writer: Takes the nodes.
        model: A reference model that was built without `ste`.
        x: The graph's input.

    Returns:
        The logits.

    Raises:
        ArgumentError: The graph holds an operation that ONNX export does not know.
    """
    values: dict[fx.Node, Any] = {}
    for node in model.graph.nodes:
        if node.op == "placeholder":
            values[node] = x
        elif node.op == "get_attr":
            owner, _, name = node.target.rpartition(".")
            tensor = getattr(model.get_submodule(owner), name).detach().cpu()
            values[node] = Constant(node.target, tensor)
        elif node.op == "output":
            return values[node.args[0]]
        else:
            emitter = _EMITTERS.get(node.target)
            if emitter is None:
                raise ArgumentError(f"ONNX export does not know the operation {node.target}.")
            args = fx.map_arg(node.args, values.__getitem__)
            step = {"step": node.meta["step"]} if node.target is QUANTIZE else {}
            values[node] = emitter(writer, *args, **node.kwargs, **step)
    raise ArgumentError("The reference model's graph has no output.")


def _emits(target: Any) -> Callable[[Emitter], Emitter]:
    def register(emitter: Emitter) -> Emitter:
        _EMITTERS[target] = emitter
        return emitter

    return register


# Rounding.


@_emits(QUANTIZE)
def _quantize(w: Writer, x: Value, *arguments: Any, step: str) -> Value:
    grid = Grid(*arguments)
    if x.grid == grid:
        return x
    if isinstance(x, Pixels):
        result = Value(x.shape, integers=_quantize_pixels(w, x, grid), grid=grid)
    elif x.pieces:
        result = Value(x.shape, grid=grid, pieces=x.pieces)
    else:
        integers = w.quantize(w.real(x), grid, f"{step}.integers")
        result = Value(x.shape, integers=integers, grid=grid)
    return w.cut(step, result) if w.isolate else result


def _quantize_pixels(w: Writer, x: Pixels, grid: Grid) -> str:
    """Normalizes and rounds channels-last pixels before they become channels-first.

    Runtimes compute int8 layers channels last, so that the transposition costs them nothing here.
    """
    assert x.real is not None
    pixels = w.op("Cast", x.real, to=1)
    scaled = w.op("Mul", pixels, w.constant("pixel_gain", x.gain.float()))
    shifted = w.op("Add", scaled, w.constant("pixel_offset", x.offset.float()))
    return w.op("Transpose", w.quantize(shifted, grid), perm=[0, 3, 1, 2])


@_emits(DEQUANTIZE)
def _dequantize(w: Writer, x: Value | Constant, *arguments: Any) -> Value | Constant:
    if isinstance(x, Value):
        return x
    grid = Grid(*arguments)
    zero_point = torch.tensor(grid.zero_point, dtype=torch.int8)
    return Constant(x.name, x.tensor, torch.tensor(grid.scale), zero_point)


@_emits(DEQUANTIZE_CHANNELS)
def _dequantize_channels(
    w: Writer, x: Constant, scale: Constant, zero_point: Constant, *_: Any
) -> Constant:
    return Constant(x.name, x.tensor, scale.tensor, zero_point.tensor)


# Layers with weights.


@_emits(aten.conv2d.default)
def _conv2d(
    w: Writer,
    x: Value,
    weight: Constant,
    bias: Constant | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Value:
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
    size = _window(x.shape[1:], kernel, stride, padding, dilation)
    return Value((channels, *size), name)


@_emits(aten.linear.default)
def _linear(w: Writer, x: Value, weight: Constant, bias: Constant | None) -> Value:
    name = weight.name.removesuffix(".weight")
    name = w.op("Gemm", *_operands(w, x, weight, bias), name=name, transB=1)
    return Value((weight.tensor.shape[0],), name)


def _operands(w: Writer, x: Value, weight: Constant, bias: Constant | None) -> list[str]:
    """Writes down what a layer multiplies and adds: input, weight and, if any, bias."""
    if x.grid is None or weight.scale is None:
        raise ArgumentError(f"The layer of {weight.name} has no int8 input, so it has no QDQ form.")
    if bias is None:
        return [w.real(x), w.dequantized(weight)]
    weight = _with_room_for_bias(weight, bias.tensor, x.grid.scale)
    operands = [w.real(x), w.dequantized(weight)]
    if not w.integer_bias:
        return [*operands, w.constant(bias.name, bias.tensor)]
    assert weight.scale is not None
    scale = (weight.scale * x.grid.scale).expand(len(bias.tensor))
    integers = torch.round(bias.tensor.double() / scale.double()).to(torch.int32)
    inputs = (w.constant(bias.name, integers), w.constant(f"{bias.name}_scale", scale))
    return [*operands, w.op("DequantizeLinear", *inputs, name=f"{bias.name}.real", axis=0)]


def _with_room_for_bias(weight: Constant, bias: Tensor, input_scale: float) -> Constant:
    """Widens the scales of channels whose bias would not fit into 32 bits at the sums' scale.

    Those are channels of next to no weight, often none at all. onnxruntime turns every bias into
    int32 at that scale, float ones too, without a look at the range.
    """
    assert weight.scale is not None and weight.zero_point is not None
    least = bias.abs() / (BIAS_MAX * input_scale)
    if bool((least <= weight.scale).all()):
        return weight
    scale = torch.maximum(weight.scale.expand(len(bias)), least)
    shape = (-1, *[1] * (weight.tensor.dim() - 1))
    zero_point = weight.zero_point.expand(len(bias))
    shrink = (weight.scale / scale).reshape(shape)
    steps = (weight.tensor.float() - zero_point.reshape(shape)) * shrink
    return Constant(weight.name, steps.round().to(torch.int8), scale, torch.zeros_like(zero_point))


def _window(
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int] = (1, 1),
    ceil: bool = False,
) -> tuple[int, ...]:
    """Returns height and width after a convolution or pooling."""
    result = []
    for n, k, s, p, d in zip(size, kernel, stride, padding, dilation, strict=True):
        steps = n + 2 * p - d * (k - 1) - 1
        count = (-(-steps // s) if ceil else steps // s) + 1
        # No window may start in the padding behind the picture.
        result.append(count - 1 if ceil and (count - 1) * s >= n + p else count)
    return tuple(result)


# Element by element.


@_emits(aten.add.Tensor)
def _add(w: Writer, x: Value, y: Value | Constant) -> Value:
    if isinstance(x, Pixels) and isinstance(y, Constant):
        x.offset = x.offset + y.tensor.double().flatten()
        return x
    return _pointwise(w, "Add", x, y)


@_emits(aten.mul.Tensor)
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


@_emits(aten.relu.default)
def _relu(w: Writer, x: Value) -> Value:
    result = Value(x.shape, w.op("Relu", w.real(x)))
    if x.grid is not None:
        return Value(x.shape, integers=w.quantize(w.real(result), x.grid), grid=x.grid)
    return result


@_emits(aten.hardswish.default)
def _hardswish(w: Writer, x: Value) -> Value:
    return Value(x.shape, w.op("HardSwish", w.real(x)))


@_emits(aten.hardsigmoid.default)
def _hardsigmoid(w: Writer, x: Value) -> Value:
    return Value(x.shape, w.op("HardSigmoid", w.real(x), alpha=1 / 6, beta=0.5))


# Pooling.


@_emits(aten.max_pool2d.default)
def _max_pool2d(
    w: Writer,
    x: Value,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    ceil: bool,
) -> Value:
    size = _window(x.shape[1:], kernel, stride, padding, dilation, ceil)
    return _move(
        w,
        x,
        (x.shape[0], *size),
        "MaxPool",
        kernel_shape=kernel,
        strides=stride,
        pads=padding * 2,
        dilations=dilation,
        ceil_mode=int(ceil),
    )


@_emits(aten.avg_pool2d.default)
def _avg_pool2d(
    w: Writer,
    x: Value,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    ceil: bool,
    count_include_pad: bool,
    divisor: int | None,
) -> Value:
    if divisor is not None:
        raise ArgumentError("ONNX's AveragePool takes no divisor of its own.")
    size = _window(x.shape[1:], kernel, stride, padding, ceil=ceil)
    if any(padding) and x.grid is not None and x.grid.zero_point != 0:
        # OpenVINO's int8 average pooling pads with the integer 0, which is not the real 0 here.
        if ceil or not count_include_pad:
            raise ArgumentError("Average pooling of this kind has no int8 form in ONNX runtimes.")
        x, padding = _pad(w, x, padding), [0, 0]
    name = w.op(
        "AveragePool",
        w.real(x),
        kernel_shape=kernel,
        strides=stride,
        pads=padding * 2,
        ceil_mode=int(ceil),
        count_include_pad=int(count_include_pad),
    )
    return Value((x.shape[0], *size), name)


def _pad(w: Writer, x: Value, padding: list[int]) -> Value:
    """Surrounds a picture by zeros, an operation on integers."""
    assert x.grid is not None
    pads = w.integers64([0, 0, *padding, 0, 0, *padding])
    shape = (x.shape[0], *(n + 2 * p for n, p in zip(x.shape[1:], padding, strict=True)))
    return _move(w, x, shape, "Pad", pads, w.zero_point(x.grid))


@_emits(aten.adaptive_avg_pool2d.default)
def _adaptive_avg_pool2d(w: Writer, x: Value, size: list[int]) -> Value:
    if any(n % m for n, m in zip(x.shape[1:], size, strict=True)):
        raise ArgumentError(f"Adaptive pooling of {x.shape[1:]} to {size} is not in ONNX.")
    kernel = [n // m for n, m in zip(x.shape[1:], size, strict=True)]
    return _avg_pool2d(w, x, kernel, kernel, [0, 0], False, True, None)


@_emits(aten.mean.dim)
def _mean(w: Writer, x: Value, dims: list[int], keepdim: bool) -> Value:
    if sorted(d % 4 for d in dims) != [2, 3]:
        raise ArgumentError(f"Means over the dimensions {dims} have no int8 form in ONNX runtimes.")
    pooled = w.op("GlobalAveragePool", w.real(x))
    if keepdim:
        return Value((x.shape[0], 1, 1), pooled)
    return Value(x.shape[:1], w.op("Flatten", pooled, axis=1))


# Moving values.


def _move(
    w: Writer, x: Value, shape: tuple[int, ...], kind: str, *inputs: str, **attributes: Any
) -> Value:
    """Writes an operation that computes no new values, on the integers where there are any."""
    if x.grid is None:
        return Value(shape, w.op(kind, w.real(x), *inputs, **attributes))
    integers = w.op(kind, w.integers(x), *inputs, **attributes)
    return Value(shape, integers=integers, grid=x.grid)


@_emits(aten.flatten.using_ints)
def _flatten(w: Writer, x: Value, start: int = 0, end: int = -1) -> Value:
    if start != 1 or end != -1:
        raise ArgumentError(f"Flattening dimensions {start} to {end} has no ONNX form here.")
    return _move(w, x, (math.prod(x.shape),), "Flatten", axis=1)


@_emits(aten.chunk.default)
def _chunk(w: Writer, x: Value, chunks: int, dim: int) -> list[Value]:
    if dim != 1:
        raise ArgumentError(f"Splitting along dimension {dim} has no ONNX form here.")
    sizes = [len(part) for part in torch.arange(x.shape[0]).chunk(chunks)]
    source = w.real(x) if x.grid is None else w.integers(x)
    names = w.ops("Split", source, w.integers64(sizes), outputs=len(sizes), axis=1)
    parts = []
    for size, name in zip(sizes, names, strict=True):
        key = {"real": name} if x.grid is None else {"integers": name}
        parts.append(Value((size, *x.shape[1:]), grid=x.grid, **key))  # type: ignore[arg-type]
    return parts


@_emits(operator.getitem)
def _getitem(w: Writer, x: list[Value], index: int) -> Value:
    return x[index]


@_emits(aten.cat.default)
def _cat(w: Writer, xs: list[Value], dim: int) -> Value:
    if dim != 1:
        raise ArgumentError(f"Concatenating along dimension {dim} has no ONNX form here.")
    shape = (sum(x.shape[0] for x in xs), *xs[0].shape[1:])
    grid = xs[0].grid
    if grid is not None and all(x.grid == grid for x in xs):
        name = w.op("Concat", *[w.integers(x) for x in xs], axis=1)
        return Value(shape, integers=name, grid=grid)
    if all(x.grid is not None for x in xs):
        return Value(shape, pieces=xs)
    return Value(shape, w.joined(xs))


@_emits(aten.channel_shuffle.default)
def _channel_shuffle(w: Writer, x: Value, groups: int) -> Value:
    channels, *size = x.shape
    if w.permute_by_conv and x.pieces and x.integers is None:
        if len({v.grid.zero_point for v in x.pieces if v.grid is not None}) == 1:
            return _joined_and_shuffled(w, x, groups)
    first = w.integers64([0, groups, channels // groups, math.prod(size)])
    x = _move(w, x, x.shape, "Reshape", first)
    x = _move(w, x, x.shape, "Transpose", perm=[0, 2, 1, 3])
    return _move(w, x, (channels, *size), "Reshape", w.integers64([0, *(channels, *size)]))


def _joined_and_shuffled(w: Writer, x: Value, groups: int) -> Value:
    """Concatenates, rounds to the common grid and shuffles in one 1x1 int8 convolution.

    Its kernel holds a single 1 in each row, whose scale is that of the tensor that the row reads,
    so that the sums are the very values to be rounded. On OpenVINO it takes half the time of the
    three steps; onnxruntime is quicker with the steps.
    """
    order = torch.arange(x.shape[0]).reshape(groups, -1).t().flatten()
    kernel = torch.eye(x.shape[0], dtype=torch.int8)[order].reshape(*order.shape, -1, 1, 1)
    grids = [v.grid for v in x.pieces if v.grid is not None]
    scales = torch.cat(
        [torch.full((v.shape[0],), g.scale) for v, g in zip(x.pieces, grids, strict=True)]
    )
    joined = w.op("Concat", *[w.integers(v) for v in x.pieces], axis=1)
    zeros = torch.zeros(len(order), dtype=torch.int8)
    weight = Constant(f"{joined}.order", kernel, scales[order], zeros)
    raw = Value(x.shape, integers=joined, grid=Grid(1.0, grids[0].zero_point))
    name = w.op("Conv", w.real(raw), w.dequantized(weight), kernel_shape=[1, 1])
    assert x.grid is not None
    return Value(x.shape, integers=w.quantize(name, x.grid), grid=x.grid)
