"""Builds the forward pass of a model in training from the recording of its architecture."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from ...errors import ArgumentError
from ...native.layers import float_weights
from ...reference.calls import AVERAGES, MOVES
from ...reference.trace import INPUT_AFFINE
from ...reference.writer import GraphWriter, place
from ..state import Quantization
from .layers import Average, Hardsigmoid, Input, Output, Weighted, gain_of, make_weighted
from .ranges import Ranges


class GraphBuilder(GraphWriter):
    """Builds the modules of a model in training and the graph that calls them.

    Args:
        state: The model on its way to int8.
        ranges: The ranges to be.
        index: Layer name to its range; layers on one grid share one.
        norms: Where batch norm is kept, the batch norms by name; else empty.
        weights: Gives weight and bias of a layer, as training starts from them, by its name and
            that of the batch norm behind it, if one is kept.
        root: Holds the modules.

    Attributes:
        graph: The forward pass, over `root`, whose modules have the user's names.
        folds: Where batch norm is kept, layer name to the name of the batch norm behind it.
    """

    def __init__(
        self,
        state: Quantization,
        ranges: Ranges,
        index: Mapping[str, int],
        norms: Mapping[str, nn.BatchNorm2d],
        weights: Callable[[str, str | None], tuple[Tensor, Tensor | None]],
        root: nn.Module,
    ) -> None:
        self.state, self.ranges, self.index, self.norms = state, ranges, index, norms
        super().__init__(state.recording, root)
        self.weights = weights
        self.folds: dict[str, str] = {}
        #: The range that a node's values lie on; None for fixed grids and float values.
        self._grids: dict[fx.Node, int | None] = {}

    def _module(self, node: fx.Node, *args: Any, **kwargs: Any) -> fx.Node:
        name = str(node.target)
        if name == INPUT_AFFINE:
            assert self.state.recording.affine is not None
            return self._call("input_affine", Affine(*self.state.recording.affine), *args)
        layer = self.state.layers.get(name)
        if layer is None:
            return self._plain(name, node, *args)
        match layer.op:
            case "dequantize" | "identity":
                return args[0]
            case "quantize":
                return self._on(name, self._call(name, Input(self.ranges, self.index[name]), *args))
            case "dropout":
                # The user's own share; none where an identity stands in its place.
                share = getattr(self.state.fused.get_submodule(name), "p", 0.0)
                return self._moved(self._call(name, nn.Dropout(share), *args), args[0])
            case "conv2d" | "linear":
                return self._weighted(name, node, *args)
            case "hardswish":
                result = self._call(name, nn.Hardswish(), *args)
            case _:
                return self._functional(name, layer.relu, *args)
        return self._round(name, result)

    def _weighted(self, name: str, node: fx.Node, x: fx.Node) -> fx.Node:
        layer = self.state.layers[name]
        norm = self._norm_behind(node)
        module: Weighted = make_weighted(layer, *self.weights(name, norm))
        if (read := self._grids.get(x)) is not None:
            self.ranges.readers.setdefault(read, []).append(module)
        per_channel = self.state.backend.per_channel
        module.set_up(per_channel, name not in self.state.keep_float)
        if norm is None:
            return self._round(name, self._call(name, module, x), layer.relu)
        self.folds[name] = norm
        gain = []
        if not per_channel:
            parts = [self.graph.get_attr(f"{norm}.{p}") for p in ("weight", "running_var")]
            gain = [self.graph.call_function(gain_of, (*parts, self.norms[norm].eps))]
        result = self._call(name, module, x, *gain)
        return self._round(name, self._call(norm, self.norms[norm], result), layer.relu)

    def _norm_behind(self, node: fx.Node) -> str | None:
        users = [str(user.target) for user in node.users]
        return users[0] if len(users) == 1 and users[0] in self.norms else None

    def _functional(self, name: str, relu: bool, op: str, *args: Any) -> fx.Node:
        if op == "cat":
            xs, dim = args
            result = self.graph.call_function(torch.cat, (xs, dim))
            if all(self._grids.get(x) == self.index[name] for x in xs):
                return self._on(name, result)
        elif op == "mul":
            result = self.graph.call_function(torch.mul, args)
        else:
            result = self.graph.call_function(torch.add, args)
        return self._round(name, result, op == "add_relu")

    def _plain(self, name: str, node: fx.Node, x: fx.Node) -> fx.Node:
        """Emits a module that computes on integers as they stand."""
        kind = node.meta["kind"]
        module = copy.deepcopy(self.state.recording.modules[name])
        if kind == "hardsigmoid":
            return self._call(name, Hardsigmoid(self.ranges), x)
        if kind not in MOVES | AVERAGES:
            raise ArgumentError(
                f"Layer {name!r} ({type(module).__name__}) cannot be trained for int8."
            )
        if kind == "relu":
            module = nn.ReLU()  # never in place, where another layer may still need its input
        result = self._call(name, module, x)
        return self._average(name, result, x) if kind in AVERAGES else self._moved(result, x)

    def _function(self, node: fx.Node, *args: Any, **kwargs: Any) -> fx.Node:
        kwargs = {k: v for k, v in kwargs.items() if k != "inplace"}
        target: Any = node.target
        if node.meta["kind"] not in MOVES | AVERAGES:
            raise ArgumentError(f"The architecture calls {target}, which has no int8 form.")
        result = self.graph.create_node(node.op, target, args, kwargs)
        if node.meta["kind"] in AVERAGES:
            return self._average(f"rounded_{node.name}", result, args[0])
        return self._moved(result, args[0])

    # Modules and nodes of the new graph.

    def _round(self, name: str, x: fx.Node, relu: bool = False) -> fx.Node:
        output = Output(self.ranges, self.index[name], relu)
        return self._on(name, self._call(f"{name}.output", output, x))

    def _average(self, name: str, x: fx.Node, source: fx.Node) -> fx.Node:
        index = self._grids.get(source)
        if index is None:
            return x
        child = f"{name}.output" if name in self.state.recording.modules else name
        return self._moved(self._call(child, Average(self.ranges, index), x), source)

    def _on(self, name: str, node: fx.Node) -> fx.Node:
        self._grids[node] = self.index[name]
        return node

    def _moved(self, node: fx.Node, source: fx.Node) -> fx.Node:
        self._grids[node] = self._grids.get(source)
        return node

    def _call(self, name: str, module: nn.Module, *args: Any) -> fx.Node:
        owner, child = place(self.root, name)
        if child not in owner._modules:  # else it is called once more
            owner.add_module(child, module)
        return self.graph.call_module(name, args)


class Affine(nn.Module):
    """What a model does to its images before they are quantized: a gain and offset per channel."""

    gain: Tensor
    offset: Tensor

    def __init__(self, gain: Tensor, offset: Tensor) -> None:
        super().__init__()
        self.register_buffer("gain", gain.reshape(1, 3, 1, 1).clone(), persistent=False)
        self.register_buffer("offset", offset.reshape(1, 3, 1, 1).clone(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the images as the first layer wants them."""
        return x * self.gain + self.offset


def build_graph(
    state: Quantization, index: Mapping[str, int], norms: Mapping[str, Any]
) -> fx.Graph:
    """Returns the forward pass of a model whose modules are there already.

    Args:
        state: The model on its way to int8; of its weights only the shapes matter.
        index: Layer name to its range.
        norms: The batch norms that were kept, by name.
    """

    def shapes(name: str, _: str | None) -> tuple[Tensor, Tensor | None]:
        return float_weights(state.fused, name)

    ranges = Ranges(0, state.grid, learned=False)
    builder = GraphBuilder(state, ranges, index, norms, shapes, nn.Module())
    builder.write()
    return builder.graph


def compile_graph(graph: fx.Graph) -> Callable[..., Tensor]:
    """Returns the graph's forward pass as a function of the root module and the images."""
    code = graph.python_code("self")
    namespace = dict(code.globals)
    exec(code.src, namespace)
    forward: Callable[..., Tensor] = namespace["forward"]
    return forward
