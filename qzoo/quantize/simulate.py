"""A float model of which any part computes as its int8 model does, the rest in float.

The recorded forward pass is walked call by call. A layer's weights are the float ones or the
dequantized integers, its output is left as it is or rounded to the layer's grid, each by choice;
what depends on no choice that changed is not computed again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..artifact.format import Artifact
from ..artifact.grid import Grid
from ..artifact.layers import RANGED_OPS, weighted_layers
from ..errors import ArgumentError
from ..native.layers import float_weights
from ..reference.build import build_reference
from ..reference.calls import grid_source
from ..reference.ops import QUANTIZE, grid_of
from ..reference.run import compute, compute_weighted, last_uses, not_in_place
from .state import spread

#: What the values of a forward pass may take in memory while layers are tried, in bytes.
VALUES_MEMORY = 1 << 29


@dataclass(frozen=True)
class Parts:
    """Which parts compute as in the int8 model; all others compute in float.

    Attributes:
        weights: Layers with the weight and bias of the int8 model.
        outputs: Layers whose outputs are rounded to the int8 model's grid.
    """

    weights: frozenset[str] = frozenset()
    outputs: frozenset[str] = frozenset()

    def with_(self, weights: Collection[str] = (), outputs: Collection[str] = ()) -> Parts:
        """Returns these parts and more in int8."""
        return Parts(self.weights | set(weights), self.outputs | set(outputs))

    def without(self, weights: Collection[str] = (), outputs: Collection[str] = ()) -> Parts:
        """Returns these parts with some of them in float."""
        return Parts(self.weights - set(weights), self.outputs - set(outputs))


#: Everything in float.
FLOAT = Parts()


class Simulation:
    """A float model and its int8 model, any mixture of which can be run.

    Attributes:
        artifact: The int8 model.
        reference: Its reference model.
        recording: The architecture's forward pass.
        steps: Step names of the recorded calls whose output is rounded, in the order of the forward
            pass.
        weighted: Names of the convolutions and linear layers, in the order of the forward pass.
        ranged: Names of all layers whose output is rounded, in that order; the gates of
            squeeze-and-excitation blocks, whose grid is fixed, among them.
        grids: The recorded call's step name to the grid that its output is rounded to.
        owners: The recorded call's step name to the layer that the grid belongs to: pools round
            to their input's grid.
    """

    def __init__(self, fused: nn.Module, artifact: Artifact) -> None:
        """Brings both together.

        Args:
            fused: The float model with batch norm folded, on the CPU in eval mode; kept, and made
                to write nowhere in place.
            artifact: An int8 model of the same architecture.

        Raises:
            ArgumentError: The two are of different architectures or shapes.
        """
        self.artifact = artifact
        self._fused = fused
        self.reference = reference = build_reference(artifact)
        self.recording = reference.recording
        self._nodes = list(self.recording.graph.nodes)
        self._last = last_uses(self._nodes)
        not_in_place(fused)
        self._float = {n: _float_pair(fused, n, artifact) for n in weighted_layers(artifact.layers)}
        self._int8 = {n: int8_weight(artifact, n) for n in self._float}
        steps = {n.meta["step"]: n for n in self._nodes if "step" in n.meta}
        self.grids = {
            node.meta["step"]: grid_of(node)
            for node in reference.graph.nodes
            if node.target is QUANTIZE
        }
        # A concatenation of values that lie on its grid already rounds nothing in the reference.
        for name, layer in artifact.layers.items():
            if layer.op in RANGED_OPS and name in steps:
                self.grids.setdefault(name, layer.grid)
        ranged = {name for name, layer in artifact.layers.items() if layer.op in RANGED_OPS}
        self.owners = {step: grid_source(steps[step], ranged) for step in self.grids}
        self.steps = [n.meta["step"] for n in self._nodes if n.meta.get("step") in self.grids]
        self.ranged = list(dict.fromkeys(self.owners[step] for step in self.steps))
        self.weighted = [name for name in self.ranged if name in self._float]

    def with_artifact(self, artifact: Artifact) -> Simulation:
        """Returns the simulation of the same float model with other numbers of the int8 one."""
        return Simulation(self._fused, artifact)

    @property
    def int8(self) -> Parts:
        """All that the artifact computes in int8."""
        kept = set(self.artifact.float_layers)
        return Parts(frozenset(set(self.weighted) - kept), frozenset(self.ranged))

    def op(self, step: str) -> str:
        """Returns what a step computes: "conv2d", "add", "hardswish", "avg_pool2d" and so on."""
        node = next(n for n in self._nodes if n.meta.get("step") == step)
        if node.op != "call_module":
            return str(getattr(node.target, "__name__", node.target))
        layer = self.artifact.layers.get(str(node.target))
        if layer is None:
            return type(self.recording.modules[str(node.target)]).__name__.lower()
        return str(node.args[0]) if layer.op == "functional" else layer.op

    def float_weight(self, name: str) -> Tensor:
        """Returns the float weight of a layer, batch norm folded in."""
        return self._float[name][0]

    def float_bias(self, name: str) -> Tensor | None:
        """Returns the float bias of a layer, float32 [C], or None."""
        return self._float[name][1]

    def int8_weight(self, name: str) -> Tensor:
        """Returns the weight that the int8 layer computes with, float32."""
        return self._int8[name][0]

    def run(self, x: Tensor, parts: Parts = FLOAT) -> Tensor:
        """Returns the logits, float32 [N, classes], of images, float32 [N, 3, H, W]."""
        values: dict[fx.Node, Any] = {}
        for node in self._nodes:
            if node.op == "output":
                return values[node.args[0]]
            values[node] = x if node.op == "placeholder" else self._call(node, values.get, parts)
            for done in self._last.get(node, ()):
                del values[done]
        raise AssertionError("a recorded graph ends with its output")

    def values(self, x: Tensor, parts: Parts = FLOAT) -> dict[fx.Node, Any]:
        """Returns what every recorded call gives; `logits` and `again` read it."""
        values: dict[fx.Node, Any] = {}
        for node in self._nodes[:-1]:
            values[node] = x if node.op == "placeholder" else self._call(node, values.get, parts)
        return values

    def logits(self, values: Mapping[fx.Node, Any]) -> Tensor:
        """Returns the logits among the values, float32 [N, classes]."""
        return values[self._nodes[-1].args[0]]

    def again(self, base: Mapping[fx.Node, Any], before: Parts, after: Parts) -> Tensor:
        """Returns the logits with other parts in int8, computing only what that changes.

        Args:
            base: What `values` returned for the parts before.
            before: Those parts.
            after: The parts wanted.
        """
        weights, outputs = before.weights ^ after.weights, before.outputs ^ after.outputs
        new: dict[fx.Node, Any] = {}

        def newest(node: fx.Node) -> Any:
            return new[node] if node in new else base[node]

        for node in self._nodes[:-1]:
            step = node.meta.get("step")
            touched = step in weights or self.owners.get(str(step)) in outputs
            if touched or any(source in new for source in node.all_input_nodes):
                new[node] = self._call(node, newest, after)
            for done in self._last.get(node, ()):
                new.pop(done, None)
        return newest(self._nodes[-1].args[0])

    def float_outputs(self, values: Mapping[fx.Node, Any]) -> dict[str, Tensor]:
        """Returns the values of all calls that int8 rounds, by step name."""
        return {n.meta["step"]: v for n, v in values.items() if n.meta.get("step") in self.grids}

    def batch_size(self, image: Tensor, most: int = 32) -> int:
        """Returns how many images' values fit into `VALUES_MEMORY`, at most `most`.

        Args:
            image: One image, float32 [1, 3, H, W].
            most: Answer for images that take little.
        """
        values = self.values(image).values()
        tensors = [t for v in values for t in (v if isinstance(v, (tuple, list)) else [v])]
        size = sum(t.numel() * t.element_size() for t in tensors if isinstance(t, Tensor))
        return max(1, min(most, VALUES_MEMORY // max(2 * size, 1)))

    def _call(self, node: fx.Node, value: Callable[[fx.Node], Any], parts: Parts) -> Any:
        args: Any = fx.map_arg(node.args, value)
        name = str(node.target)
        if node.op == "call_module" and name in self._float:
            weight, bias = (self._int8 if name in parts.weights else self._float)[name]
            result = compute_weighted(self.artifact.layers[name], args[0], weight, bias)
        else:
            result = compute(self._fused, node, args, fx.map_arg(node.kwargs, value))
        step = node.meta.get("step")
        if step in self.grids and self.owners[step] in parts.outputs:
            return fake_quantize(result, self.grids[step])
        return result


def int8_weight(artifact: Artifact, name: str) -> tuple[Tensor, Tensor | None]:
    """Returns the weight, dequantized to float32, and the bias that an artifact's layer has."""
    weight, bias = (artifact.tensors.get(f"{name}.{what}") for what in ("weight", "bias"))
    assert weight is not None
    if artifact.layers[name].float:
        return weight, bias
    scale = artifact.tensors[f"{name}.weight_scale"].float()
    zero = artifact.tensors.get(f"{name}.weight_zero_point")
    steps = weight.float() if zero is None else weight.float() - spread(zero.float(), weight)
    return steps * spread(scale, weight), bias


def fake_quantize(x: Tensor, grid: Grid) -> Tensor:
    """Returns values rounded to the grid's, float32; what lies beyond its ends is cut off."""
    return torch.fake_quantize_per_tensor_affine(x, *grid.arguments)


def _float_pair(fused: nn.Module, name: str, artifact: Artifact) -> tuple[Tensor, Tensor | None]:
    try:
        weight, bias = float_weights(fused, name)
    except AttributeError:
        weight, bias = None, None
    expected = artifact.tensors[f"{name}.weight"].shape
    if weight is None or weight.shape != expected:
        found = "none" if weight is None else list(weight.shape)
        raise ArgumentError(
            f"The float model does not belong to the int8 model ({artifact.info.architecture}): "
            f"the weight of layer {name!r} has the shape {list(expected)} in int8 and {found} in "
            "float. Give the float model that was quantized."
        )
    return weight.detach(), None if bias is None else bias.detach()
