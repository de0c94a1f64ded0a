"""Rewrites a recorded forward pass, call by call, into the graph of a reference model."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from ..artifact.format import Artifact
from ..artifact.grid import HARDSIGMOID_GRID, Grid
from ..artifact.layers import Layer
from ..errors import ArtifactError
from .ops import DEQUANTIZE, DEQUANTIZE_CHANNELS, QUANTIZE, arguments, fake_quantize
from .trace import INPUT_AFFINE, Recording
from .writer import GraphWriter

aten = torch.ops.aten


class _MaxPool(NamedTuple):
    """What `F.max_pool2d` takes after the tensor, and `nn.MaxPool2d` has as attributes."""

    kernel_size: Any
    stride: Any = None
    padding: Any = 0
    dilation: Any = 1
    ceil_mode: bool = False
    return_indices: bool = False


class _AvgPool(NamedTuple):
    """The same of `F.avg_pool2d` and `nn.AvgPool2d`."""

    kernel_size: Any
    stride: Any = None
    padding: Any = 0
    ceil_mode: bool = False
    count_include_pad: bool = True
    divisor_override: int | None = None


#: Attributes of modules that a function of the same kind takes as arguments.
_ATTRIBUTES = {
    "max_pool2d": _MaxPool._fields,
    "avg_pool2d": _AvgPool._fields,
    "adaptive_avg_pool2d": ("output_size",),
}


class Rewriter(GraphWriter):
    """Builds one reference graph.

    Args:
        artifact: The layers and tensors.
        recording: Which layer feeds which.
        ste: Whether to emit differentiable fake-quantize calls.
        explicit: Whether to quantize again after operations that keep their input's grid.
        signed: Whether activations are int8 instead of uint8.
    """

    def __init__(
        self,
        artifact: Artifact,
        recording: Recording,
        ste: bool = False,
        explicit: bool = False,
        signed: bool = False,
    ) -> None:
        super().__init__(recording, nn.Module())
        self.artifact = artifact
        self.ste, self.explicit, self.signed = ste, explicit, signed

    # What a recorded call becomes.

    def _module(self, node: fx.Node, *args: Any, **kwargs: Any) -> fx.Node:
        name = str(node.target)
        if name == INPUT_AFFINE:
            return self._affine(*args)
        layer = self.artifact.layers.get(name)
        module = self.recording.modules[name]
        if layer is None:
            attributes = _ATTRIBUTES.get(node.meta["kind"], ())
            given = [getattr(module, attribute) for attribute in attributes]
            return self._function(node, *args, *given)
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

    def _function(self, node: fx.Node, *args: Any, **kwargs: Any) -> fx.Node:
        """Rewrites what computes on integers as they stand, a function or such a module."""
        x, *rest = args
        match node.meta["kind"]:
            case "relu":
                return self._relu(x)
            case "dropout" | "contiguous" | "identity":
                return x
            case "hardsigmoid":
                grid = HARDSIGMOID_GRID.signed() if self.signed else HARDSIGMOID_GRID
                return self._quantize(node, self._emit(aten.hardsigmoid.default, x), grid)
            case "max_pool2d":
                return self._max_pool2d(node, x, _MaxPool(*rest, **kwargs))
            case "avg_pool2d":
                return self._avg_pool2d(node, x, _AvgPool(*rest, **kwargs))
            case "adaptive_avg_pool2d":
                return self._adaptive_avg_pool2d(node, x, *rest, **kwargs)
            case "mean":
                return self._mean(node, x, *rest, **kwargs)
            case "flatten":
                return self._move(node, aten.flatten.using_ints, x, *rest, **kwargs)
            case "chunk":
                return self._chunk(x, *rest, **kwargs)
            case "getitem":
                return self._move(node, operator.getitem, x, *rest)
            case "channel_shuffle":
                return self._move(node, aten.channel_shuffle.default, x, *rest, **kwargs)
        called = str(node.target)
        if node.op == "call_module":
            called = f"{called!r} ({type(self.recording.modules[called]).__name__})"
        raise ArtifactError(
            f"The architecture calls {called}, which has no int8 form in reference models."
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

    def _max_pool2d(self, node: fx.Node, x: fx.Node, pool: _MaxPool) -> fx.Node:
        args = (*_window(pool), _pair(pool.dilation), pool.ceil_mode)
        return self._move(node, aten.max_pool2d.default, x, *args)

    def _avg_pool2d(self, node: fx.Node, x: fx.Node, pool: _AvgPool) -> fx.Node:
        args = (*_window(pool), pool.ceil_mode, pool.count_include_pad, pool.divisor_override)
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
        return grid.zero_point == grid.low

    def _quantize(self, node: fx.Node, x: fx.Node, grid: Grid) -> fx.Node:
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
        owner, child = self._place(name)
        # The artifact's tensor itself, not a copy: neither of the two is ever written to.
        owner.register_buffer(child, value, persistent=persistent)
        return self.graph.get_attr(name)


def _pair(value: int | Sequence[int]) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)


def _window(pool: _MaxPool | _AvgPool) -> tuple[list[int], list[int], list[int]]:
    """Returns a pool's kernel, stride and padding, each for height and width."""
    kernel = _pair(pool.kernel_size)
    stride = kernel if pool.stride is None else _pair(pool.stride)
    return kernel, stride, _pair(pool.padding)
