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

from .._core.process import plain_defaults
from ..artifact.format import Artifact, ModelInfo
from ..artifact.layers import RANGED_OPS, Layer, float_weight_tensors, weight_tensors
from ..backends import default_backend
from ..errors import ArtifactError
from ..models.plan import plan
from ..native.layers import check_fit
from ..native.model import model_info, package_versions
from ..reference.ops import QUANTIZE, Grid
from ..reference.rewrite import HARDSIGMOID_GRID
from ..reference.trace import Recording, record
from ..registry import get_entry
from .pt2e_graph import (
    REDUCED,
    constant,
    dotted_names,
    grid_of,
    grids_after,
    is_reduced,
    kind,
    match_calls,
    own_grid,
    weight_of,
)

#: Ranges narrower than this are widened to it; PyTorch's observers do the same.
_SMALLEST_SCALE = torch.finfo(torch.float32).eps
_AVERAGES = frozenset({"avg_pool2d", "adaptive_avg_pool2d", "mean"})


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
    _, layers = plan(entry, known.builder_kwargs)
    skeleton = entry.skeleton(known.builder_kwargs)
    recording = record(skeleton, layers)
    reader = _Reader(converted, recording, layers, keep_float)
    reader.read()
    if reader.changed and images is None:
        shown = "; ".join(f"{k}: {v}" for k, v in list(reader.changed.items())[:3])
        raise ArtifactError(
            f"{len(reader.changed)} layers of this model have no exact int8 form ({shown}). Pass "
            "images=... (calibration images) to have ranges measured and take the nearest form."
        )
    if images is not None:
        reader.measure([images] if isinstance(images, Tensor) else images)
    recipe = {**known.recipe, "method": "PT2E"}
    if reader.changed:
        recipe["changed"] = reader.changed
    backend = known.backend or default_backend()
    known = dataclasses.replace(known, backend=backend, recipe=recipe)
    known = dataclasses.replace(known, **info)
    skeleton = entry.skeleton(known.builder_kwargs)  # recording replaced the other one's parts
    check_fit(skeleton, reader.layers, reader.tensors)
    return Artifact(known, reader.layers, reader.tensors, package_versions())


class _Reader:
    """Collects layers and tensors from a graph.

    Attributes:
        layers: Module name to layer; those in `unknown` still lack their ranges.
        tensors: The artifact's tensors.
        changed: Layer name to what is not exactly as in the graph.
        unknown: Layer name to the node whose values decide its range.
    """

    def __init__(
        self,
        module: fx.GraphModule,
        recording: Recording,
        layers: dict[str, Layer],
        keep_float: Collection[str],
    ) -> None:
        self.module, self.recording, self.keep_float = module, recording, keep_float
        self.layers, self.tensors = dict(layers), dict[str, Tensor]()
        self.changed: dict[str, str] = {}
        self.unknown: dict[str, fx.Node] = {}

    def read(self) -> None:
        """Reads everything but ranges that are not in the graph."""
        found = match_calls(self.module.graph, self.recording, self.layers)
        results = self._results(found)
        for call, node in found.items():
            name = str(call.target)
            if call.op == "placeholder":
                continue
            layer = self.layers.get(name) if call.op == "call_module" else None
            if layer is not None and layer.op in ("conv2d", "linear"):
                self._product(name, node)
            if layer is not None and layer.op in RANGED_OPS:
                self._range(name, results[call])
            elif kind(node) in (*_AVERAGES, "hardsigmoid"):
                self._fixed(call.name, node)
        self._extra_roundings(set(results.values()))
        if is_reduced(self.module.graph):
            self.changed["activations"] = "they are clipped at 127 in the graph, here at 255"

    def _results(self, found: dict[Any, Any]) -> dict[Any, Any]:
        """Returns where each call's value is complete: behind the ReLU that was folded into it."""
        results = dict(found)
        for call in found:
            layer = self.layers.get(str(call.target)) if call.op == "call_module" else None
            if layer is None or not layer.relu:
                continue
            follower = call
            while kind(found[follower]) != "relu":
                follower = next(iter(follower.users))
            results[call] = found[follower]
        return results

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

    def _range(self, name: str, node: Any) -> None:
        direct = {grid_of(user) for user in node.users if user.target is QUANTIZE}
        grids, everywhere = grids_after(node)
        grids = direct or grids
        if len(grids) != 1:
            self.unknown[name] = node
            self.changed[name] = "its output is float in the graph; the range is measured"
            return
        (grid,) = grids
        self._set(name, grid)
        if not everywhere:
            self.changed[name] = "its output is read in float somewhere in the graph"

    def _fixed(self, name: str, node: Any) -> None:
        """Checks an operation that rounds to a grid which is not its own to choose."""
        grids, everywhere = grids_after(node)
        wanted = HARDSIGMOID_GRID if kind(node) == "hardsigmoid" else own_grid(node.args[0])
        if grids != {wanted} or not everywhere:
            what = "1/256" if kind(node) == "hardsigmoid" else "its input's steps"
            self.changed[name] = f"it is rounded to {what}"

    def _extra_roundings(self, results: set[Any]) -> None:
        """Finds roundings of the graph that no layer of an artifact does."""
        for node in self.module.graph.nodes:
            if node.target is not QUANTIZE or node.args[0] in results:
                continue
            source, grid = node.args[0], grid_of(node)
            if own_grid(source) in (grid, None) or all(
                kind(reader) == "cat" and grids_after(reader)[0] == {grid}
                for dequantized in node.users
                for reader in dequantized.users
            ):
                continue  # it changes nothing, is a layer's own, or happens in the concatenation
            self.changed[source.name] = "it is rounded twice in the graph"

    def _set(self, name: str, grid: Grid) -> None:
        self.layers[name] = dataclasses.replace(
            self.layers[name], scale=grid.scale, zero_point=grid.zero_point
        )

    def measure(self, batches: Iterable[Tensor]) -> None:
        """Gives the layers in `unknown` the ranges that images give.

        Raises:
            ArtifactError: The graph does not take these images.
        """
        if not self.unknown:
            return
        wanted = {node: name for name, node in self.unknown.items()}
        ranges: dict[str, tuple[float, float]] = {}

        class Ranges(fx.Interpreter):
            def run_node(self, n: fx.Node) -> Any:
                result = super().run_node(n)
                if n in wanted:
                    low, high = ranges.get(wanted[n], (0.0, 0.0))
                    found = float(result.min()), float(result.max())
                    ranges[wanted[n]] = (min(low, found[0]), max(high, found[1]))
                return result

        for images in batches:
            try:
                with torch.no_grad(), plain_defaults():
                    Ranges(self.module).run(images)
            except (RuntimeError, ValueError, AssertionError) as error:
                raise ArtifactError(
                    f"The quantized graph does not take images of the shape {tuple(images.shape)}: "
                    f"{str(error).strip()[:300]}"
                ) from None
        high = REDUCED[1] if is_reduced(self.module.graph) else 255
        for name, ends in ranges.items():
            self._set(name, _grid(*ends, high))


def _grid(low: float, high: float, steps: int) -> Grid:
    """Returns the grid of so many steps of a range that holds 0."""
    scale = torch.tensor(
        max((high - low) / steps, _SMALLEST_SCALE), dtype=torch.float32, device="cpu"
    ).item()
    return Grid(scale, min(steps, max(0, round(-low / scale))))
