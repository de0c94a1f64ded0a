"""Writes the graph of a reference model as ONNX nodes, in the QDQ form that runtimes fuse."""

from __future__ import annotations

from typing import Any

from torch import fx

from ..errors import ArgumentError
from ..reference import ReferenceModel
from ..reference.ops import QUANTIZE

# The two modules register how each operation is written.
from . import _onnx_moves, _onnx_ops  # noqa: F401
from ._onnx_writer import EMITTERS, Constant, Value, Writer


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
            step = {"step": node.meta["step"]} if node.target is QUANTIZE else {}
            values[node] = emitter(writer, *args, **node.kwargs, **step)
    raise ArgumentError("The reference model's graph has no output.")
