"""Pooling, and operations that move values without changing them, in ONNX.

What moves values (max pooling, split, shuffle, flatten, concatenation on one grid) works on the
integers, so that no runtime has to find out that it may do so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from ...artifact.grid import Grid
from ...errors import ArgumentError
from .writer import Constant, Value, Writer, emits, window

aten = torch.ops.aten
#: The work of shuffling by convolution grows with the square of the channels; from about here on
#: the plain steps are faster (shufflenet_v2_x2_0: 7.0 instead of 8.8 ms on OpenVINO).
_MAX_CHANNELS_BY_CONV = 240


# Pooling.


@emits(aten.max_pool2d.default)
def _max_pool2d(
    w: Writer,
    x: Value,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    ceil: bool,
) -> Value:
    size = window(x.shape[1:], kernel, stride, padding, dilation, ceil)
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


@emits(aten.avg_pool2d.default)
def _avg_pool2d(
    w: Writer,
    x: Value,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    ceil: bool,
    *counting: Any,
) -> Value:
    count_include_pad, divisor = counting
    if divisor is not None:
        raise ArgumentError("ONNX's AveragePool takes no divisor of its own.")
    size = window(x.shape[1:], kernel, stride, padding, ceil=ceil)
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
    """Surrounds an image by zeros, an operation on integers."""
    assert x.grid is not None
    pads = w.integers64([0, 0, *padding, 0, 0, *padding])
    shape = (x.shape[0], *(n + 2 * p for n, p in zip(x.shape[1:], padding, strict=True)))
    return _move(w, x, shape, "Pad", pads, w.zero_point(x.grid))


@emits(aten.mean.dim)
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


@emits(aten.flatten.using_ints)
def _flatten(w: Writer, x: Value, start: int = 0, end: int = -1) -> Value:
    if start != 1 or end != -1:
        raise ArgumentError(f"Flattening dimensions {start} to {end} has no ONNX form here.")
    return _move(w, x, (math.prod(x.shape),), "Flatten", axis=1)


@emits(aten.reshape.default)
def _reshape(w: Writer, x: Value, shape: list[int]) -> Value:
    return _move(w, x, tuple(shape[1:]), "Reshape", w.integers64([0, *shape[1:]]))


@emits(aten.slice.Tensor)
def _slice(
    w: Writer, x: Value, dim: int, start: int, stop: int, together: Sequence[int] = ()
) -> Value:
    """Takes channels; parts of one tensor that make up the whole come out of a single Split.

    Args:
        w: Takes the nodes.
        x: The tensor.
        dim: Always 1.
        start: First channel.
        stop: The one after the last.
        together: Where all parts of the same tensor end, if they are all of it and in order.
    """
    shape = (stop - start, *x.shape[1:])
    if not together:
        ends = (w.integers64(v) for v in ([start], [stop], [dim]))
        return _move(w, x, shape, "Slice", *ends)
    source = w.real(x) if x.grid is None else w.integers(x)
    if source not in w.splits:
        sizes = [end - begin for begin, end in zip([0, *together], together, strict=False)]
        w.splits[source] = w.ops("Split", source, w.integers64(sizes), outputs=len(sizes), axis=1)
    name = w.splits[source][list(together).index(stop)]
    return Value(shape, name) if x.grid is None else Value(shape, integers=name, grid=x.grid)


@emits(aten.constant_pad_nd.default)
def _constant_pad(w: Writer, x: Value, padding: list[int], value: float) -> Value:
    left, right, top, bottom = padding
    pads = w.integers64([0, 0, top, left, 0, 0, bottom, right])
    channels, height, width = x.shape
    fill = w.number(value) if x.grid is None else w.zero_point(x.grid)
    return _move(w, x, (channels, height + top + bottom, width + left + right), "Pad", pads, fill)


@emits(aten.cat.default)
def _cat(w: Writer, xs: list[Value], dim: int) -> Value:
    if dim != 1:
        raise ArgumentError(f"Concatenating along dimension {dim} has no ONNX form here.")
    shape = (sum(x.shape[0] for x in xs), *xs[0].shape[1:])
    if all(x.grid is not None for x in xs):
        # On one common grid, joining them moves values; else a rounding must follow.
        grids = {x.grid for x in xs}
        return Value(shape, grid=grids.pop() if len(grids) == 1 else None, pieces=xs)
    return Value(shape, w.joined(xs))


@emits(aten.channel_shuffle.default)
def _channel_shuffle(w: Writer, x: Value, groups: int) -> Value:
    channels, *size = x.shape
    small = channels <= _MAX_CHANNELS_BY_CONV
    if w.openvino and small and x.pieces and x.integers is None:
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
    three steps where channels are few; onnxruntime is quicker with the steps.
    """
    order = (
        torch.arange(x.shape[0], dtype=torch.int64, device="cpu").reshape(groups, -1).t().flatten()
    )
    kernel = torch.eye(x.shape[0], dtype=torch.int8, device="cpu")[order].reshape(
        *order.shape, -1, 1, 1
    )
    grids = [v.grid for v in x.pieces if v.grid is not None]
    scales = torch.cat(
        [
            torch.full((v.shape[0],), g.scale, dtype=torch.float32, device="cpu")
            for v, g in zip(x.pieces, grids, strict=True)
        ]
    )
    joined = w.op("Concat", *[w.integers(v) for v in x.pieces], axis=1)
    zeros = torch.zeros(len(order), dtype=torch.int8, device="cpu")
    weight = Constant(f"{joined}.order", kernel, scales[order], zeros)
    raw = Value(x.shape, integers=joined, grid=Grid(1.0, grids[0].zero_point))
    name = w.op("Conv", w.real(raw), w.dequantized(weight), kernel_shape=[1, 1])
    assert x.grid is not None
    return Value(x.shape, integers=w.quantize(name, x.grid), grid=x.grid)
