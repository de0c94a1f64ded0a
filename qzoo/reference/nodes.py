"""The forward pass of an architecture as data: a recording as a graph without numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import fx, nn

from ..artifact.blueprints import Blueprint
from ..artifact.format import ModelInfo
from ..artifact.graph import INPUT
from ..artifact.layers import Layer
from ..errors import ArtifactError
from ..native.model import skeleton_of
from .trace import INPUT_AFFINE, Recording, record

#: Calls that hand on what they are given.
_NOTHING = frozenset({"contiguous", "dropout", "identity"})
#: What pools are set by, as PyTorch orders them.
_MAX_POOL = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
_AVG_POOL = (
    "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override",
)  # fmt: skip
_DEFAULTS = {
    "stride": None, "padding": 0, "dilation": 1, "ceil_mode": False, "count_include_pad": True,
    "divisor_override": None,
}  # fmt: skip


def blueprint(recording: Recording, layers: Mapping[str, Layer]) -> Blueprint:
    """Writes down which layer feeds which, and what each does besides its numbers.

    Args:
        recording: An architecture's forward pass.
        layers: Its layers, whose numbers do not matter.

    Raises:
        ArtifactError: The forward pass does something that no operation of the format does.
    """
    calls = _Writer(recording, layers).write()
    names = {call["name"] for call in calls}
    return Blueprint(calls, {n: layer.op for n, layer in layers.items() if n not in names})


def blueprint_of(info: ModelInfo, layers: Mapping[str, Layer]) -> Blueprint:
    """Records the forward pass of an artifact's architecture and writes it down.

    Raises:
        ArtifactError: The architecture or its keywords are unknown, or do not fit the layers.
    """
    return blueprint(record(skeleton_of(info), layers), layers)


class _Writer:
    """Turns recorded calls into entries; what moves nothing and computes nothing goes."""

    def __init__(self, recording: Recording, layers: Mapping[str, Layer]) -> None:
        self.layers, self.recording = layers, recording
        self.entries: dict[str, dict[str, Any]] = {}
        self.channels: dict[str, int] = {INPUT: 3}

    def write(self) -> list[dict[str, Any]]:
        """Returns the entries that lead to the output."""
        done: dict[fx.Node, Any] = {}
        for call in self.recording.graph.nodes:
            if call.op == "placeholder":
                done[call] = INPUT
            elif call.op == "output":
                return self._reaching(str(done[call.args[0]]))
            else:
                args = fx.map_arg(call.args, done.__getitem__)
                kwargs = fx.map_arg(call.kwargs, done.__getitem__)
                done[call] = self._call(call, *args, **kwargs)
        raise ArtifactError("The forward pass returns nothing.")

    def _reaching(self, output: str) -> list[dict[str, Any]]:
        needed = {output}
        for name, entry in reversed(self.entries.items()):
            if name in needed:
                needed.update(entry["inputs"])
        return [entry for name, entry in self.entries.items() if name in needed]

    def _call(self, call: fx.Node, *args: Any, **kwargs: Any) -> Any:
        name = str(call.meta["step"])
        if call.op != "call_module":
            return self._plain(call, *args, **kwargs)
        target = str(call.target)
        if target == INPUT_AFFINE:
            assert self.recording.affine is not None
            gain, offset = (value.tolist() for value in self.recording.affine)
            return self._add(name, "affine", args, gain=gain, offset=offset)
        layer, module = self.layers.get(target), self.recording.modules[target]
        if layer is not None:
            if name != target:
                raise ArtifactError(f"The architecture runs the layer {target!r} twice.")
            return self._layer(name, layer.op, module, *args)
        settings = {
            key: getattr(module, key)
            for key in (*_DEFAULTS, "kernel_size", "output_size")
            if hasattr(module, key)
        }
        return self._plain(call, *args, **settings)

    def _layer(self, name: str, op: str, module: Any, *args: Any) -> str:
        match op:
            case "identity" if isinstance(module, nn.ReLU):
                return self._add(name, "relu", args)  # if fused is for the layers to say
            case "dropout" | "identity":
                if isinstance(module, nn.BatchNorm2d):
                    self.entries[args[0]]["eps"] = module.eps
                return args[0]
            case "hardswish":
                return self._add(name, "table", args, function="hard_swish")
            case "functional":
                return self._functional(name, *args)
            case "linear":
                return self._add(name, op, args)
            case "conv2d":
                pairs = {key: list(getattr(module, key)) for key in ("stride", "dilation")}
                padding = [*module.padding, *module.padding]
                return self._add(name, op, args, **pairs, padding=padding, groups=module.groups)
        return self._add(name, op, args)

    def _functional(self, name: str, op: str, *args: Any) -> str:
        if op == "cat":
            xs, dim = args
            if dim != 1:
                raise ArtifactError(f"Layer {name!r} joins along dimension {dim}, not channels.")
            return self._add(name, "concat", xs)
        if op == "mul":
            return self._add(name, "mul", args)
        return self._add(name, "add", args, relu=op == "add_relu")

    def _plain(self, call: fx.Node, x: Any, *args: Any, **kwargs: Any) -> Any:
        kind = call.meta["kind"]
        if kind in _NOTHING:
            return x
        method = getattr(self, f"_plain_{kind}", None)
        if method is None:
            shown = call.target
            if call.op == "call_module":
                shown = f"{shown!r} ({type(self.recording.modules[str(shown)]).__name__})"
            raise ArtifactError(
                f"The architecture calls {shown}, which has no form in an artifact's graph."
            )
        return method(str(call.meta["step"]), x, *args, **kwargs)

    # What works on integers as they stand.

    def _plain_relu(self, name: str, x: str, **_: Any) -> str:
        return self._add(name, "relu", [x])

    def _plain_hardsigmoid(self, name: str, x: str, **_: Any) -> str:
        return self._add(name, "table", [x], function="hard_sigmoid")

    def _plain_max_pool2d(self, name: str, x: str, *args: Any, **kwargs: Any) -> str:
        kwargs.pop("return_indices", None)
        settings = _pool(_MAX_POOL, args, kwargs)
        return self._add(name, "max_pool2d", [x], **settings)

    def _plain_avg_pool2d(self, name: str, x: str, *args: Any, **kwargs: Any) -> str:
        settings = _pool(_AVG_POOL, args, kwargs)
        if settings.pop("divisor_override") is not None:
            raise ArtifactError(f"Layer {name!r} averages with a divisor of its own.")
        return self._add(name, "avg_pool2d", [x], **settings)

    def _plain_adaptive_avg_pool2d(self, name: str, x: str, output_size: Any, **_: Any) -> str:
        if _pair(output_size) != [1, 1]:
            raise ArtifactError(f"Layer {name!r} averages to {output_size}, not to 1 x 1.")
        return self._add(name, "mean", [x], keep_dimensions=True)

    def _plain_mean(self, name: str, x: str, dim: Any, keepdim: bool = False) -> str:
        if sorted(d % 4 for d in dim) != [2, 3]:
            raise ArtifactError(f"Layer {name!r} averages over dimensions {dim}, not 2 and 3.")
        return self._add(name, "mean", [x], keep_dimensions=keepdim)

    def _plain_flatten(self, name: str, x: str, start_dim: int = 0, end_dim: int = -1) -> str:
        if (start_dim, end_dim) != (1, -1):
            raise ArtifactError(f"Layer {name!r} flattens from dimension {start_dim}, not 1.")
        return self._add(name, "flatten", [x])

    def _plain_channel_shuffle(self, name: str, x: str, groups: int) -> str:
        return self._add(name, "channel_shuffle", [x], groups=groups)

    def _plain_chunk(self, name: str, x: str, chunks: int, dim: int = 0) -> list[Any]:
        if dim != 1:
            raise ArtifactError(f"Layer {name!r} splits along dimension {dim}, not channels.")
        channels = self.channels[x]
        size = -(-channels // chunks)
        return [(x, at, min(at + size, channels)) for at in range(0, channels, size)]

    def _plain_getitem(self, name: str, parts: list[Any], index: int) -> str:
        x, start, stop = parts[index]
        return self._add(name, "slice", [x], start=start, stop=stop)

    # Entries.

    def _add(self, name: str, op: str, inputs: Sequence[str], **attributes: Any) -> str:
        self.entries[name] = {"name": name, "op": op, "inputs": list(inputs), **attributes}
        if op in ("conv2d", "linear"):
            weight: Any = self.recording.modules[name].weight
            self.entries[name] |= {"weight": list(weight.shape), "relu": self.layers[name].relu}
            self.channels[name] = len(weight)
        elif op == "concat":
            self.channels[name] = sum(self.channels[x] for x in inputs)
        elif op == "slice":
            self.channels[name] = attributes["stop"] - attributes["start"]
        else:
            self.channels[name] = max(self.channels[x] for x in inputs)
        return name


def _pool(names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a pool's settings under the names of the format."""
    given = {**_DEFAULTS, **dict(zip(names, args, strict=False)), **kwargs}
    settings = {name: given[name] for name in names}
    settings["kernel"] = settings.pop("kernel_size")
    if settings["stride"] is None:
        settings["stride"] = settings["kernel"]
    for key in ("kernel", "stride", "padding", "dilation"):
        if key in settings:
            settings[key] = _pair(settings[key])
    return settings


def _pair(value: int | Sequence[int]) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)
