"""Rewrites a reference model for Inductor: oneDNN's int8 operators in place of float ones.

Inductor's own way is to recognise quantize and dequantize around float operators by patterns, which
torchao registers. They miss layers whose input comes through a pool or a flatten or has several
readers, layers with one scale per tensor, and a first convolution on three channels: those then
run in float, without a word. Here the reference graph says which integers feed which layer, so the
operators are written down directly and nothing is left to matching.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from ..artifact.grid import Grid
from ..reference import ReferenceModel
from ..reference.calls import MOVES, kind
from ..reference.ops import DEQUANTIZE, DEQUANTIZE_CHANNELS, QUANTIZE, arguments
from .torch_plan import layer_of, node_shapes

aten = torch.ops.aten
#: An `fx.Node`, whose arguments are typed as a union of everything.
Node = Any

#: Operations that can move integers as they stand; ReLU and pools are looked at one by one.
_INTEGER_MOVES = (MOVES - {"relu", "max_pool2d"}) | {"cat"}
#: Inductor compiles windows up to this area; above it, it would call PyTorch's kernel, which
#: cannot pool integers in channels-last order.
_MAX_POOL_AREA = 25


def to_onednn(reference: ReferenceModel, image: Tensor) -> tuple[fx.GraphModule, tuple[str, ...]]:
    """Returns the graph on oneDNN's int8 operators.

    Args:
        reference: The model, built without `ste`, with uint8 activations.
        image: A batch as the model takes it; oneDNN orders weights by its shape. Other batch sizes
            work too.

    Returns:
        The module, for Inductor only, and the names of the layers that stayed in float because
        their weights have zero points, which oneDNN lacks.
    """
    rewriter = _Rewriter(reference, node_shapes(reference, image))
    return rewriter.rewrite(), tuple(rewriter.float_layers)


class _Rewriter:
    """Writes one graph; each old node has a real value, integers, or both in the new one."""

    def __init__(self, reference: ReferenceModel, shapes: dict[Node, list[int]]) -> None:
        self.reference, self.shapes = reference, shapes
        self.graph, self.root = fx.Graph(), nn.Module()
        self.real: dict[Node, Node] = {}
        self.integers: dict[Node, Node] = {}
        self.float_layers: list[str] = []
        self.count = 0

    def rewrite(self) -> fx.GraphModule:
        for node in self.reference.graph.nodes:
            match node.op:
                case "placeholder":
                    self.real[node] = self.graph.placeholder(node.name)
                case "output":
                    self.graph.output(fx.map_arg(node.args[0], self._result))
                case "get_attr":
                    pass  # copied where something reads it
                case _:
                    self._call(node)
        self.graph.eliminate_dead_code()
        self.graph.lint()
        return fx.GraphModule(self.root, self.graph).eval()

    def _call(self, node: Node) -> None:
        target, grid = node.target, node.meta["grid"]
        if _is_weight(node):
            return
        if target is QUANTIZE:
            self._quantize(node)
        elif target is DEQUANTIZE:
            self.integers[node] = self.integers[node.args[0]]
        elif grid is not None and (kind(node) in _INTEGER_MOVES or _is_small_pool(node)):
            self.integers[node] = self._emit(target, *fx.map_arg(node.args, self._integers))
        elif target is aten.relu.default and grid is not None:
            # On a grid, to cut negative values off is to cut integers off at the zero point.
            self.integers[node] = self._emit(
                aten.clamp.default, self._integers(node.args[0]), grid.zero_point
            )
        else:
            self.real[node] = self._emit(target, *fx.map_arg(node.args, self._real))
            if grid is not None:
                self.integers[node] = self._emit(QUANTIZE, self.real.pop(node), *arguments(grid))

    def _quantize(self, node: Node) -> None:
        source = node.args[0]
        relu = source.target is aten.relu.default and len(source.users) == 1
        product = source.args[0] if relu else source
        matmul = product.target in (aten.conv2d.default, aten.linear.default)
        if matmul and _is_weight(product.args[1]):  # else the artifact keeps the layer in float
            integers = self._product(node, product, "relu" if relu else "none")
            if integers is not None:
                self.integers[node] = integers
                return
            self.float_layers.append(layer_of(product.args[1]))
        self.integers[node] = self._emit(QUANTIZE, self._real(source), *node.args[1:])

    def _product(self, node: Node, product: Node, post: str) -> Node | None:
        """Emits a convolution or linear layer on integers, where oneDNN can compute it."""
        x, weight, bias, *geometry = product.args
        values, scale = self._weight(weight)
        grid: Grid | None = x.meta["grid"]
        if scale is None or grid is None:
            return None
        x_arguments = (self._integers(x), grid.scale, grid.zero_point)
        w_arguments = (
            self._buffer(scale),
            self._buffer(torch.zeros(len(scale), dtype=torch.int32, device="cpu")),
            None if bias is None else self._buffer(self.reference.get_buffer(bias.target)),
        )
        _, out_scale, out_zero_point, _, _, out_dtype = node.args
        out_arguments: tuple[Any, ...] = (out_scale, out_zero_point, out_dtype, post, [], "")
        if product.target is aten.linear.default:
            packed = torch.ops.onednn.qlinear_prepack(values, None)
            call = torch.ops.onednn.qlinear_pointwise.default
            return self._emit(
                call, *x_arguments, self._buffer(packed), *w_arguments, *out_arguments
            )
        packed = torch.ops.onednn.qconv_prepack(
            values, scale, grid.scale, grid.zero_point, *geometry, self.shapes[x]
        )
        call = torch.ops.onednn.qconv_pointwise.default
        return self._emit(
            call, *x_arguments, self._buffer(packed), *w_arguments, *geometry, *out_arguments
        )

    def _weight(self, node: Node) -> tuple[Tensor, Tensor | None]:
        """Returns int8 values and the scale of each channel; None where they have zero points."""
        values = self.reference.get_buffer(node.args[0].target)
        if node.target is DEQUANTIZE:
            scale, zero_point = node.args[1:3]
            return values, None if zero_point else torch.full(
                (len(values),), scale, dtype=torch.float32, device="cpu"
            )
        scale, zero_point = (self.reference.get_buffer(a.target) for a in node.args[1:3])
        return values, None if bool(zero_point.any()) else scale

    # Nodes of the new graph.

    def _result(self, node: Node) -> Node:
        return self._integers(node) if node.target is QUANTIZE else self._real(node)

    def _integers(self, node: Node) -> Node:
        if node not in self.integers:
            self.integers[node] = self._emit(
                QUANTIZE, self._real(node), *arguments(node.meta["grid"])
            )
        return self.integers[node]

    def _real(self, node: Node) -> Node:
        if node not in self.real:
            if node.op == "get_attr" or _is_weight(node):
                self.real[node] = self._copy(node)
            else:
                # Each reader gets a dequantize of its own: Inductor fuses it into the reader.
                return self._emit(DEQUANTIZE, self.integers[node], *arguments(node.meta["grid"]))
        return self.real[node]

    def _copy(self, node: Node) -> Node:
        if node.op == "get_attr":
            return self._buffer(self.reference.get_buffer(str(node.target)))
        return self._emit(node.target, *fx.map_arg(node.args, self._copy))

    def _emit(self, target: Any, *args: Any) -> Node:
        return self.graph.call_function(target, args)

    def _buffer(self, value: Tensor) -> Node:
        name = f"_{self.count}"
        self.count += 1
        if value.is_mkldnn:
            # Inductor clones buffers, which packed weights do not allow, but not parameters.
            self.root.register_parameter(name, nn.Parameter(value, requires_grad=False))
        else:
            self.root.register_buffer(name, value)
        return self.graph.get_attr(name)


def _is_weight(node: Node) -> bool:
    if node.target is DEQUANTIZE_CHANNELS:
        return True
    return node.target is DEQUANTIZE and node.args[0].op == "get_attr"


def _is_small_pool(node: Node) -> bool:
    if node.target is not aten.max_pool2d.default:
        return False
    height, width = node.args[1]
    return bool(height * width <= _MAX_POOL_AREA)
