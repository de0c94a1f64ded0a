"""The arithmetic of docs/artifact.md in numpy: slow, plain, and what to compare others with.

Integers are summed exactly; each sum is multiplied and added to in float32, every result rounded,
then rounded half to even and kept within the grid's bounds. Only layers kept in float leave
something open: the order in which their float sums are formed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..errors import ArgumentError
from .graph import INPUT, Graph, Node
from .grid import Grid
from .shapes import window

#: Called after each node with its name and its output: uint8 where the node has a grid. What it
#: returns, if anything, goes on in the output's place.
Hook = Callable[[str, np.ndarray], np.ndarray | None]
_EXACT = np.float64  # holds every integer below 2^53, so that BLAS may sum 32-bit integers in it


def interpret(graph: Graph, images: np.ndarray, hook: Hook | None = None) -> np.ndarray:
    """Runs a graph.

    Args:
        graph: A checked graph.
        images: float32 [N, 3, H, W], finite.
        hook: Sees every node's name and output, in order; an array that it returns goes on in the
            output's place, which compares two runtimes node by node on the same integers.

    Returns:
        Logits, float32 [N, classes].

    Raises:
        ArgumentError: The images have another shape or dtype, are not finite, or are too small.
    """
    if images.dtype != np.float32 or images.ndim != 4 or images.shape[1] != 3:
        raise ArgumentError(
            f"The images must be float32 [N, 3, H, W], not {images.dtype} {list(images.shape)}."
        )
    if not np.isfinite(images).all():
        raise ArgumentError("The images hold NaN or infinity.")
    graph.sized(*images.shape[2:])
    run, values = _Run(graph.tensors), {INPUT: images}
    readers = {name: node for node in graph.nodes for name in node.inputs}  # the last of each
    for node in graph.nodes:
        grids = [run.grids.get(name) for name in node.inputs]
        inputs = [values[name] for name in node.inputs]
        result = getattr(run, f"_{node.op}")(node, *zip(inputs, grids, strict=True))
        if node.grid is not None:
            run.grids[node.name] = node.grid
        instead = hook(node.name, result) if hook else None
        values[node.name] = result if instead is None else instead
        for name in {name for name in node.inputs if readers[name] is node}:
            del values[name]
    return values[graph.output.name]


def _grid(node: Node) -> Grid:
    assert node.grid is not None  # which checking the graph made sure of
    return node.grid


def scale32(grid: Grid) -> float:
    """Returns a grid's scale as all arithmetic takes it: rounded to float32."""
    return float(np.float32(grid.scale))


def rounded(steps: np.ndarray, grid: Grid) -> np.ndarray:
    """Rounds float32 steps half to even, adds the zero point, and keeps within the bounds."""
    low, high = grid.low - grid.zero_point, grid.high - grid.zero_point
    whole = np.clip(np.rint(steps), np.float32(low), np.float32(high))
    return (whole.astype(np.int16) + grid.zero_point).astype(np.uint8)


def _signed(value: np.ndarray, grid: Grid) -> np.ndarray:
    """Returns integers less their zero point, int32."""
    return value.astype(np.int32) - grid.zero_point


def _real(value: np.ndarray, grid: Grid) -> np.ndarray:
    return _signed(value, grid).astype(np.float32) * np.float32(grid.scale)


def windows(x: np.ndarray, kernel: Any, stride: Any, dilation: Any = (1, 1)) -> np.ndarray:
    """Returns all windows over height and width: [N, C, H', W', kH, kW]."""
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    view = np.lib.stride_tricks.sliding_window_view(x, reach, axis=(2, 3))
    return view[:, :, :: stride[0], :: stride[1], :: dilation[0], :: dilation[1]]


class _Run:
    """One method for each operation; they take the node, then integers and grid of each input."""

    def __init__(self, tensors: Mapping[str, np.ndarray]) -> None:
        self.tensors = tensors
        self.grids: dict[str, Grid] = {}

    # Into integers and out of them.

    def _affine(self, node: Node, x: Any) -> np.ndarray:
        gain, offset = (
            np.float32(node.attributes[key]).reshape(1, -1, 1, 1) for key in ("gain", "offset")
        )
        return x[0] * gain + offset

    def _quantize(self, node: Node, x: Any) -> np.ndarray:
        return rounded(x[0] * np.float32(1 / scale32(_grid(node))), _grid(node))

    def _dequantize(self, node: Node, x: Any) -> np.ndarray:
        return _real(*x)

    # Sums of products.

    def _conv2d(self, node: Node, x: Any) -> np.ndarray:
        value, grid = x
        a = node.attributes
        top, left, bottom, right = a["padding"]
        inside = _real(value, grid) if node.float else _signed(value, grid)
        padded = np.pad(inside, ((0, 0), (0, 0), (top, bottom), (left, right)))
        weight, groups = self._weight(node), a["groups"]
        parts = windows(padded, weight.shape[2:], a["stride"], a["dilation"])
        batch, channels, height, width = parts.shape[:4]
        # [N, groups, H', W', channels of a group * kH * kW]
        parts = parts.reshape(batch, groups, channels // groups, height, width, -1)
        rows = parts.transpose(0, 1, 3, 4, 2, 5).reshape(batch, groups, height * width, -1)
        columns = weight.reshape(groups, len(weight) // groups, -1).transpose(0, 2, 1)
        sums = rows.astype(_EXACT) @ columns.astype(_EXACT)
        sums = sums.transpose(0, 1, 3, 2).reshape(batch, len(weight), height, width)
        return self._weighted(node, grid, sums, (1, -1, 1, 1))

    def _linear(self, node: Node, x: Any) -> np.ndarray:
        value, grid = x
        inside = _real(value, grid) if node.float else _signed(value, grid)
        sums = inside.astype(_EXACT) @ self._weight(node).astype(_EXACT).T
        return self._weighted(node, grid, sums, (1, -1))

    def _weight(self, node: Node) -> np.ndarray:
        """Returns a weight's integers less their zero points, or its real numbers."""
        weight = self.tensors[f"{node.name}.weight"]
        zero = self.tensors.get(f"{node.name}.weight_zero_point")
        if node.float or zero is None:
            return weight
        return weight.astype(np.int32) - zero.astype(np.int32).reshape(-1, *[1] * (weight.ndim - 1))

    def _weighted(self, node: Node, grid: Grid, sums: np.ndarray, shape: Any) -> np.ndarray:
        target = scale32(_grid(node))
        bias = self.tensors.get(f"{node.name}.bias")
        if node.float:
            multiplier = np.float32(1 / target)
        else:
            scale = self.tensors[f"{node.name}.weight_scale"].astype(np.float32).astype(np.float64)
            multiplier = (scale32(grid) * scale / target).astype(np.float32)
        steps = sums.astype(np.float32) * multiplier.reshape(shape if multiplier.ndim else ())
        if bias is not None:
            steps += (bias.astype(np.float64) / target).astype(np.float32).reshape(shape)
        return rounded(steps, _grid(node))

    # Several tensors.

    def _add(self, node: Node, x: Any, y: Any) -> np.ndarray:
        first, second = (self._steps(node, *v) for v in (x, y))
        return rounded(first + second, _grid(node))

    def _mul(self, node: Node, x: Any, y: Any) -> np.ndarray:
        product = _signed(*x) * _signed(*y)
        multiplier = np.float32(scale32(x[1]) * scale32(y[1]) / scale32(_grid(node)))
        return rounded(product.astype(np.float32) * multiplier, _grid(node))

    def _concat(self, node: Node, *xs: Any) -> np.ndarray:
        return np.concatenate([rounded(self._steps(node, *x), _grid(node)) for x in xs], axis=1)

    def _steps(self, node: Node, value: np.ndarray, grid: Grid) -> np.ndarray:
        """Returns a tensor in steps of the node's grid, float32 and not rounded yet."""
        multiplier = np.float32(scale32(grid) / scale32(_grid(node)))
        return _signed(value, grid).astype(np.float32) * multiplier

    def _channel_shuffle(self, node: Node, x: Any) -> np.ndarray:
        batch, channels, height, width = x[0].shape
        split = x[0].reshape(batch, node.attributes["groups"], -1, height, width)
        return self._kept(node, split.swapaxes(1, 2).reshape(batch, channels, height, width))

    def _slice(self, node: Node, x: Any) -> np.ndarray:
        return self._kept(node, x[0][:, node.attributes["start"] : node.attributes["stop"]])

    # Pools.

    def _max_pool2d(self, node: Node, x: Any) -> np.ndarray:
        a = node.attributes
        padded = self._padded(node, x[0])  # with 0: no integer is smaller
        return self._kept(
            node, windows(padded, a["kernel"], a["stride"], a["dilation"]).max((4, 5))
        )

    def _avg_pool2d(self, node: Node, x: Any) -> np.ndarray:
        a = node.attributes
        inside = _signed(*x)
        ones = np.ones((1, 1, *inside.shape[2:]), np.int32)
        sums, counts = (
            windows(padded, a["kernel"], a["stride"]).sum((4, 5))
            for padded in (
                self._padded(node, inside),
                self._padded(node, ones, int(a["count_include_pad"])),
            )
        )
        return self._averaged(node, x[1], sums, counts)

    def _mean(self, node: Node, x: Any) -> np.ndarray:
        sums = _signed(*x).sum((2, 3), keepdims=node.attributes["keep_dimensions"])
        return self._averaged(node, x[1], sums, np.array(x[0].shape[2] * x[0].shape[3]))

    def _averaged(self, node: Node, grid: Grid, sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
        multiplier = (scale32(grid) / (scale32(_grid(node)) * counts)).astype(np.float32)
        return rounded(sums.astype(np.float32) * multiplier, _grid(node))

    def _padded(self, node: Node, x: np.ndarray, edge: int = 0) -> np.ndarray:
        """Pads with `edge`, and with zeros behind where the last window of a pool looks further."""
        a = node.attributes
        dilation = a.get("dilation", (1, 1))
        behind = []
        values = (x.shape[2:], a["kernel"], a["stride"], a["padding"], dilation)
        for n, k, s, p, d in zip(*values, strict=True):
            count = window(n, k, s, p, p, d, a["ceil_mode"])
            assert isinstance(count, int)
            behind.append((0, max(0, (count - 1) * s + d * (k - 1) + 1 - (n + 2 * p))))
        around = [(0, 0), (0, 0), *((p, p) for p in a["padding"])]
        return np.pad(
            np.pad(x, around, constant_values=edge), [(0, 0), (0, 0), *behind], constant_values=0
        )

    # What moves integers, or maps each to another.

    def _kept(self, node: Node, value: np.ndarray) -> np.ndarray:
        return np.clip(value, _grid(node).low, _grid(node).high)

    def _clip(self, node: Node, x: Any) -> np.ndarray:
        return self._kept(node, x[0])

    def _table(self, node: Node, x: Any) -> np.ndarray:
        return self.tensors[f"{node.name}.table"][x[0]]

    def _pad(self, node: Node, x: Any) -> np.ndarray:
        top, left, bottom, right = node.attributes["padding"]
        around = ((0, 0), (0, 0), (top, bottom), (left, right))
        return self._kept(node, np.pad(x[0], around, constant_values=x[1].zero_point))

    def _flatten(self, node: Node, x: Any) -> np.ndarray:
        return self._kept(node, x[0].reshape(len(x[0]), -1))

    def _reshape(self, node: Node, x: Any) -> np.ndarray:
        return self._kept(node, x[0].reshape(len(x[0]), *node.attributes["shape"]))
