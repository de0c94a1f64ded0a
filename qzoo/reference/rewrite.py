"""Rewrites a recorded forward pass, call by call, into the graph of a reference model."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torchvision.models.shufflenetv2 import channel_shuffle

from ..artifact.format import Artifact
from ..artifact.grid import HARDSIGMOID_GRID, Grid
from ..artifact.layers import Layer
from ..errors import ArtifactError
from .ops import DEQUANTIZE, DEQUANTIZE_CHANNELS, QUANTIZE, arguments, fake_quantize
from .trace import INPUT_AFFINE, Recording

aten = torch.ops.aten

_FUNCTIONS = {
    F.relu: "relu",
    torch.relu: "relu",
    F.max_pool2d: "max_pool2d",
    F.avg_pool2d: "avg_pool2d",
    F.adaptive_avg_pool2d: "adaptive_avg_pool2d",
    F.dropout: "dropout",
    torch.flatten: "flatten",
    torch.mean: "mean",
    torch.chunk: "chunk",
    operator.getitem: "getitem",
    channel_shuffle: "channel_shuffle",
}


class Rewriter:
    """Builds one reference graph.

    Args:
        artifact: The layers and tensors.
        recording: Which layer feeds which.
        ste: Whether to emit differentiable fake-quantize calls.
        explicit: Whether to quantize again after operations that keep their input's grid.
        signed: Whether activations are int8 instead of uint8.
        rounding: Whether outputs are rounded at all; without, and with layers kept in float, the
            graph is the float model that the int8 one stands for.

    Attributes:
        done: Each call of the recording and the node that gives its result in the new graph.
    """

    def __init__(
        self,
        artifact: Artifact,
        recording: Recording,
        ste: bool = False,
        explicit: bool = False,
        signed: bool = False,
        rounding: bool = True,
    ) -> None:
        self.artifact, self.recording = artifact, recording
        self.ste, self.explicit, self.signed, self.rounding = ste, explicit, signed, rounding
        self.graph = fx.Graph()
        self.root = nn.Module()
        self.done: dict[fx.Node, fx.Node] = {}

    def rewrite(self) -> tuple[nn.Module, fx.Graph]:
        """Returns the module that holds the buffers, and the graph that uses them."""
        for node in self.recording.graph.nodes:
            if node.op == "output":
                self.graph.output(self.done[node.args[0]])
            elif node.op == "placeholder":
                self.done[node] = self.graph.placeholder(node.name)
                self.done[node].meta["grid"] = None
            else:
                args = fx.map_arg(node.args, self.done.__getitem__)
                kwargs = fx.map_arg(node.kwargs, self.done.__getitem__)
                if node.op == "call_module":
                    self.done[node] = self._module(node, *args)
                else:
                    self.done[node] = self._function(node, *args, **kwargs)
        self.graph.lint()
        return self.root, self.graph

    # What a recorded call becomes.

    def _module(self, node: fx.Node, *args: Any) -> fx.Node:
        name = str(node.target)
        if name == INPUT_AFFINE:
            return self._affine(*args)
        layer = self.artifact.layers.get(name)
        module = self.recording.modules[name]
        if layer is None:
            return self._plain(node, module, *args)
        match layer.op:
            case "quantize":
                return self._quantize(node, args[0], self._grid(layer))
            case "dequantize" | "dropout" | "identity":
                return args[0]
            case "conv2d" | "linear":
                return self._matmul(node, name, layer, module, *args)
            case "functional":
                return self._functional(node, layer, *args)
            case "hardswish":
                result = self._emit(aten.hardswish.default, args[0])
                return self._quantize(node, result, self._grid(layer))
        raise ArtifactError(f"Layer {name!r} has the operation {layer.op!r}, unknown here.")

    def _plain(self, node: fx.Node, module: Any, x: fx.Node) -> fx.Node:
        """Rewrites a module that computes on integers as they stand."""
        match module:
            case nn.ReLU():
                return self._relu(x)
            case nn.Hardsigmoid():
                result = self._emit(aten.hardsigmoid.default, x)
                grid = HARDSIGMOID_GRID.signed() if self.signed else HARDSIGMOID_GRID
                return self._quantize(node, result, grid)
            case nn.MaxPool2d() as m:
                return self._max_pool2d(
                    node, x, m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode
                )
            case nn.AvgPool2d() as m:
                return self._avg_pool2d(
                    node, x, m.kernel_size, m.stride, m.padding, m.ceil_mode, m.count_include_pad,
                    m.divisor_override,
                )  # fmt: skip
            case nn.AdaptiveAvgPool2d() as m:
                return self._adaptive_avg_pool2d(node, x, m.output_size)
            case nn.Dropout() | nn.Identity():
                return x
        raise ArtifactError(
            f"Layer {node.target!r} ({type(module).__name__}) has no int8 form in reference models."
        )

    def _function(self, node: fx.Node, x: fx.Node, *args: Any, **kwargs: Any) -> fx.Node:
        name = str(node.target) if node.op == "call_method" else _FUNCTIONS.get(node.target)
        match name:
            case "relu":
                return self._relu(x)
            case "dropout" | "contiguous":
                return x
            case "max_pool2d":
                return self._max_pool2d(node, x, *args, **kwargs)
            case "avg_pool2d":
                return self._avg_pool2d(node, x, *args, **kwargs)
            case "adaptive_avg_pool2d":
                return self._adaptive_avg_pool2d(node, x, *args, **kwargs)
            case "mean":
                return self._mean(node, x, *args, **kwargs)
            case "flatten":
                return self._move(node, aten.flatten.using_ints, x, *args, **kwargs)
            case "chunk":
                return self._chunk(x, *args, **kwargs)
            case "getitem":
                return self._move(node, operator.getitem, x, *args)
            case "channel_shuffle":
                return self._move(node, aten.channel_shuffle.default, x, *args, **kwargs)
        raise ArtifactError(
            f"The architecture calls {node.target}, which has no int8 form in reference models."
        )

    # One method per kind of operation.

    def _affine(self, x: fx.Node) -> fx.Node:
        assert self.recording.affine is not None
        gain, offset = (v.reshape(1, 3, 1, 1) for v in self.recording.affine)
        x = self._emit(aten.mul.Tensor, x, self._buffer("input_gain", gain, False))
        return self._emit(aten.add.Tensor, x, self._buffer("input_offset", offset, False))

    def _matmul(
        self, node: fx.Node, name: str, layer: Layer, module: nn.Module, x: fx.Node
    ) -> fx.Node:
        weight = self._weight(name, module)
        bias = None
        if (value := self.artifact.tensors.get(f"{name}.bias")) is not None:
            bias = self._buffer(f"{name}.bias", value)
        if layer.op == "linear":
            result = self._emit(aten.linear.default, x, weight, bias)
        else:
            geometry = [list(v) for v in (layer.stride, layer.padding, layer.dilation)]
            result = self._emit(aten.conv2d.default, x, weight, bias, *geometry, layer.groups)
        grid = self._grid(layer)
        if layer.relu and not self._cuts_negatives(grid):
            result = self._emit(aten.relu.default, result)
        return self._quantize(node, result, grid)

    def _weight(self, name: str, module: nn.Module) -> fx.Node:
        tensors = self.artifact.tensors
        weight = tensors[f"{name}.weight"]
        expected = getattr(module, "weight", None)
        if expected is None or expected.shape != weight.shape:
            raise ArtifactError(
                f"Layer {name!r} has a weight of shape {tuple(weight.shape)} in the artifact, "
                "which does not fit this architecture: it was made for another one."
            )
        values = self._buffer(f"{name}.weight", weight)
        if self.artifact.layers[name].float:
            return values
        scale = tensors[f"{name}.weight_scale"]
        zero_point = tensors.get(f"{name}.weight_zero_point")
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
            zero_points = self._buffer(f"{name}.weight_zero_point", zero_point)
        return self._emit(
            DEQUANTIZE_CHANNELS, values, scales, zero_points, 0, -128, 127, torch.int8
        )

    def _functional(self, node: fx.Node, layer: Layer, op: str, *args: Any) -> fx.Node:
        grid = self._grid(layer)
        if op == "cat":
            xs, dim = args
            result = self._emit(aten.cat.default, xs, dim)
            if all(x.meta["grid"] == grid for x in xs) and not self.explicit:
                result.meta["grid"] = grid
                return result
        elif op == "mul":
            result = self._emit(aten.mul.Tensor, *args)
        else:
            result = self._emit(aten.add.Tensor, *args)
            if op == "add_relu" and not self._cuts_negatives(grid):
                result = self._emit(aten.relu.default, result)
        return self._quantize(node, result, grid)

    def _relu(self, x: fx.Node) -> fx.Node:
        grid = x.meta["grid"]
        if grid is not None and self._cuts_negatives(grid):
            return x
        result = self._emit(aten.relu.default, x)
        result.meta["grid"] = grid
        return result

    def _max_pool2d(
        self,
        node: fx.Node,
        x: fx.Node,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> fx.Node:
        kernel, pad = _pair(kernel_size), _pair(padding)
        step = kernel if stride is None else _pair(stride)
        args = (kernel, step, pad, _pair(dilation), ceil_mode)
        return self._move(node, aten.max_pool2d.default, x, *args)

    def _avg_pool2d(
        self,
        node: fx.Node,
        x: fx.Node,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> fx.Node:
        kernel, pad = _pair(kernel_size), _pair(padding)
        step = kernel if stride is None else _pair(stride)
        args = (kernel, step, pad, ceil_mode, count_include_pad, divisor_override)
        return self._keep_grid(node, self._emit(aten.avg_pool2d.default, x, *args), x)

    def _adaptive_avg_pool2d(self, node: fx.Node, x: fx.Node, output_size: Any) -> fx.Node:
        size = _pair(output_size)
        if size == [1, 1]:
            result = self._emit(aten.mean.dim, x, [-1, -2], True)
        else:
            result = self._emit(aten.adaptive_avg_pool2d.default, x, size)
        return self._keep_grid(node, result, x)

    def _mean(self, node: fx.Node, x: fx.Node, dim: Any, keepdim: bool = False) -> fx.Node:
        return self._keep_grid(node, self._emit(aten.mean.dim, x, list(dim), keepdim), x)

    def _keep_grid(self, node: fx.Node, result: fx.Node, x: fx.Node) -> fx.Node:
        """Rounds averages to their input's grid, as PyTorch's int8 kernels do."""
        grid = x.meta["grid"]
        return result if grid is None else self._quantize(node, result, grid)

    def _chunk(self, x: fx.Node, chunks: int, dim: int = 0) -> fx.Node:
        result = self._emit(aten.chunk.default, x, chunks, dim)
        result.meta["grid"] = x.meta["grid"]
        return result

    def _move(self, node: fx.Node, target: Any, x: fx.Node, *args: Any, **kwargs: Any) -> fx.Node:
        """Emits an operation that computes no new values, so that they stay on the grid."""
        result = self._emit(target, x, *args, **kwargs)
        result.meta["grid"] = grid = x.meta["grid"]
        if self.explicit and grid is not None:
            return self._quantize(node, result, grid)
        return result

    # Nodes and buffers of the new graph.

    def _grid(self, layer: Layer) -> Grid:
        grid = layer.grid.single()
        return grid.signed() if self.signed else grid

    def _cuts_negatives(self, grid: Grid) -> bool:
        """Whether rounding to a grid cuts negative values off: its zero point is its low end."""
        return self.rounding and grid.zero_point == grid.low

    def _quantize(self, node: fx.Node, x: fx.Node, grid: Grid) -> fx.Node:
        if not self.rounding:
            x.meta["grid"] = grid
            return x
        if self.ste:
            result = rounded = self._emit(fake_quantize, x, *arguments(grid))
        else:
            rounded = self._emit(QUANTIZE, x, *arguments(grid))
            result = self._emit(DEQUANTIZE, rounded, *arguments(grid))
        rounded.meta["step"] = node.meta["step"]
        result.meta["grid"] = grid
        return result

    def _emit(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        node = self.graph.call_function(target, args, kwargs)
        node.meta["grid"] = None
        return node

    def _buffer(self, name: str, value: Tensor, persistent: bool = True) -> fx.Node:
        parent, _, child = name.rpartition(".")
        owner = self.root
        for part in parent.split(".") if parent else ():
            if part not in owner._modules:
                owner.add_module(part, nn.Module())
            owner = owner.get_submodule(part)
        # The artifact's tensor itself, not a copy: neither of the two is ever written to.
        owner.register_buffer(child, value, persistent=persistent)
        return self.graph.get_attr(name)


def _pair(value: int | Sequence[int]) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)
