"""Models quantized by torchao's PT2E flow, turned into artifacts.

PT2E leaves values in float that an artifact's layers round, and rounds some that they do not:
X86InductorQuantizer keeps sums' inputs, averages and logits in float; hard sigmoids have their own
range where PyTorch's int8 kernel has a fixed one. `from_pt2e` takes over what agrees bit for bit,
and the rest only where it is told to, by images to measure ranges with.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..artifact.format import Artifact, ModelInfo
from ..artifact.grid import Grid
from ..artifact.layers import RANGED_OPS, WEIGHTED_OPS, float_weight_tensors, weight_tensors
from ..errors import ArtifactError
from ..native.engines import default_backend
from ..native.model import model_info
from ..reference.ops import DEQUANTIZE, QUANTIZE
from ..registry import get_entry
from .graph_reader import GraphReader, Node
from .pt2e_graph import (
    REDUCED,
    constant,
    dotted_names,
    grid_of,
    is_reduced,
    kind,
    match_calls,
    weight_of,
)

#: Ranges narrower than this are widened to it; PyTorch's observers do the same.
_SMALLEST_SCALE = torch.finfo(torch.float32).eps


def from_pt2e(
    converted: fx.GraphModule,
    model: nn.Module | ModelInfo,
    images: Tensor | Iterable[Tensor] | None = None,
    keep_float: Collection[str] = (),
    **info: Any,
) -> Artifact:
    """Reads a model that torchao's PT2E flow quantized into an artifact.

    Args:
        converted: What `convert_pt2e` returned for an exported float model of the zoo, quantized
            by `XNNPACKQuantizer` or `X86InductorQuantizer` (8 bits, static).
        model: The float model that was exported, or what it is.
        images: Calibration images, float32 [N, 3, H, W], of the size that was exported, or batches
            of them. With them, layers whose output the graph leaves in float get the range that
            these images give, and what rounds differently in an artifact is accepted. None takes
            over exact models only.
        keep_float: Layers that may have float weights.
        **info: Fields of `ModelInfo` to record, such as `backend="onednn"`, `classes=[...]`.

    Returns:
        The artifact. `info.recipe["changed"]` says, layer by layer, what is not exactly as in the
        graph.

    Raises:
        ArtifactError: The graph is not one of the model's architecture, a layer was left in float,
            or, without `images`, something in it has no exact counterpart; the message names it.
    """
    known = model if isinstance(model, ModelInfo) else model_info(model)
    entry = get_entry(known.architecture)
    if entry.aux:
        # In eval mode, as it was exported, the model computes no auxiliary classifiers.
        kwargs = {**known.builder_kwargs, "aux_logits": False}
        known = dataclasses.replace(known, builder_kwargs=kwargs)
    reader = _Reader(converted, known, keep_float)
    reader.read()
    if reader.changed and images is None:
        shown = "; ".join(f"{k}: {v}" for k, v in list(reader.changed.items())[:3])
        raise ArtifactError(
            f"{len(reader.changed)} layers of this model have no exact int8 form ({shown}). Pass "
            "images=... (calibration images) to have ranges measured and take the nearest form."
        )
    if images is not None:
        steps = REDUCED[1] if is_reduced(converted.graph) else 255
        batches = [images] if isinstance(images, Tensor) else images
        reader.measure(batches, lambda: _Ends(steps))
    known = dataclasses.replace(
        known,
        backend=known.backend or default_backend(),
        recipe={**known.recipe, "method": "PT2E"},
    )
    return reader.artifact(dataclasses.replace(known, **info))


class _Reader(GraphReader):
    """Reads a graph that rounds float values by operators, which say their grids."""

    rounds = QUANTIZE

    def __init__(
        self, module: fx.GraphModule, info: ModelInfo, keep_float: Collection[str]
    ) -> None:
        super().__init__(module, info)
        self.keep_float = keep_float

    def read(self) -> None:
        """Reads everything but ranges that are not in the graph."""
        found = match_calls(self.module.graph, self.recording)
        for node in self.module.graph.nodes:
            if node.target is QUANTIZE:
                self.grids |= dict.fromkeys([node, *self._dequantized(node)], grid_of(node))
        results, fixed = {}, {}
        for call, node in found.items():
            name = str(call.target)
            layer = self.layers.get(name) if call.op == "call_module" else None
            if layer is not None and layer.op in WEIGHTED_OPS:
                self._product(name, node)
            if layer is not None and layer.op in RANGED_OPS:
                results[name] = found[self._complete(call, layer.relu, found)]
            elif call.op != "placeholder" and self.is_fixed(node):
                fixed[call.meta["step"]] = node
        self.take_grids(results, fixed, set(found.values()))
        if is_reduced(self.module.graph):
            self.changed["activations"] = "they are clipped at 127 in the graph, here at 255"

    def kind(self, node: Node) -> str:
        """Returns the plain name of what a node computes, or ""."""
        return kind(node)

    def only_asks(self, node: Node) -> bool:
        """Whether a node asks for a value's shape."""
        return not kind(node) and node.op != "output"

    def readers(self, rounding: Node) -> list[Node]:
        """Returns what reads a rounded value, behind its dequantize."""
        return [reader for real in rounding.users for reader in real.users]

    def _dequantized(self, rounding: Node) -> list[Node]:
        return [user for user in rounding.users if user.target is DEQUANTIZE]

    def _complete(self, call: Node, relu: bool, found: dict[Node, Node]) -> Node:
        """Returns the call behind which a layer is complete: the ReLU that is folded into it."""
        while relu and kind(found[call]) != "relu":
            call = next(iter(call.users))
        return call

    def _product(self, name: str, node: Any) -> None:
        stack = list(dotted_names(node))
        # `fuse_model` before the export wraps a convolution and its ReLU in a Sequential.
        if stack and stack[-1] not in (name, f"{name}.0"):
            raise ArtifactError(
                f"The graph computes {stack[-1]!r} where the architecture computes {name!r}: it "
                "was exported from another model."
            )
        bias = node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
        real = None if bias is None else constant(self.module, bias)
        if name in self.keep_float and node.args[1].op == "get_attr":
            weight = constant(self.module, node.args[1])
            self.tensors |= float_weight_tensors(name, weight, real)
            self.layers[name] = dataclasses.replace(self.layers[name], float=True)
            return
        values, scale, zero_point = weight_of(self.module, node, name)
        self.tensors |= weight_tensors(name, values, scale, zero_point, real)


class _Ends:
    """Covers all values seen, as PyTorch's observers do, with a number of steps."""

    def __init__(self, steps: int) -> None:
        self.steps, self.low, self.high = steps, 0.0, 0.0

    def update(self, x: Tensor) -> None:
        """Takes note of a tensor."""
        self.low, self.high = min(self.low, float(x.min())), max(self.high, float(x.max()))

    def qparams(self) -> tuple[list[float], list[int]]:
        """Returns scale and zero point."""
        scale = max((self.high - self.low) / self.steps, _SMALLEST_SCALE)
        scale = Grid(scale, 0).single().scale
        return [scale], [min(self.steps, max(0, round(-self.low / scale)))]
