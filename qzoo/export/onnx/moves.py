"""Pooling, and operations that move values without changing them, in ONNX.

What moves values (max pooling, split, shuffle, flatten, concatenation on one grid) works on the
integers, so that no runtime has to find out that it may do so.
"""

from __future__ import annotations

import math

import numpy as np

from ...artifact.graph import Node
from ...artifact.grid import Grid
from .values import Value, Weight
from .writer import Writer, emits

#: The work of shuffling by convolution grows with the square of the channels; from about here on
#: the plain steps are faster (shufflenet_v2_x2_0: 7.0 instead of 8.8 ms on OpenVINO).
_MAX_CHANNELS_BY_CONV = 240


# Pooling.


@emits("max_pool2d")
def _max_pool2d(w: Writer, node: Node, x: Value) -> Value:
    a, integers = node.attributes, w.integers(x)
    pads, behind = a["padding"], _behind(node, x.shape, w.shapes[node.name])
    if any(n >= k for n, k in zip(behind, a["kernel"], strict=True)):  # which ONNX does not allow
        around = w.integers64([0, 0, *pads, 0, 0, *behind])
        integers, pads, behind = w.op("Pad", integers, around, w.integer(0)), [0, 0], [0, 0]
    # Not by ONNX's ceil_mode: runtimes differ in whether the last window may start in the padding.
    pooled = w.op(
        "MaxPool",
        integers,
        kernel_shape=a["kernel"],
        strides=a["stride"],
        pads=[*pads, *behind],
        dilations=a["dilation"],
        ceil_mode=0,
    )
    return w.kept(node, pooled)


@emits("avg_pool2d")
def _avg_pool2d(w: Writer, node: Node, x: Value) -> Value:
    a = node.attributes
    pads, included = a["padding"], a["count_include_pad"]
    behind = _behind(node, x.shape, w.shapes[node.name])
    assert x.grid is not None
    # OpenVINO's int8 average pooling pads with the integer 0, which is not always the real 0; and
    # what a last window has behind all padding must not count, which only ONNX's padding can say.
    if included and (behind != pads or (any(pads) and x.grid.zero_point != 0)):
        around = w.integers64([0, 0, *pads, 0, 0, *pads])
        padded = w.op("Pad", w.integers(x), around, w.zero_point(x.grid))
        x = Value(x.shape, integers=padded, grid=x.grid)
        behind = [more - n for more, n in zip(behind, pads, strict=True)]
        pads, included = [0, 0], not any(behind)
    pooled = w.op(
        "AveragePool",
        w.real(x),
        kernel_shape=a["kernel"],
        strides=a["stride"],
        pads=[*pads, *behind],
        ceil_mode=0,
        count_include_pad=int(included),
    )
    return w.rounded(node, pooled)


def _behind(node: Node, shape: tuple[int, ...], out: tuple[int, ...]) -> list[int]:
    """Returns the rows and columns of padding that a pool's windows need behind the image.

    Args:
        node: The pool.
        shape: Of its input, [C, H, W].
        out: Of its output.
    """
    a = node.attributes
    rest = (a["kernel"], a["stride"], a["padding"], a.get("dilation", (1, 1)))
    return [
        max(padding, (count - 1) * stride - padding + dilation * (kernel - 1) + 1 - size)
        for size, count, kernel, stride, padding, dilation in zip(
            shape[1:], out[1:], *rest, strict=True
        )
    ]


@emits("mean")
def _mean(w: Writer, node: Node, x: Value) -> Value:
    pooled = w.op("GlobalAveragePool", w.real(x))
    if not node.attributes["keep_dimensions"]:
        pooled = w.op("Flatten", pooled, axis=1)
    return w.rounded(node, pooled)


# Moving values.


@emits("flatten")
def _flatten(w: Writer, node: Node, x: Value) -> Value:
    return w.moved(node, x, "Flatten", axis=1)


@emits("reshape")
def _reshape(w: Writer, node: Node, x: Value) -> Value:
    return w.moved(node, x, "Reshape", w.integers64([0, *node.attributes["shape"]]))


@emits("slice")
def _slice(w: Writer, node: Node, x: Value) -> Value:
    """Takes channels; parts of one tensor that make up the whole come out of a single Split."""
    start, stop = node.attributes["start"], node.attributes["stop"]
    ends = _together(w, node, x.shape[0])
    if not ends:
        return w.moved(node, x, "Slice", *(w.integers64(v) for v in ([start], [stop], [1])))
    source = w.integers(x)
    if source not in w.splits:
        sizes = [end - begin for begin, end in zip([0, *ends], ends, strict=False)]
        w.splits[source] = w.ops("Split", source, w.integers64(sizes), outputs=len(sizes), axis=1)
    return w.kept(node, w.splits[source][ends.index(stop)])


def _together(w: Writer, part: Node, channels: int) -> list[int]:
    """Returns where all slices of one tensor end, in order, if they make up the whole of it."""
    slices = [reader for reader in w.readers[part.inputs[0]] if reader.op == "slice"]
    ends = sorted((s.attributes["start"], s.attributes["stop"]) for s in slices)
    whole = [0, *(stop for _, stop in ends)] == [*(start for start, _ in ends), channels]
    return [stop for _, stop in ends] if whole and len(ends) > 1 else []


@emits("pad")
def _pad(w: Writer, node: Node, x: Value) -> Value:
    top, left, bottom, right = node.attributes["padding"]
    pads = w.integers64([0, 0, top, left, 0, 0, bottom, right])
    return w.moved(node, x, "Pad", pads, w.zero_point(w.grid(node)))


@emits("concat")
def _concat(w: Writer, node: Node, *xs: Value) -> Value:
    grid, grids = w.grid(node), {x.grid for x in xs}
    # On one common grid, joining them moves integers.
    common = grids.pop() if len(grids) == 1 else None
    whole = Value(w.shapes[node.name], grid=common, pieces=xs)
    if not w.within(node) or common not in (None, grid):
        return w.rounded(node, w.real(whole))
    if common == grid:
        return whole
    return w.cut(node, Value(whole.shape, grid=grid, pieces=xs))


@emits("channel_shuffle")
def _channel_shuffle(w: Writer, node: Node, x: Value) -> Value:
    groups, (channels, *size) = node.attributes["groups"], x.shape
    small = channels <= _MAX_CHANNELS_BY_CONV
    if w.openvino and small and x.pieces and x.integers is None:
        if len({v.grid.zero_point for v in x.pieces if v.grid is not None}) == 1:
            return w.kept(node, _joined_and_shuffled(w, x, groups))
    split = w.integers64([0, groups, channels // groups, math.prod(size)])
    parts = w.op("Reshape", w.integers(x), split)
    swapped = w.op("Transpose", parts, perm=[0, 2, 1, 3])
    return w.kept(node, w.op("Reshape", swapped, w.integers64([0, channels, *size])))


def _joined_and_shuffled(w: Writer, x: Value, groups: int) -> str:
    """Concatenates, rounds to the common grid and shuffles in one 1x1 int8 convolution.

    Its kernel holds a single 1 in each row, whose scale is that of the tensor that the row reads,
    so that the sums are the very values to be rounded. On OpenVINO it takes half the time of the
    three steps where channels are few; onnxruntime is quicker with the steps.
    """
    channels = x.shape[0]
    order = np.arange(channels).reshape(groups, -1).T.flatten()
    kernel = np.eye(channels, dtype=np.int8)[order].reshape(channels, channels, 1, 1)
    grids = [v.grid for v in x.pieces if v.grid is not None]
    scales = np.repeat(
        np.array([g.scale for g in grids], np.float32), [v.shape[0] for v in x.pieces]
    )
    joined = w.op("Concat", *[w.integers(v) for v in x.pieces], axis=1)
    zeros = np.zeros(channels, np.int8)
    weight = Weight(f"{joined}.order", kernel, scales[order], zeros)
    raw = Value(x.shape, integers=joined, grid=Grid(1.0, grids[0].zero_point))
    name = w.op("Conv", w.real(raw), w.dequantized(weight), kernel_shape=[1, 1])
    assert x.grid is not None
    return w.quantize(name, x.grid)
