"""Writes an artifact's graph as ordinary float operations with explicit quantize and dequantize."""

from __future__ import annotations

import keyword
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..artifact.format import Artifact
from ..artifact.graph import INPUT, Node
from ..artifact.grid import Grid
from .ops import DEQUANTIZE, DEQUANTIZE_CHANNELS, QUANTIZE, arguments, fake_quantize
from .writer import place

aten = torch.ops.aten

#: Functions of `table` nodes in PyTorch.
_FUNCTIONS = {
    "relu": aten.relu.default,
    "relu6": aten.hardtanh.default,
    "hard_sigmoid": aten.hardsigmoid.default,
    "hard_swish": aten.hardswish.default,
    "sigmoid": aten.sigmoid.default,
    "silu": aten.silu.default,
    "tanh": aten.tanh.default,
    "gelu": aten.gelu.default,
}


class ReferenceWriter:
    """Builds one reference graph.

    Args:
        artifact: The model; its tensors become the buffers.
        ste: Whether to emit differentiable fake-quantize calls.
        explicit: Whether to quantize again after operations that keep their input's grid.
        signed: Whether activations are int8 instead of uint8.

    Attributes:
        root: Holds the buffers.
        graph: The reference graph.
        done: Each node's name, and what gives its real numbers in the reference graph.
    """

    def __init__(
        self,
        artifact: Artifact,
        ste: bool = False,
        explicit: bool = False,
        signed: bool = False,
    ) -> None:
        self.source, self.tensors = artifact.graph, artifact.tensors
        self.ste, self.explicit, self.signed = ste, explicit, signed
        self.root, self.graph = nn.Module(), fx.Graph()
        self.done: dict[str, fx.Node] = {}
        self.grids = {node.name: node.grid for node in self.source.nodes}

    def write(self) -> None:
        """Writes all nodes."""
        self.done[INPUT] = self.graph.placeholder("x")
        self.done[INPUT].meta["grid"] = None
        for node in self.source.nodes:
            inputs = [self.done[name] for name in node.inputs]
            self.done[node.name] = getattr(self, f"_{node.op}")(node, *inputs)
        self.graph.output(self.done[self.source.output.name])
        self.graph.lint()

    # One method for each operation.

    def _affine(self, node: Node, x: fx.Node) -> fx.Node:
        gain, offset = (
            torch.tensor(node.attributes[key], dtype=torch.float32, device="cpu").reshape(
                1, -1, 1, 1
            )
            for key in ("gain", "offset")
        )
        x = self._emit(aten.mul.Tensor, x, self._buffer(f"{node.name}.gain", gain, False))
        return self._emit(aten.add.Tensor, x, self._buffer(f"{node.name}.offset", offset, False))

    def _quantize(self, node: Node, x: fx.Node) -> fx.Node:
        return self._rounded(node, x)

    def _dequantize(self, _: Node, x: fx.Node) -> fx.Node:
        return x

    def _conv2d(self, node: Node, x: fx.Node) -> fx.Node:
        a = node.attributes
        top, left, bottom, right = padding = a["padding"]
        if (top, left) == (bottom, right):
            padding = [top, left]
        else:
            x = self._emit(aten.constant_pad_nd.default, x, [left, right, top, bottom], 0.0)
            padding = [0, 0]
        geometry = (a["stride"], padding, a["dilation"], a["groups"])
        weight, bias = self._weight(node), self._bias(node)
        return self._rounded(node, self._emit(aten.conv2d.default, x, weight, bias, *geometry))

    def _linear(self, node: Node, x: fx.Node) -> fx.Node:
        weight, bias = self._weight(node), self._bias(node)
        return self._rounded(node, self._emit(aten.linear.default, x, weight, bias))

    def _weight(self, node: Node) -> fx.Node:
        name = node.name
        values = self._buffer(f"{name}.weight", self.tensors[f"{name}.weight"])
        if node.float:
            return values
        scale = self.tensors[f"{name}.weight_scale"]
        zero_point = self.tensors.get(f"{name}.weight_zero_point")
        if scale.dim() == 0:
            zero = 0 if zero_point is None else int(zero_point)
            grid = Grid(float(scale), zero, -128, 127).single()
            return self._emit(DEQUANTIZE, values, *arguments(grid))
        scales = self._buffer(f"{name}.weight_scale", scale.float())
        if zero_point is None:
            # Compilers look for zero points even where all of them are 0.
            zeros = torch.zeros(len(scale), dtype=torch.int8, device="cpu")
            zero_points = self._buffer(f"{name}.weight_zero_point", zeros, False)
        else:
            # int32: PyTorch subtracts them in their own type, where int8 would wrap around.
            zero_points = self._buffer(f"{name}.weight_zero_point", zero_point.int())
        return self._emit(
            DEQUANTIZE_CHANNELS, values, scales, zero_points, 0, -128, 127, torch.int8
        )

    def _bias(self, node: Node) -> fx.Node | None:
        value = self.tensors.get(f"{node.name}.bias")
        return None if value is None else self._buffer(f"{node.name}.bias", value)

    def _add(self, node: Node, x: fx.Node, y: fx.Node) -> fx.Node:
        return self._rounded(node, self._emit(aten.add.Tensor, x, y))

    def _mul(self, node: Node, x: fx.Node, y: fx.Node) -> fx.Node:
        return self._rounded(node, self._emit(aten.mul.Tensor, x, y))

    def _concat(self, node: Node, *xs: fx.Node) -> fx.Node:
        result = self._emit(aten.cat.default, list(xs), 1)
        if all(x.meta["grid"] == self._grid(node) for x in xs) and not self.explicit:
            return self._on_grid(node, self._bounded(node, result))
        return self._rounded(node, result)

    def _table(self, node: Node, x: fx.Node) -> fx.Node:
        function = node.attributes["function"]
        more = (0.0, 6.0) if function == "relu6" else ()
        return self._rounded(node, self._emit(_FUNCTIONS[function], x, *more))

    def _clip(self, node: Node, x: fx.Node) -> fx.Node:
        result = self._bounded(node, x)
        return x if result is x else self._on_grid(node, result)

    def _max_pool2d(self, node: Node, x: fx.Node) -> fx.Node:
        a = node.attributes
        args = (a["kernel"], a["stride"], a["padding"], a["dilation"], a["ceil_mode"])
        return self._moved(node, aten.max_pool2d.default, x, *args)

    def _avg_pool2d(self, node: Node, x: fx.Node) -> fx.Node:
        a = node.attributes
        args = (a["kernel"], a["stride"], a["padding"], a["ceil_mode"], a["count_include_pad"])
        return self._rounded(node, self._emit(aten.avg_pool2d.default, x, *args, None))

    def _mean(self, node: Node, x: fx.Node) -> fx.Node:
        kept = node.attributes["keep_dimensions"]
        return self._rounded(node, self._emit(aten.mean.dim, x, [-1, -2], kept))

    def _channel_shuffle(self, node: Node, x: fx.Node) -> fx.Node:
        groups = node.attributes["groups"]
        return self._moved(node, aten.channel_shuffle.default, x, groups)

    def _slice(self, node: Node, x: fx.Node) -> fx.Node:
        a = node.attributes
        return self._moved(node, aten.slice.Tensor, x, 1, a["start"], a["stop"])

    def _pad(self, node: Node, x: fx.Node) -> fx.Node:
        top, left, bottom, right = node.attributes["padding"]
        return self._moved(node, aten.constant_pad_nd.default, x, [left, right, top, bottom], 0.0)

    def _flatten(self, node: Node, x: fx.Node) -> fx.Node:
        return self._moved(node, aten.flatten.using_ints, x, 1)

    def _reshape(self, node: Node, x: fx.Node) -> fx.Node:
        return self._moved(node, aten.reshape.default, x, [-1, *node.attributes["shape"]])

    # Roundings, nodes and buffers.

    def _grid(self, node: Node) -> Grid:
        """Returns a node's grid with all integers: bounds are float operations before it."""
        assert node.grid is not None
        grid = Grid(node.grid.scale, node.grid.zero_point).single()
        return grid.signed() if self.signed else grid

    def _bounded(self, node: Node, x: fx.Node) -> fx.Node:
        """Keeps real numbers within a node's bounds, where rounding alone does not."""
        grid = node.grid
        assert grid is not None
        low, high = node.reach([self.grids.get(name) for name in node.inputs])
        if low >= grid.low and high <= grid.high:
            return x
        if grid.low == grid.zero_point and grid.high == 255:
            return self._emit(aten.relu.default, x)
        scale = grid.single().scale
        ends = [(end - grid.zero_point) * scale for end in (grid.low, grid.high)]
        return self._emit(aten.clamp.default, x, *ends)

    def _rounded(self, node: Node, x: fx.Node) -> fx.Node:
        grid = self._grid(node)
        x = self._bounded(node, x)
        if self.ste:
            result = rounded = self._emit(fake_quantize, x, *arguments(grid))
        else:
            rounded = self._emit(QUANTIZE, x, *arguments(grid))
            result = self._emit(DEQUANTIZE, rounded, *arguments(grid))
        rounded.meta["step"] = node.name
        result.meta["grid"] = grid
        return result

    def _moved(self, node: Node, target: Any, x: fx.Node, *args: Any) -> fx.Node:
        """Emits an operation that computes no new values, so that they stay on the grid."""
        result = self._emit(target, x, *args)
        if self.explicit:
            return self._rounded(node, result)
        return self._on_grid(node, self._bounded(node, result))

    def _on_grid(self, node: Node, result: fx.Node) -> fx.Node:
        result.meta["grid"] = self._grid(node)
        return result

    def _emit(self, target: Any, *args: Any) -> fx.Node:
        node = self.graph.call_function(target, args)
        node.meta["grid"] = None
        return node

    def _buffer(self, name: str, value: Tensor, persistent: bool = True) -> fx.Node:
        # The artifact's tensor itself, not a copy: neither of the two is ever written to.
        try:
            if any(map(keyword.iskeyword, name.split("."))):  # of which fx makes no Python code
                raise KeyError(name)
            owner, child = place(self.root, name)
            owner.register_buffer(child, value, persistent=persistent)
        except (KeyError, AttributeError):  # or modules have the name for something else: "float"
            name = f"_tensor_{len(self.graph.nodes)}"
            self.root.register_buffer(name, value, persistent=persistent)
        return self.graph.get_attr(name)
