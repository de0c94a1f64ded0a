"""Models that PyTorch's FX graph mode quantized, read into artifacts.

The converted graph names convolutions and linear layers as the model does, but knows sums,
products and concatenations only by their order. What it left in float gets the range on which its
value is rounded next or, where there is none, the range that calibration images give it.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from .._core.process import plain_defaults, quiet
from ..artifact.format import Artifact, ModelInfo
from ..artifact.layers import RANGED_OPS, WEIGHTED_OPS, Layer
from ..errors import ArtifactError
from ..models.plan import plan
from ..native.fx import FUNCTIONALS, layer_tensors
from ..native.layers import check_fit
from ..native.model import package_versions
from ..native.values import QUANTIZE, scale_and_zero_point
from ..reference.trace import Recording, record
from ..registry import get_entry

#: Scale and zero point.
Range = tuple[float, int]
#: What PyTorch's int8 kernel of the hard sigmoid always rounds to.
_HARDSIGMOID: Range = (1 / 256, 0)
# Operations that compute no new values: what comes out lies on the grid of what goes in.
_MOVES = frozenset(
    {"chunk", "contiguous", "dequantize", "relu", "relu_", "transpose", "view",
     F.max_pool2d, F.relu, operator.getitem, torch.chunk, torch.flatten, torch.relu,
     torch.transpose}
)  # fmt: skip
_MOVING_MODULES = (nn.Dropout, nn.Identity, nn.MaxPool2d, nn.ReLU)
_AVERAGES = frozenset({"mean", F.adaptive_avg_pool2d, F.avg_pool2d, torch.mean})
_AVERAGING_MODULES = (nn.AdaptiveAvgPool2d, nn.AvgPool2d)


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
    entry = get_entry(info.architecture)
    _, layers = plan(entry, info.builder_kwargs)
    recording = record(entry.skeleton(info.builder_kwargs), layers)
    reader = _Reader(converted, recording, layers)
    reader.read(example, batches, make_observer)
    if reader.changed:
        info = dataclasses.replace(info, recipe={**info.recipe, "changed": reader.changed})
    skeleton = entry.skeleton(info.builder_kwargs)  # recording replaced the other one's parts
    check_fit(skeleton, reader.layers, reader.tensors)
    return Artifact(info, reader.layers, reader.tensors, package_versions())


class _Reader:
    """Collects layers and tensors from a graph.

    Attributes:
        layers: Module name to layer.
        tensors: The artifact's tensors.
        changed: Layer name to what is not exactly as in the graph.
        grids: Node to the range of its value, where that is quantized.
        results: Nodes that layers' values are complete at.
    """

    def __init__(
        self, module: fx.GraphModule, recording: Recording, layers: dict[str, Layer]
    ) -> None:
        self.module, self.recording = module, recording
        self.layers, self.tensors = dict(layers), dict[str, Tensor]()
        self.changed: dict[str, str] = {}
        self.grids: dict[Any, Range] = {}
        self.results: set[Any] = set()

    def read(
        self, example: Tensor, batches: Iterable[Tensor], make_observer: Callable[[], Any]
    ) -> None:
        """Reads everything."""
        self.grids = _grids(self.module, example)
        unknown: dict[Any, str] = {}
        for name, node in self._match().items():
            layer = self.layers[name]
            if layer.op in WEIGHTED_OPS:
                tensors, kept = layer_tensors(name, self.module.get_submodule(name))
                self.tensors |= tensors
                layer = self.layers[name] = dataclasses.replace(layer, float=kept)
            self.results.add(node)
            if node in self.grids:
                self._set(name, self.grids[node])
                continue
            grids, everywhere = self._after(node)
            if len(grids) != 1:
                unknown[node] = name
                self.changed[name] = "its output is float in the graph; the range is measured"
                continue
            self._set(name, grids.pop())
            if not everywhere:
                self.changed[name] = "its output is read in float somewhere in the graph"
        self._float_arithmetic()
        self._extra_roundings()
        if unknown:
            for name, found in _measure(self.module, unknown, batches, make_observer).items():
                self._set(name, found)

    def _set(self, name: str, found: Range) -> None:
        scale, zero_point = found
        self.layers[name] = dataclasses.replace(
            self.layers[name], scale=scale, zero_point=zero_point
        )

    def _match(self) -> dict[str, Any]:
        """Returns the node that computes each layer with a range of its own.

        Raises:
            ArtifactError: The graph is of another architecture.
        """
        nodes = {str(n.target): n for n in self.module.graph.nodes if n.op == "call_module"}
        functionals = [n for n in self.module.graph.nodes if n.target in FUNCTIONALS]
        functionals.reverse()  # the next one is at the end
        found: dict[str, Any] = {}
        for call in self.recording.graph.nodes:
            layer = self.layers.get(str(call.target)) if call.op == "call_module" else None
            if layer is None or layer.op not in RANGED_OPS:
                continue
            name = str(call.target)
            if layer.op == "quantize":
                found[name] = next(n for n in self.module.graph.nodes if n.op == "placeholder")
            elif layer.op == "functional":
                found[name] = _functional(name, str(call.args[0]), functionals)
            elif name in nodes:
                found[name] = nodes[name]
            else:
                raise ArtifactError(f"The graph lacks the layer {name!r} of its architecture.")
        if functionals:
            raise ArtifactError(f"The graph has {functionals[-1].name!r}, which no layer computes.")
        return found

    def _after(self, node: Any) -> tuple[set[Range], bool]:
        """Returns the grids a float value is rounded on next, and whether nobody reads it before.

        To round after an operation that only moves values is the same as to round before it.
        """
        grids: set[Range] = set()
        everywhere = True
        for user in node.users:
            if user.target is QUANTIZE:
                grids.add(self.grids[user])
            elif self._moves(user):
                further, rounded = self._after(user)
                grids |= further
                everywhere = everywhere and rounded
            elif user.target != "size":
                everywhere = False
        return grids, everywhere

    def _moves(self, node: Any) -> bool:
        if node.op == "call_module":
            return isinstance(self.module.get_submodule(node.target), _MOVING_MODULES)
        return node.target in _MOVES

    def _float_arithmetic(self) -> None:
        """Notes what an artifact rounds to a grid that is not its own, but the graph does not."""
        for node in self.module.graph.nodes:
            module = self.module.get_submodule(node.target) if node.op == "call_module" else None
            if isinstance(module, nn.Hardsigmoid) and self.grids.get(node) != _HARDSIGMOID:
                self.changed[str(node.target)] = "it is rounded to 1/256"
            average = isinstance(module, _AVERAGING_MODULES) or node.target in _AVERAGES
            if average and node not in self.grids:
                self.changed[node.name] = "it is rounded to its input's steps"

    def _extra_roundings(self) -> None:
        """Notes roundings of the graph that no layer of an artifact does."""
        for node in self.module.graph.nodes:
            if node.target is not QUANTIZE or node.args[0] in self.results:
                continue
            own, grid = self._own_grid(node.args[0]), self.grids[node]
            joined = all(FUNCTIONALS.get(u.target) == "cat" and self.grids[u] == grid
                         for u in node.users)  # fmt: skip
            # It changes nothing, is a layer's own, or happens in the concatenation.
            if own in (grid, None) or joined:
                continue
            self.changed[node.args[0].name] = "it is rounded twice in the graph"

    def _own_grid(self, node: Any) -> Range | None:
        """Returns the grid that a float value lies on by what computes it, or None."""
        while node not in self.grids and node not in self.results and self._moves(node):
            node = node.args[0]
        return self.grids.get(node)


def _functional(name: str, op: str, rest: list[Any]) -> Any:
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


class _Watched(fx.Interpreter):
    """Runs a graph and shows every value to a function."""

    def __init__(self, module: fx.GraphModule, watch: Any) -> None:
        super().__init__(module)
        self.watch = watch

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        self.watch(n, result)
        return result

    def run(self, *args: Any, **kwargs: Any) -> Any:
        # It rescales them all the same, as an artifact's concatenations do.
        expected = quiet("All inputs of this cat operator must share")
        with torch.inference_mode(), plain_defaults(), expected:
            return super().run(*args, **kwargs)


def _grids(module: fx.GraphModule, images: Tensor) -> dict[Any, Range]:
    """Returns the range of every quantized value of a graph.

    Raises:
        ArtifactError: Quantized values of another kind than an artifact has.
    """
    grids: dict[Any, Range] = {}

    def watch(node: fx.Node, value: Any) -> None:
        found = scale_and_zero_point(node.name, value)
        if found is not None:
            grids[node] = found

    _Watched(module, watch).run(images[:1])
    return grids


def _measure(
    module: fx.GraphModule,
    wanted: dict[Any, str],
    batches: Iterable[Tensor],
    make_observer: Callable[[], Any],
) -> dict[str, Range]:
    """Returns the ranges that cover the values of some nodes, by the layers' names."""
    observers = {node: make_observer() for node in wanted}

    def watch(node: fx.Node, value: Any) -> None:
        if node in observers:
            observers[node].update(value)

    for images in batches:
        _Watched(module, watch).run(images)
    found = {wanted[node]: observer.qparams() for node, observer in observers.items()}
    return {name: (float(scale[0]), int(zero[0])) for name, (scale, zero) in found.items()}
