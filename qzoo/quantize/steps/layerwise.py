"""The float and the int8 model side by side, one layer at a time.

How wrong an int8 layer is depends on the inputs that the int8 layers before it give. So both models
advance together: all images pass one layer, which may be repaired before its outputs go on. Every
layer is computed once, instead of once for each layer behind it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from tqdm import tqdm

from ...artifact.grid import HARDSIGMOID_GRID
from ...reference.run import compute, compute_weighted, last_uses, not_in_place
from ..state import Quantization

#: What the values between layers may take in memory, in bytes; it bounds the images used.
MEMORY = 1 << 30
#: Bytes for each value: 4 of the float model's float32, 1 of the int8 model's uint8.
_BYTES = 5


@dataclass(frozen=True)
class Integers:
    """A tensor on a grid, kept as uint8.

    Attributes:
        values: uint8, of the tensor's shape.
        scale: Step.
        zero_point: The integer that stands for 0.0.
    """

    values: Tensor
    scale: float
    zero_point: int

    @classmethod
    def of(cls, x: Tensor, scale: float, zero_point: int) -> Integers:
        """Rounds a float tensor as the int8 kernels do."""
        scale = float(torch.tensor(scale, dtype=torch.float32, device="cpu"))
        rounded = (x * (1 / scale)).round_().add_(zero_point).clamp_(0, 255)
        return cls(rounded.to(torch.uint8), scale, zero_point)

    def real(self) -> Tensor:
        """Returns the values, float32."""
        return self.values.float().sub_(self.zero_point).mul_(self.scale)


@dataclass(frozen=True)
class Site:
    """A layer with weights that both models have reached.

    Attributes:
        name: The layer's.
        float_inputs: What the float layer gets: a list of batches, float32.
        int8_inputs: What the int8 layer gets, batch by batch.
    """

    name: str
    float_inputs: list[Tensor]
    int8_inputs: list[Integers]


def walk(state: Quantization, visit: Callable[[Site], None], title: str) -> int:
    """Runs both models over calibration images, layer by layer.

    Args:
        state: The model, calibrated. The float model is `state.fused`; the int8 one has the
            ranges, weights and biases that `state` has when a layer is reached.
        visit: Called at every layer with weights that is not kept in float, in the order of the
            forward pass; may change that layer's `state.rounded` and `state.biases`.
        title: What the progress bar is called.

    Returns:
        How many images were used: no more than `MEMORY` holds. Where the calibration's time for
        such work is over, the layers that are left are not visited, which `state.notes` says.
    """
    if state.calibration.work_is_over():
        state.notes["stopped_early"] = title
        return 0
    pair = _Pair(state)
    nodes = list(state.recording.graph.nodes)
    last = last_uses(nodes)
    weighted = set(state.weighted()) - state.keep_float
    with torch.inference_mode():
        batches = _take(state, pair)
        floats: dict[fx.Node, list[Any]] = {}
        int8s: dict[fx.Node, list[Any]] = {}
        hidden = not state.progress
        for node in tqdm(nodes[:-1], desc=title, unit="layer", leave=False, disable=hidden):
            if node.op == "placeholder":
                floats[node] = int8s[node] = batches
                continue
            if node.op == "call_module" and str(node.target) in weighted:
                if state.calibration.work_is_over():
                    state.notes["stopped_early"] = title
                    break
                source = node.all_input_nodes[0]
                visit(Site(str(node.target), floats[source], int8s[source]))
            count = range(len(batches))
            floats[node] = [pair.float_call(node, _pick(floats, i)) for i in count]
            int8s[node] = [pair.int8_call(node, _pick(int8s, i)) for i in count]
            for done in last.get(node, ()):
                del floats[done], int8s[done]
    return sum(len(batch) for batch in batches)


def _pick(values: dict[fx.Node, list[Any]], batch: int) -> Callable[[fx.Node], Any]:
    return lambda node: values[node][batch]


class _Pair:
    """Computes single recorded calls of both models."""

    def __init__(self, state: Quantization) -> None:
        self.state = state
        self.weighted = set(state.weighted())
        not_in_place(state.fused)

    def float_call(self, node: fx.Node, value: Callable[[fx.Node], Any]) -> Any:
        """Returns what a call gives in the float model, given its arguments' values."""
        args, kwargs = (fx.map_arg(a, value) for a in (node.args, node.kwargs))
        return compute(self.state.fused, node, args, kwargs)

    def int8_call(self, node: fx.Node, value: Callable[[fx.Node], Any]) -> Any:
        """Returns what a call gives in the int8 model: integers, or floats before the first."""

        def real(source: fx.Node) -> Any:
            found = value(source)
            return found.real() if isinstance(found, Integers) else found

        name = str(node.target)
        args: Any = fx.map_arg(node.args, real)
        kwargs: Any = fx.map_arg(node.kwargs, real)
        if node.op == "call_module" and name in self.weighted:
            weight, bias = self.state.dequantized(name), self.state.int8_bias(name)
            result = compute_weighted(self.state.layers[name], args[0], weight, bias)
        else:
            result = compute(self.state.fused, node, args, kwargs)
        if node.op == "call_module" and name in self.state.ranges:
            grid: tuple[float, int] | None = self.state.ranges[name]
        elif node.meta["kind"] == "hardsigmoid":
            grid = (HARDSIGMOID_GRID.scale, HARDSIGMOID_GRID.zero_point)
        else:
            # All other calls move values about, which leaves them as they are, or average them
            # and round to their input's grid.
            source = value(node.all_input_nodes[0])
            grid = (source.scale, source.zero_point) if isinstance(source, Integers) else None
        if grid is None:
            return result
        if isinstance(result, (tuple, list)):
            return [Integers.of(part, *grid) for part in result]
        return Integers.of(result, *grid)


def _take(state: Quantization, pair: _Pair) -> list[Tensor]:
    """Returns as many batches of calibration images as fit into `MEMORY`."""
    most = state.calibration.count
    batches: list[Tensor] = []
    for batch in state.calibration:
        if not batches:
            most = max(1, min(most, MEMORY // _most_live(state, pair, batch[:1].clone())))
        batches.append(batch[: most - sum(len(b) for b in batches)])
        if sum(len(b) for b in batches) >= most:
            break
    return batches


def _most_live(state: Quantization, pair: _Pair, image: Tensor) -> int:
    """Returns how much memory one image's values take where they take most, in bytes."""
    nodes = list(state.recording.graph.nodes)
    last = last_uses(nodes)
    values: dict[fx.Node, Any] = {}
    most = 1
    for node in nodes[:-1]:
        first = node.op == "placeholder"
        values[node] = image if first else pair.float_call(node, values.__getitem__)
        # Parts of a split tensor share its memory.
        live = {
            id(t.untyped_storage()): t.untyped_storage().nbytes() // t.element_size()
            for v in values.values()
            for t in (v if isinstance(v, (tuple, list)) else [v])
        }
        most = max(most, _BYTES * sum(live.values()))
        for done in last.get(node, ()):
            del values[done]
    return most
