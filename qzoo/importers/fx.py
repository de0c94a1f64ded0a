"""Models that PyTorch's FX graph mode quantized, read into artifacts.

The converted graph names convolutions and linear layers as the model does, but knows sums,
products and concatenations only by their order. What it left in float gets the range on which its
value is rounded next or, where there is none, the range that calibration images give it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, fx

from ..artifact.format import Artifact, ModelInfo
from ..artifact.grid import Grid
from ..artifact.layers import RANGED_OPS, WEIGHTED_OPS
from ..errors import ArtifactError
from ..native.fx import FUNCTIONALS, layer_tensors
from ..native.values import QUANTIZE, scale_and_zero_point
from ..reference.calls import kind
from .graph_reader import GraphReader, Node


def from_fx(
    converted: fx.GraphModule,
    info: ModelInfo,
    example: Tensor,
    batches: Iterable[Tensor],
    make_observer: Callable[[], Any],
) -> Artifact:
    """Reads an int8 graph into an artifact.

    Args:
        converted: What `convert_fx` returned for a float model of the zoo in eval mode.
        info: What the model is.
        example: Some images, float32 [N, 3, H, W], as the graph takes them.
        batches: Calibration images, for ranges that the graph lacks.
        make_observer: Makes an observer (`qzoo.quantize.observers.Observer`) of activations, for
            ranges that the graph lacks.

    Returns:
        The artifact. `info.recipe["changed"]` says, layer by layer, what is not exactly as in the
        graph.

    Raises:
        ArtifactError: The graph is not one of the architecture, or was quantized in a way that an
            artifact does not hold; the message names the layer.
    """
    reader = _Reader(converted, info)
    reader.read(example)
    reader.measure(batches, make_observer)
    return reader.artifact(info)


class _Reader(GraphReader):
    """Reads a graph of quantized tensors, whose grids show when it runs."""

    rounds = QUANTIZE

    def read(self, example: Tensor) -> None:
        """Reads everything but ranges that are not in the graph."""

        def watch(node: fx.Node, value: Any) -> None:
            found = scale_and_zero_point(node.name, value)
            if found is not None:
                self.grids[node] = Grid(*found)

        self.run(example[:1], watch)
        results = self._match()
        for name, layer in self.layers.items():
            if layer.op in WEIGHTED_OPS:
                tensors, kept = layer_tensors(name, self.module.get_submodule(name))
                self.tensors |= tensors
                self.layers[name] = dataclasses.replace(layer, float=kept)
        fixed = {
            str(node.target) if node.op == "call_module" else node.name: node
            for node in self.module.graph.nodes
            if self.is_fixed(node)
        }
        self.take_grids(results, fixed, set(results.values()))

    def kind(self, node: Node) -> str:
        """Returns the plain name of what a node computes, or ""."""
        module = self.module.get_submodule(node.target) if node.op == "call_module" else None
        name = kind(node, module)
        return "identity" if name == "dequantize" else name  # to float, on the same grid

    def only_asks(self, node: Node) -> bool:
        """Whether a node asks for a value's shape."""
        return bool(node.target == "size")

    def readers(self, rounding: Node) -> list[Node]:
        """Returns what reads a quantized value."""
        return list(rounding.users)

    def _match(self) -> dict[str, Node]:
        """Returns the node that computes each layer with a range of its own.

        Raises:
            ArtifactError: The graph is of another architecture.
        """
        nodes = {str(n.target): n for n in self.module.graph.nodes if n.op == "call_module"}
        functionals = [n for n in self.module.graph.nodes if n.target in FUNCTIONALS]
        functionals.reverse()  # the next one is at the end
        found: dict[str, Node] = {}
        for call in self.recording.graph.nodes:
            layer = self.layers.get(str(call.target)) if call.op == "call_module" else None
            if layer is None or layer.op not in RANGED_OPS:
                continue
            name = str(call.target)
            if layer.op == "quantize":
                found[name] = next(n for n in self.module.graph.nodes if n.op == "placeholder")
            elif layer.op == "functional":
                found[name] = _functional(name, call.meta["kind"], functionals)
            elif name in nodes:
                found[name] = nodes[name]
            else:
                raise ArtifactError(f"The graph lacks the layer {name!r} of its architecture.")
        if functionals:
            raise ArtifactError(f"The graph has {functionals[-1].name!r}, which no layer computes.")
        return found


def _functional(name: str, op: str, rest: list[Node]) -> Node:
    """Takes the next sum, product or concatenation of a graph, which must be the layer `name`."""
    if not rest:
        raise ArtifactError(f"The graph ends before the layer {name!r} of its architecture.")
    node = rest.pop()
    found = FUNCTIONALS[node.target]
    if op == "add_relu" and found == "add":
        followers = [u for u in node.users if "relu" in str(getattr(u.target, "__name__", ""))]
        node, found = (followers or [node])[0], "add_relu" if followers else found
    if found != op:
        raise ArtifactError(
            f"The graph computes {node.name!r} where the architecture has {name!r} ({op})."
        )
    return node
