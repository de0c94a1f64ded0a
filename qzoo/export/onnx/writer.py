"""Writes ONNX nodes and constants; `ops` and `moves` say which ones an operation becomes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper

from ...artifact.graph import Graph, Node
from ...artifact.grid import Grid
from .values import Value, Weight


class Writer:
    """Collects the nodes and constants of one ONNX graph.

    Args:
        graph: What is written down.
        size: Height and width of the images, in pixels.
        target: Takes nodes, inputs and outputs.
        openvino: Whether the graph is shaped for OpenVINO instead of onnxruntime.
        isolate: Whether to cut the graph after every rounded result, so that each layer runs on
            integers given from outside.

    Raises:
        ArgumentError: The graph takes no images of this size.
    """

    def __init__(
        self,
        graph: Graph,
        size: tuple[int, int],
        target: onnx.GraphProto,
        openvino: bool,
        isolate: bool,
    ) -> None:
        self.tensors: Mapping[str, np.ndarray] = graph.tensors
        # Without the batch dimension; of images of one size, all others are known.
        self.shapes = {
            name: tuple(n for n in shape[1:] if isinstance(n, int))
            for name, shape in graph.sized(*size).items()
        }
        self.grids = {node.name: node.grid for node in graph.nodes}
        self.readers: dict[str, list[Node]] = {}
        for node in graph.nodes:
            for source in node.inputs:
                self.readers.setdefault(source, []).append(node)
        self.target, self.openvino, self.isolate = target, openvino, isolate
        #: What `joined` puts into the file, by its name there.
        self.constants: dict[str, np.ndarray] = {}
        #: Names of the parts of tensors that were split, by the whole's.
        self.splits: dict[str, list[str]] = {}
        # A graph's nodes, tensors and ends keep their names, whatever else is called alike.
        cuts = [f"{name}.{end}" for name in self.grids for end in ("in", "out")] if isolate else []
        self._taken = _Names(("input", "logits", *self.tensors, *cuts))
        self._labels = _Names(self.grids)
        self._names: dict[str, str] = {}
        self._cuts: dict[str, onnx.ValueInfoProto] = {}

    # Nodes and constants.

    def op(
        self, kind: str, *inputs: str, name: str = "", layer: str = "", **attributes: Any
    ) -> str:
        """Appends an ONNX node with one output and returns the output's name."""
        return self.ops(kind, *inputs, name=name, layer=layer, outputs=1, **attributes)[0]

    def ops(
        self,
        kind: str,
        *inputs: str,
        outputs: int,
        name: str = "",
        layer: str = "",
        **attributes: Any,
    ) -> list[str]:
        """Appends an ONNX node and returns the names of its outputs.

        Args:
            kind: The operator.
            *inputs: Names of its inputs.
            outputs: How many it has.
            name: What it is called, with a number behind where something else is.
            layer: The graph's node whose products it computes, by whose name it is found again.
            **attributes: Its attributes.
        """
        stem = layer or name or kind
        label = layer or self._labels.free(stem)
        ends = [stem] if outputs == 1 else [f"{stem}.{i}" for i in range(outputs)]
        names = [self._taken.free(end) for end in ends]
        self.target.node.append(helper.make_node(kind, inputs, names, name=label, **attributes))
        return names

    def copy(self, source: str, name: str) -> None:
        """Appends a node that gives a tensor a name that was kept free for it."""
        label = self._labels.free(name)
        self.target.node.append(helper.make_node("Identity", [source], [name], name=label))

    def constant(self, name: str, content: np.ndarray) -> str:
        """Stores an array under `name` once, and returns the name that it has in the file."""
        if name not in self._names:
            own = name if name in self.tensors else self._taken.free(name)
            self._names[name], self.constants[own] = own, content
        return self._names[name]

    def integers64(self, values: Sequence[int]) -> str:
        """Stores a list of int64, such as a shape."""
        return self.constant("int64_" + "_".join(map(str, values)), np.array(values, np.int64))

    def zero_point(self, grid: Grid) -> str:
        """Stores a grid's zero point."""
        return self.integer(grid.zero_point)

    def integer(self, value: int) -> str:
        """Stores a uint8."""
        return self.constant(f"uint8_{value}", np.array(value, np.uint8))

    def number(self, value: float) -> str:
        """Stores a float32."""
        array = np.array(value, np.float32)
        return self.constant(f"float32_{array.item()!r}", array)

    # Roundings.

    def grid(self, node: Node) -> Grid:
        """Returns a node's grid with all integers: bounds are operations of their own."""
        assert node.grid is not None
        return Grid(node.grid.scale, node.grid.zero_point).single()

    def rounded(self, node: Node, real: str) -> Value:
        """Rounds real results to a node's grid, within its bounds.

        Args:
            node: The node whose results they are.
            real: Name of the float tensor.
        """
        grid = self.grid(node)
        result = Value(self.shapes[node.name], grid=grid)
        if self.openvino:
            real = self._bounded(node, real)
        if self.openvino and self._in_between(node):
            result.real = self._rounded_in_float(real, grid, node.name)
        else:
            integers = self.quantize(real, grid, f"{node.name}.integers")
            result.integers = integers if self.openvino else self._clipped(node, integers)
        return self.cut(node, result)

    def moved(self, node: Node, source: Value, kind: str, *inputs: str, **attributes: Any) -> Value:
        """Writes an operation that computes no new values, on integers, and keeps the bounds.

        Args:
            node: The node.
            source: The tensor whose integers move.
            kind: The ONNX operator.
            *inputs: Its inputs after `source`.
            **attributes: Its attributes.
        """
        integers = self.op(kind, self.integers(source), *inputs, **attributes)
        return self.kept(node, integers)

    def kept(self, node: Node, integers: str) -> Value:
        """Returns moved integers, within the node's bounds."""
        result = Value(self.shapes[node.name], integers=integers, grid=self.grid(node))
        if self.within(node):
            return result
        if self.openvino:
            return self.rounded(node, self.real(result))
        result.integers = self._clipped(node, integers)
        return self.cut(node, result)

    def within(self, node: Node) -> bool:
        """Whether a node's results lie within its bounds anyway."""
        grid = node.grid
        assert grid is not None
        low, high = node.reach([self.grids.get(name) for name in node.inputs])
        return grid.low <= low and high <= grid.high

    def _clipped(self, node: Node, integers: str) -> str:
        """Keeps integers within a node's bounds.

        onnxruntime computes a layer in float where something stands between it and its rounding.
        """
        assert node.grid is not None
        if self.within(node):
            return integers
        return self.op("Clip", integers, *map(self.integer, (node.grid.low, node.grid.high)))

    def _bounded(self, node: Node, real: str) -> str:
        """Keeps real numbers within a node's bounds; OpenVINO fuses it with a layer's rounding."""
        grid = node.grid
        assert grid is not None
        if self.within(node):
            return real
        if grid.low == grid.zero_point and grid.high == 255:
            return self.op("Relu", real)
        ends = ((end - grid.zero_point) * grid.single().scale for end in (grid.low, grid.high))
        return self.op("Clip", real, *map(self.number, ends))

    def _in_between(self, node: Node) -> bool:
        """Whether a node's result goes on as real numbers only, to the next rounding.

        That is the input of an activation function, and the factor of squeeze and excitation, a
        number for each channel: nothing multiplies or moves their integers.
        """
        gate = node.attributes.get("function") == "hard_sigmoid"
        return all(
            reader.attributes.get("function") in ("hard_swish", "hard_sigmoid")
            or (gate and reader.op == "mul")
            for reader in self.readers[node.name]
        )

    def _rounded_in_float(self, real: str, grid: Grid, step: str) -> str:
        """Rounds a float tensor to a grid by arithmetic; returns the name of the float result.

        OpenVINO makes a few instructions at a convolution's end of it. Of QuantizeLinear and
        DequantizeLinear, where no layer reads the integers, it often makes passes of their own
        over memory (mobilenet_v3_large: 2.5 instead of 2.3 ms).

        Args:
            real: Name of the tensor.
            grid: What to round to.
            step: The layer whose result it is. OpenVINO joins the first node with the layer and
                may keep only its name, by which the layer is found again.
        """
        steps = self.op("Mul", real, self.number(1 / grid.scale), name=f"{step}/steps")
        whole = self.op("Round", steps)
        low, high = (float(end - grid.zero_point) for end in (grid.low, grid.high))
        kept = self.op("Clip", whole, self.number(low), self.number(high))
        return self.op("Mul", kept, self.number(grid.scale))

    def quantize(self, real: str, grid: Grid, name: str = "") -> str:
        """Rounds a float tensor to a grid; returns the name of its integers."""
        return self.op("QuantizeLinear", real, *self._ends(grid), name=name)

    def _ends(self, grid: Grid) -> tuple[str, str]:
        return self.number(grid.scale), self.zero_point(grid)

    # Forms of a value.

    def real(self, value: Value) -> str:
        """Returns the name of a value's float tensor, writing it down where it is not yet."""
        if value.real is None and value.grid is None:
            value.real = self.joined(value.pieces)
        if value.real is None:
            integers = self.integers(value)
            assert value.grid is not None
            name = f"{integers}.real"
            value.real = self.op("DequantizeLinear", integers, *self._ends(value.grid), name=name)
        return value.real

    def real_by_channels(self, value: Value) -> str:
        """Writes a value's float tensor down with the same scale once for each channel.

        It keeps a layer in float: onnxruntime rounds the float weights of a convolution or Gemm
        between DequantizeLinear and QuantizeLinear to int8, one scale for all of them, but only
        where the DequantizeLinear has a single scale (its optimizer "WeightBiasQuantization").
        """
        assert value.grid is not None
        integers, channels = self.integers(value), value.shape[0]
        scales = np.full(channels, value.grid.scale, np.float32)
        zeros = np.full(channels, value.grid.zero_point, np.uint8)
        constants = (
            self.constant(f"{integers}.scales", scales),
            self.constant(f"{integers}.zero_points", zeros),
        )
        return self.op("DequantizeLinear", integers, *constants, name=f"{integers}.real", axis=1)

    def integers(self, value: Value) -> str:
        """Returns the name of a value's integers, writing them down where they are not yet."""
        if value.integers is None:
            assert value.grid is not None
            if not value.pieces:
                value.integers = self.quantize(self.real(value), value.grid)
            elif all(piece.grid == value.grid for piece in value.pieces):
                pieces = [self.integers(piece) for piece in value.pieces]
                value.integers = self.op("Concat", *pieces, axis=1)
            else:
                value.integers = self.quantize(self.joined(value.pieces), value.grid)
        return value.integers

    def joined(self, pieces: Sequence[Value]) -> str:
        """Concatenates float tensors along the channels."""
        return self.op("Concat", *[self.real(v) for v in pieces], axis=1)

    def dequantized(self, weight: Weight) -> str:
        """Writes an int8 weight down and returns the name of its float form."""
        name = weight.name
        inputs = [
            self.constant(name, weight.values),
            self.constant(f"{name}_scale", weight.scale),
            # onnxruntime fuses fully connected layers only if the zero points are spelled out.
            self.constant(f"{name}_zero_point", weight.zero_point),
        ]
        axis: dict[str, Any] = {"axis": 0} if weight.scale.ndim else {}
        return self.op("DequantizeLinear", *inputs, name=f"{name}.real", **axis)

    # Graphs in pieces.

    def cut(self, node: Node, value: Value) -> Value:
        """Returns a node's result; in isolation, ends the graph there and goes on from outside."""
        if not self.isolate:
            return value
        shape: list[str | int | None] = ["batch", *value.shape]
        start, end = (
            helper.make_tensor_value_info(f"{node.name}.{which}", onnx.TensorProto.UINT8, shape)
            for which in ("in", "out")
        )
        self.copy(self.integers(value), end.name)
        self.target.output.append(end)
        self._cuts[start.name] = start
        return Value(value.shape, integers=start.name, grid=value.grid)

    def used_cuts(self) -> list[onnx.ValueInfoProto]:
        """Returns the inputs "<node>.in" with which something goes on after a cut."""
        used = {name for node in self.target.node for name in node.input}
        return [value for name, value in self._cuts.items() if name in used]


class _Names:
    """Gives names out, each once.

    Args:
        kept: Names that are never given out.
    """

    def __init__(self, kept: Iterable[str]) -> None:
        self._taken, self._counts = set(kept), dict[str, int]()

    def free(self, stem: str) -> str:
        """Returns `stem` or, where it is taken, `stem` with a number behind."""
        name = stem
        while name in self._taken:
            self._counts[stem] = self._counts.get(stem, 1) + 1
            name = f"{stem}_{self._counts[stem]}"
        self._taken.add(name)
        return name


Emitter = Callable[..., Value]
#: Operation of artifacts' graphs to the function that writes it down.
EMITTERS: dict[str, Emitter] = {}


def emits(op: str) -> Callable[[Emitter], Emitter]:
    """Registers the decorated function as the way to write down an operation.

    It takes the writer, the node, and the node's inputs.
    """

    def register(emitter: Emitter) -> Emitter:
        EMITTERS[op] = emitter
        return emitter

    return register
