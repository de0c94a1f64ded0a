"""Which channels of a model are the same channel: what must be scaled together.

A channel of one layer's output is an input channel of the layers that read it; through an addition
it is tied to a channel of another layer, and through concatenations, splits and shuffles it changes
its place. The forward pass is walked once with a number in place of each channel.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from ...reference.trace import INPUT_AFFINE
from ..state import Quantization

#: The group of all channels that cannot be scaled: images, logits, gates, hard swish.
FIXED = 0


class Channels:
    """Groups of channels that one factor scales, so that the model's outputs stay the same.

    A group is scaled by dividing the weights that read it and multiplying the weights that make
    it. ReLU, pools, additions, concatenations and products with a gate let factors above 0 pass.

    Attributes:
        inputs: Weighted layer to the group of each input channel, int64 [C of all groups].
        outputs: Ranged layer to the group of each output channel, int64 [C].
        count: Number of groups; `FIXED` is one of them.
    """

    def __init__(self, state: Quantization) -> None:
        self._leader = [FIXED]
        self._state = state
        inputs: dict[str, list[int]] = {}
        outputs: dict[str, list[int]] = {}
        values: dict[fx.Node, Any] = {}
        for node in state.recording.graph.nodes:
            args = fx.map_arg(node.args, values.__getitem__)
            if node.op == "placeholder":
                values[node] = [FIXED] * 3
            elif node.op == "output":
                self._fix(args[0])
            elif node.op == "call_module":
                values[node] = self._module(str(node.target), args, inputs, outputs)
            else:
                values[node] = self._function(node, args)
        roots = {name: [self._find(c) for c in found] for name, found in outputs.items()}
        reads = {name: [self._find(c) for c in found] for name, found in inputs.items()}
        kept = sorted({FIXED, *(c for found in roots.values() for c in found)})
        number = {root: i for i, root in enumerate(kept)}
        self.outputs = {
            n: torch.tensor([number[c] for c in f], dtype=torch.int64, device="cpu")
            for n, f in roots.items()
        }
        self.inputs = {
            n: torch.tensor([number[c] for c in f], dtype=torch.int64, device="cpu")
            for n, f in reads.items()
        }
        self.count = len(kept)

    def _module(self, name: str, args: Any, inputs: Any, outputs: Any) -> list[int]:
        layer = self._state.layers.get(name)
        if name == INPUT_AFFINE or layer is None:
            module = self._state.recording.modules.get(name)
            if isinstance(module, nn.Hardsigmoid):
                return self._fix(args[0])
            return args[0]
        match layer.op:
            case "conv2d" | "linear":
                weight = self._state.weight(name)
                read = args[0]
                if layer.op == "linear":  # flattened maps: every channel's pixels in a row
                    read = [c for c in read for _ in range(weight.shape[1] // len(read))]
                found = [self._new() for _ in range(len(weight))]
                for known, value in ((inputs, read), (outputs, found)):
                    for a, b in zip(known.setdefault(name, value), value, strict=True):
                        self._join(a, b)
            case "functional":
                found = self._functional(*args)
            case "quantize" | "hardswish":
                found = self._fix(args[0])
            case _:
                return args[0]
        return outputs.setdefault(name, found)

    def _functional(self, op: str, first: Any, second: Any) -> list[int]:
        if op == "cat":
            if second != 1:
                return self._fix([c for part in first for c in part])
            return [c for part in first for c in part]
        if op == "mul":
            # One factor keeps its scale, so that the product has the other's.
            self._fix(first)
            return second
        for a, b in zip(first, second, strict=True):
            self._join(a, b)
        return first

    def _function(self, node: fx.Node, args: Any) -> Any:
        x, *rest = args
        if node.meta["kind"] == "chunk":
            dim = node.kwargs.get("dim", rest[1] if len(rest) > 1 else 0)
            if dim != 1:
                return [self._fix(x)] * rest[0]
            size = -(-len(x) // rest[0])
            return [x[i : i + size] for i in range(0, len(x), size)]
        if node.meta["kind"] == "getitem":
            return x[rest[0]]
        if node.meta["kind"] == "channel_shuffle":
            size = len(x) // rest[0]
            return [x[g * size + i] for i in range(size) for g in range(rest[0])]
        return x

    # Union-find.

    def _new(self) -> int:
        self._leader.append(len(self._leader))
        return len(self._leader) - 1

    def _find(self, c: int) -> int:
        while self._leader[c] != c:
            self._leader[c] = self._leader[self._leader[c]]
            c = self._leader[c]
        return c

    def _join(self, a: int, b: int) -> None:
        low, high = sorted((self._find(a), self._find(b)))
        self._leader[high] = low  # so that FIXED, the lowest, stays the leader

    def _fix(self, channels: list[int]) -> list[int]:
        for c in channels:
            self._join(c, FIXED)
        return channels
