"""Writes an artifact's graph as ONNX nodes, in the QDQ form that runtimes fuse."""

from __future__ import annotations

from ...artifact.graph import INPUT, Graph

# The two modules register how each operation is written.
from . import moves, ops  # noqa: F401
from .values import Value
from .writer import EMITTERS, Writer


def write_graph(writer: Writer, graph: Graph, images: Value) -> Value:
    """Writes all nodes of a graph.

    Args:
        writer: Takes the ONNX nodes.
        graph: The graph.
        images: Its input.

    Returns:
        The logits.
    """
    values = {INPUT: images}
    for node in graph.nodes:
        inputs = [values[name] for name in node.inputs]
        values[node.name] = EMITTERS[node.op](writer, node, *inputs)
    return values[graph.output.name]
