"""Runs graphs: whole ones under observation, and single calls of recorded ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, fx, nn

from ..artifact.layers import Layer
from .trace import INPUT_AFFINE


class Watched(fx.Interpreter):
    """Runs a graph and shows every value to a function.

    Args:
        model: Holds the modules that the graph calls. A recording runs on any model of its
            architecture.
        watch: Takes each node and its value; what it returns goes on in the value's place, unless
            that is None.
        graph: The graph; None takes the model's own.
    """

    def __init__(
        self,
        model: nn.Module,
        watch: Callable[[fx.Node, Any], Any],
        graph: fx.Graph | None = None,
    ) -> None:
        super().__init__(model, graph=graph)
        self.watch = watch

    def run_node(self, n: fx.Node) -> Any:
        """Runs one node, and shows its value."""
        result = super().run_node(n)
        other = self.watch(n, result)
        return result if other is None else other

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Calls a module of the model, as recordings and other graphs write it."""
        return _call_module(self.module, str(target), args, kwargs)


def compute(model: nn.Module, node: fx.Node, args: Any, kwargs: Any) -> Any:
    """Computes one recorded call, never in place.

    Args:
        model: A model of the architecture, whose modules are called.
        node: The call.
        args: Its arguments' values.
        kwargs: The same of its keywords.
    """
    if "inplace" in kwargs:
        kwargs = {**kwargs, "inplace": False}
    if node.op == "call_module":
        return _call_module(model, str(node.target), args, kwargs)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    return node.target(*args, **kwargs)  # type: ignore[operator]


def compute_weighted(
    layer: Layer, x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool = True
) -> Tensor:
    """Computes a convolution or linear layer with weights of one's own.

    Args:
        layer: The layer.
        x: Its input, float.
        weight: Of the layer's shape.
        bias: [C], or None.
        relu: Whether to apply the layer's ReLU, if it has one.
    """
    if layer.op == "linear":
        y = F.linear(x, weight, bias)
    else:
        geometry = (layer.stride, layer.padding, layer.dilation, layer.groups)
        y = F.conv2d(x, weight, bias, *geometry)
    return y.relu_() if layer.relu and relu else y


def _call_module(model: nn.Module, name: str, args: Any, kwargs: Any) -> Any:
    if name == INPUT_AFFINE:
        return model._transform_input(*args)  # type: ignore[operator]
    module: Any = model.get_submodule(name)
    if args and isinstance(args[0], str):  # a functional, whose operation recordings name first
        return getattr(module, args[0])(*args[1:])
    return module(*args, **kwargs)


def not_in_place(model: nn.Module) -> None:
    """Makes a model's modules write nowhere in place, so that every value can be read again."""
    for module in model.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]


def last_uses(nodes: list[fx.Node]) -> dict[fx.Node, list[fx.Node]]:
    """Returns, for each call, the values that nothing reads after it."""
    last: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        for source in node.all_input_nodes:
            last[source] = node
    found: dict[fx.Node, list[fx.Node]] = {}
    for source, node in last.items():
        found.setdefault(node, []).append(source)
    return found
