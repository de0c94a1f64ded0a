"""Rewrites a reference model for XNNPACK, so that ExecuTorch delegates all of it.

XNNPACK's partitioner takes an operator for quantized where each input comes from a dequantize of
its own and the only reader of the output is a quantize; what it does not take runs in slow portable
kernels, without a word. The changes here alter no value, except that padding for average pooling
becomes an operator of its own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..artifact.grid import Grid
from ..errors import ArgumentError
from ..reference import ReferenceModel
from ..reference.ops import DEQUANTIZE, DEQUANTIZE_CHANNELS, QUANTIZE, arguments, grid_of
from .torch_plan import layer_of, node_shapes

aten = torch.ops.aten
#: An `fx.Node`, whose arguments are typed as a union of everything.
Node = Any


def to_xnnpack(reference: ReferenceModel, images: Tensor) -> ReferenceModel:
    """Rewrites a model in place and returns it.

    Args:
        reference: The model, built with `explicit=True` and int8 activations.
        images: A batch of the one size that the result takes.

    Raises:
        ArgumentError: A layer has weight zero points, which XNNPACK lacks.
    """
    shapes = node_shapes(reference, images)
    for node in list(reference.graph.nodes):
        match node.target:
            case aten.cat.default:
                _same_grid(reference.graph, node)
            case aten.avg_pool2d.default:
                _pad_before(reference.graph, node)
            case aten.hardsigmoid.default:
                _hardsigmoid(reference, node)
            case aten.channel_shuffle.default:
                _views(reference.graph, node, shapes[node])
    for node in list(reference.graph.nodes):
        if node.target is DEQUANTIZE_CHANNELS:
            _long_zero_points(reference, node)
        elif node.target is DEQUANTIZE:
            if node.args[0].op == "get_attr":
                _refuse_zero_points(node, bool(node.args[2]))
            else:
                _one_reader(reference.graph, node)
    reference.graph.eliminate_dead_code()
    reference.graph.lint()
    reference.recompile()
    return reference


def _round(graph: Any, x: Node, grid: Grid) -> Node:
    """Emits a quantize and dequantize at the insertion point."""
    integers = graph.call_function(QUANTIZE, (x, *arguments(grid)))
    result = graph.call_function(DEQUANTIZE, (integers, *arguments(grid)))
    x.meta["grid"], integers.meta["grid"], result.meta["grid"] = None, None, grid
    return result


def _same_grid(graph: Any, cat: Node) -> None:
    """Brings the inputs of a concatenation to its output's grid; XNNPACK only copies integers."""
    grid = grid_of(next(iter(cat.users)))
    with graph.inserting_before(cat):
        inputs = [
            x if x.meta["grid"] == grid else _round(graph, _fresh(graph, x), grid)
            for x in cat.args[0]
        ]
    cat.args = (inputs, *cat.args[1:])


def _fresh(graph: Any, dequantized: Node) -> Node:
    """Emits another dequantize of the same integers."""
    copy = graph.call_function(DEQUANTIZE, dequantized.args)
    copy.meta["grid"] = dequantized.meta["grid"]
    return copy


def _pad_before(graph: Any, pool: Node) -> None:
    """Pads by an operator of its own; XNNPACK's average pooling does not count padding."""
    x, kernel, stride, padding, *rest = pool.args
    if not any(padding):
        return
    grid = x.meta["grid"]
    height, width = padding
    with graph.inserting_before(pool):
        padded = graph.call_function(
            aten.constant_pad_nd.default, (x, [width, width, height, height], 0.0)
        )
        padded = _round(graph, padded, grid)
    pool.args = (padded, kernel, stride, [0, 0], *rest)


def _hardsigmoid(reference: ReferenceModel, node: Node) -> None:
    """Writes a hard sigmoid as add, clamp and divide, with constants that stay in the delegate."""
    graph, x = reference.graph, node.args[0]
    for name, value in {"three": 3.0, "six": 6.0}.items():
        reference.register_buffer(
            name, torch.tensor([value], dtype=torch.float32, device="cpu"), persistent=False
        )
    with graph.inserting_before(node):
        y = graph.call_function(aten.add.Tensor, (x, graph.get_attr("three")))
        y = graph.call_function(aten.hardtanh.default, (y, 0.0, 6.0))
        y = graph.call_function(aten.div.Tensor, (y, graph.get_attr("six")))
    y.meta["grid"] = None
    node.replace_all_uses_with(y)


def _views(graph: Any, shuffle: Node, shape: list[int]) -> None:
    """Writes a channel shuffle as view, permute and view."""
    x, groups = shuffle.args
    grid = x.meta["grid"]
    with graph.inserting_before(shuffle):
        split = [shape[0], groups, shape[1] // groups, *shape[2:]]
        y = _round(graph, graph.call_function(aten.reshape.default, (x, split)), grid)
        y = graph.call_function(aten.permute.default, (y, [0, 2, 1, 3, 4]))
        y = _round(graph, y, grid)
        y = graph.call_function(aten.reshape.default, (y, shape))
    y.meta["grid"] = None
    shuffle.replace_all_uses_with(y)


def _long_zero_points(reference: ReferenceModel, weight: Node) -> None:
    """Widens the zero points of weights, which ExecuTorch wants as int64."""
    owner, _, name = weight.args[2].target.rpartition(".")
    module = reference.get_submodule(owner)
    zero_points = getattr(module, name)
    _refuse_zero_points(weight, bool(zero_points.any()))
    setattr(module, name, zero_points.long())


def _refuse_zero_points(weight: Node, present: bool) -> None:
    if present:
        raise ArgumentError(
            f"Layer {layer_of(weight)!r} has weights with zero points, which XNNPACK lacks: "
            "quantize the model with symmetric weights, or export it to another format."
        )


def _one_reader(graph: Any, dequantize: Node) -> None:
    """Gives every reader a dequantize of its own, so that one delegate can hold them all."""
    for reader in list(dequantize.users)[1:]:
        with graph.inserting_before(reader):
            reader.replace_input_with(dequantize, _fresh(graph, dequantize))
