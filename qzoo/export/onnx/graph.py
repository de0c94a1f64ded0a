"""Writes the graph of a reference model as ONNX nodes, in the QDQ form that runtimes fuse."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from ...errors import ArgumentError
from ...reference import ReferenceModel
from ...reference.ops import DEQUANTIZE, QUANTIZE

# The two modules register how each operation is written.
from . import moves, ops  # noqa: F401
from .writer import EMITTERS, Constant, Value, Writer

aten = torch.ops.aten


def write_graph(writer: Writer, model: ReferenceModel, x: Value) -> Value:
    """Writes a reference model's graph.

    Args:
        writer: Takes the nodes.
        model: A reference model that was built without `ste`.
        x: The graph's input.

    Returns:
        The logits.

    Raises:
        ArgumentError: The graph holds an operation that ONNX export does not know.
    """
    values: dict[fx.Node, Any] = {}
    for node in model.graph.nodes:
        if node.op == "placeholder":
            values[node] = x
        elif node.op == "get_attr":
            owner, _, name = node.target.rpartition(".")
            tensor = getattr(model.get_submodule(owner), name).detach().cpu()
            values[node] = Constant(node.target, tensor)
        elif node.op == "output":
            return values[node.args[0]]
        else:
            emitter = EMITTERS.get(node.target)
            if emitter is None:
                raise ArgumentError(f"ONNX export does not know the operation {node.target}.")
            args = fx.map_arg(node.args, values.__getitem__)
            about: dict[str, Any] = {}
            if node.target is aten.slice.Tensor:
                about = {"together": _together(node, values[node.args[0]].shape[0])}
            if node.target is QUANTIZE:
                about = {"step": node.meta["step"], "in_between": _in_between(node)}
            values[node] = emitter(writer, *args, **node.kwargs, **about)
    raise ArgumentError("The reference model's graph has no output.")


def _together(part: fx.Node, channels: int) -> list[int]:
    """Returns where all slices of one tensor end, in order, if they make up the whole of it."""
    source: Any = part.args[0]
    ends = sorted(user.args[2:4] for user in source.users if user.target is aten.slice.Tensor)
    whole = [0, *(stop for _, stop in ends)] == [*(start for start, _ in ends), channels]
    return [stop for _, stop in ends] if whole else []


def _in_between(rounding: fx.Node) -> bool:
    """Returns whether what is rounded goes on as real numbers only, to the next rounding.

    That is the input of an activation function, and the factor of squeeze and excitation, a number
    for each channel: nothing multiplies or moves their integers.
    """
    reals = list(rounding.users)
    readers = [reader for real in reals for reader in real.users]
    functions = {aten.hardswish.default, aten.hardsigmoid.default}
    source = rounding.args[0]
    if isinstance(source, fx.Node) and source.target is aten.hardsigmoid.default:
        functions.add(aten.mul.Tensor)
    return all(real.target is DEQUANTIZE for real in reals) and all(
        reader.target in functions for reader in readers
    )
