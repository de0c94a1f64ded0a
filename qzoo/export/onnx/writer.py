"""Writes ONNX nodes and constants; `ops` and `moves` say which ones an operation becomes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor

from ...artifact import shapes
from ...artifact.grid import Grid
from ...reference.ops import dtype_of


@dataclass
class Value:
    """A tensor of the ONNX graph, as far as it has been written down yet.

    Attributes:
        shape: Its shape without the batch dimension.
        real: Name of the float tensor.
        integers: Name of the quantized tensor.
        grid: What the integers mean; None where the values lie on no grid.
        pieces: The tensors along the channels that make it up, until somebody asks for the whole.
    """

    shape: tuple[int, ...]
    real: str | None = None
    integers: str | None = None
    grid: Grid | None = None
    pieces: list[Value] = field(default_factory=list)


@dataclass
class Pixels(Value):
    """The uint8 [N, H, W, 3] input, and what remains to be done to it per channel.

    Attributes:
        gain: float64 [3]; the real value is gain * pixel + offset.
        offset: float64 [3].
    """

    gain: Tensor = field(default_factory=lambda: torch.ones(3, dtype=torch.float64, device="cpu"))
    offset: Tensor = field(
        default_factory=lambda: torch.zeros(3, dtype=torch.float64, device="cpu")
    )


@dataclass
class Constant:
    """A buffer of the reference model.

    Attributes:
        name: The buffer's name.
        tensor: Its content; of a weight the integers.
        scale: The weight's scales, 0-d or [C].
        zero_point: The weight's zero points, shaped like `scale`.
    """

    name: str
    tensor: Tensor
    scale: Tensor | None = None
    zero_point: Tensor | None = None


class Writer:
    """Collects the nodes and constants of one ONNX graph.

    Args:
        openvino: Whether the graph is shaped for OpenVINO instead of onnxruntime.
        isolate: Whether to cut the graph after every rounded result, so that each layer runs on
            integers given from outside.
    """

    def __init__(self, openvino: bool, isolate: bool) -> None:
        self.openvino, self.isolate = openvino, isolate
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        #: Names of the parts of tensors that were split, by the whole's.
        self.splits: dict[str, list[str]] = {}
        self._taken: dict[str, int] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []

    def op(self, kind: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """Appends a node with one output and returns the output's name."""
        return self.ops(kind, *inputs, name=name, outputs=1, **attributes)[0]

    def ops(
        self, kind: str, *inputs: str, outputs: int, name: str = "", **attributes: Any
    ) -> list[str]:
        """Appends a node and returns the names of its outputs."""
        stem = self._unique(name or kind)
        names = [stem] if outputs == 1 else [f"{stem}.{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, names, name=stem, **attributes))
        return names

    def _unique(self, stem: str) -> str:
        count = self._taken[stem] = self._taken.get(stem, 0) + 1
        return stem if count == 1 else f"{stem}_{count}"

    def constant(self, name: str, content: Tensor | np.ndarray) -> str:
        """Stores an array under `name` once, and returns the name."""
        if name not in self.constants:
            array = content.numpy() if isinstance(content, Tensor) else content
            self.constants[name] = numpy_helper.from_array(array, name)
        return name

    def integers64(self, values: Sequence[int]) -> str:
        """Stores a list of int64, such as a shape."""
        return self.constant("int64_" + "_".join(map(str, values)), np.array(values, np.int64))

    def zero_point(self, grid: Grid) -> str:
        """Stores a grid's zero point, whose dtype is that of the integers."""
        zero = torch.tensor(grid.zero_point, dtype=dtype_of(grid), device="cpu").numpy()
        return self.constant(f"{zero.dtype.name}_{zero.item()}", zero)

    def number(self, value: float) -> str:
        """Stores a float32."""
        array = np.array(value, np.float32)
        return self.constant(f"float32_{array.item()!r}", array)

    def _grid(self, grid: Grid) -> tuple[str, str]:
        return self.number(grid.scale), self.zero_point(grid)

    def quantize(self, real: str, grid: Grid, name: str = "") -> str:
        """Rounds a float tensor to a grid; returns the name of its integers."""
        return self.op("QuantizeLinear", real, *self._grid(grid), name=name)

    def rounded(self, real: str, grid: Grid, step: str) -> str:
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

    def real(self, value: Value) -> str:
        """Returns the name of a value's float tensor, writing it down where it is not yet."""
        if value.real is None and value.grid is None:
            value.real = self.joined(value.pieces)
        if value.real is None:
            integers = self.integers(value)
            assert value.grid is not None
            name = f"{integers}.real"
            value.real = self.op("DequantizeLinear", integers, *self._grid(value.grid), name=name)
        return value.real

    def real_by_channels(self, value: Value) -> str:
        """Writes a value's float tensor down with the same scale once for each channel.

        It keeps a layer in float: onnxruntime rounds the float weights of a convolution or Gemm
        between DequantizeLinear and QuantizeLinear to int8, one scale for all of them, but only
        where the DequantizeLinear has a single scale (its optimizer "WeightBiasQuantization").
        """
        if value.grid is None:
            return self.real(value)
        integers, channels = self.integers(value), value.shape[0]
        zero = torch.full(
            (channels,), value.grid.zero_point, dtype=dtype_of(value.grid), device="cpu"
        )
        constants = (
            self.constant(
                f"{integers}.scales",
                torch.full((channels,), value.grid.scale, dtype=torch.float32, device="cpu"),
            ),
            self.constant(f"{integers}.zero_points", zero),
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

    def dequantized(self, weight: Constant) -> str:
        """Writes an int8 weight down and returns the name of its float form."""
        assert weight.scale is not None and weight.zero_point is not None
        name = weight.name
        inputs = [
            self.constant(name, weight.tensor),
            self.constant(f"{name}_scale", weight.scale),
            # onnxruntime fuses fully connected layers only if the zero points are spelled out.
            self.constant(f"{name}_zero_point", weight.zero_point),
        ]
        axis = {"axis": 0} if weight.scale.dim() else {}
        return self.op("DequantizeLinear", *inputs, name=f"{name}.real", **axis)

    def cut(self, step: str, value: Value) -> Value:
        """Ends the graph at a value's integers and goes on with integers from outside."""
        kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(_numpy_name(value.grid)))
        shape: list[str | int | None] = ["batch", *value.shape]
        out = self.op("Identity", self.integers(value), name=f"{step}.out")
        self._outputs.append(helper.make_tensor_value_info(out, kind, shape))
        self._inputs.append(helper.make_tensor_value_info(f"{step}.in", kind, shape))
        return Value(value.shape, integers=f"{step}.in", grid=value.grid)

    def cut_outputs(self) -> list[onnx.ValueInfoProto]:
        """Returns the graph's outputs: "<step>.out" for every cut."""
        return self._outputs

    def used_inputs(self) -> list[onnx.ValueInfoProto]:
        """Returns the inputs "<step>.in" with which some node goes on after a cut."""
        used = {name for node in self.nodes for name in node.input}
        return [i for i in self._inputs if i.name in used]


def _numpy_name(grid: Grid | None) -> str:
    return "int8" if grid is not None and grid.low < 0 else "uint8"


Emitter = TypeVar("Emitter", bound=Callable[..., Any])
#: Operation of the reference graph to the function that writes it down.
EMITTERS: dict[Any, Callable[..., Any]] = {}


def emits(target: Any) -> Callable[[Emitter], Emitter]:
    """Registers the decorated function as the way to write down the operation `target`."""

    def register(emitter: Emitter) -> Emitter:
        EMITTERS[target] = emitter
        return emitter

    return register


def window(
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int] = (1, 1),
    ceil: bool = False,
) -> tuple[int, ...]:
    """Returns height and width after a convolution or pooling."""
    axes = zip(size, kernel, stride, padding, dilation, strict=True)
    sizes = (shapes.window(n, k, s, p, p, d, ceil) for n, k, s, p, d in axes)
    return tuple(n for n in sizes if isinstance(n, int))  # of fixed sizes, all are
