"""Writes a new graph call by call of a recorded one; what a call becomes is left to subclasses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import fx, nn

from ..native.layers import module_at
from .trace import Recording


class GraphWriter(ABC):
    """Writes one graph.

    Attributes:
        recording: What is rewritten.
        root: Holds the new graph's modules and buffers.
        graph: The new graph.
        done: Each call of the recording and the node that gives its result in the new graph.
    """

    def __init__(self, recording: Recording, root: nn.Module) -> None:
        self.recording, self.root = recording, root
        self.graph = fx.Graph()
        self.done: dict[fx.Node, fx.Node] = {}

    def write(self) -> None:
        """Writes all calls."""
        for node in self.recording.graph.nodes:
            if node.op == "output":
                self.graph.output(self.done[node.args[0]])
                continue
            if node.op == "placeholder":
                emitted = self.graph.placeholder(node.name)
                emitted.meta["grid"] = None
            else:
                args = fx.map_arg(node.args, self.done.__getitem__)
                kwargs = dict(fx.map_arg(node.kwargs, self.done.__getitem__))
                emit = self._module if node.op == "call_module" else self._function
                emitted = emit(node, *args, **kwargs)
            self.done[node] = emitted
        self.graph.lint()

    @abstractmethod
    def _module(self, node: fx.Node, *args: Any, **kwargs: Any) -> fx.Node:
        """Writes a module's call, and returns the node of its result."""

    @abstractmethod
    def _function(self, node: fx.Node, *args: Any, **kwargs: Any) -> fx.Node:
        """Writes a function's or method's call, and returns the node of its result."""


def place(root: nn.Module, name: str) -> tuple[nn.Module, str]:
    """Returns the module that a dotted name lies in, made where it lacks, and the last part."""
    parent, _, child = name.rpartition(".")
    return module_at(root, parent), child
