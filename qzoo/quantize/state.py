"""A float model on its way to int8: what the steps of a recipe read and change."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from .._core.versions import package_versions
from ..artifact.biases import with_room_for_biases
from ..artifact.format import Artifact
from ..artifact.layers import WEIGHTED_OPS, Layer, weight_tensors, weighted_layers
from ..backends import Backend
from ..errors import ArgumentError, did_you_mean, listed
from ..native.hooks import output_hooks
from ..native.layers import float_weights, set_float_bias
from .data import Calibration
from .observers import IntegerRange
from .source import open_source, ranged_layers
from .source.float_model import fused_copy as fused_copy

#: Weights are symmetric, without the -128 that has no positive counterpart.
WEIGHT_GRID = IntegerRange(-127, 127, symmetric=True)


class Quantization:
    """A model on its way from float to int8.

    Attributes:
        fused: The float model with batch norm folded into convolutions, a copy of the user's, on
            the CPU in eval mode; steps may change its weights and biases in place.
        info: What the model is.
        backend: The numeric configuration to quantize for.
        grid: The integers of activations: 8 bits, or 7 with a reduced range.
        calibration: The images, or none where no step needs any.
        layers: Module name to layer, without ranges, in the architecture's order.
        recording: Which layer feeds which.
        ranges: Module name to scale and zero point of the layer's uint8 output.
        weight_scales: Module name to weight scale, float32 [C] or 0-d.
        rounded: Module name to int8 weight, where it is not just rounded to nearest.
        biases: Module name to the int8 layer's bias, float32 [C], where it is not the float one's.
        keep_float: Names of the layers whose weights stay float.
        notes: What steps did, for the artifact's recipe; JSON values.
    """

    def __init__(
        self,
        model: nn.Module,
        backend: Backend,
        calibration: Calibration,
        keep_float: Sequence[str] = (),
        progress: bool = True,
    ) -> None:
        source = open_source(model, backend, calibration)
        self.fused, self.layers = source.fused, source.layers
        self.info, self.recording = source.info, source.recording
        self.grid = IntegerRange(0, backend.activation_max)
        self.backend, self.calibration, self.progress = backend, calibration, progress
        self.keep_float = match_layers(keep_float, self.weighted())
        self.ranges: dict[str, tuple[float, int]] = {}
        self.weight_scales: dict[str, Tensor] = {}
        self.rounded: dict[str, Tensor] = {}
        self.biases: dict[str, Tensor] = {}
        self.notes: dict[str, Any] = {}

    # The layers.

    def weighted(self) -> list[str]:
        """Returns the names of the layers with weights: convolutions and linear ones."""
        return weighted_layers(self.layers)

    def ranged(self) -> list[str]:
        """Returns the names of the layers that run and have an output range of their own."""
        return ranged_layers(self.recording, self.layers)

    def weight(self, name: str) -> Tensor:
        """Returns the float weight of a layer; writing into it changes the model."""
        return float_weights(self.fused, name)[0].data

    def bias(self, name: str) -> Tensor:
        """Returns the float bias of a layer, float32 [C]; writing into it changes the model.

        A layer without one gets zeros.
        """
        bias = float_weights(self.fused, name)[1]
        if bias is None:
            zeros = torch.zeros(len(self.weight(name)), dtype=torch.float32, device="cpu")
            bias = set_float_bias(self.fused, name, zeros)
        return bias.data

    def int8_bias(self, name: str) -> Tensor | None:
        """Returns the bias that the int8 layer adds, float32 [C], or None."""
        if name in self.biases:
            return self.biases[name]
        bias = float_weights(self.fused, name)[1]
        return None if bias is None else bias.data

    def integers(self, name: str) -> Tensor:
        """Returns the int8 weight of a layer."""
        if name in self.rounded:
            return self.rounded[name]
        weight = self.weight(name)
        scale = spread(self.weight_scales[name], weight)
        return (weight / scale).round().clamp(WEIGHT_GRID.low, WEIGHT_GRID.high).to(torch.int8)

    def dequantized(self, name: str) -> Tensor:
        """Returns the weight that the int8 layer computes with, float32; its own if kept float."""
        if name in self.keep_float:
            return self.weight(name)
        return self.integers(name).float() * spread(self.weight_scales[name], self.weight(name))

    # Watching layers.

    @contextmanager
    def watching(self, watch: Any) -> Iterator[None]:
        """Calls `watch(name, output)` after each ranged layer; a tensor it returns replaces it."""
        with output_hooks(self.fused, self.ranged(), watch):
            yield

    # The result.

    def artifact(self) -> Artifact:
        """Returns the int8 artifact of the numbers chosen so far.

        Raises:
            ArgumentError: A layer has no range: it never ran while calibrating.
        """
        layers: dict[str, Layer] = {}
        tensors: dict[str, Any] = {}
        if missing := [name for name in self.ranged() if name not in self.ranges]:
            raise ArgumentError(
                f"Layer {missing[0]!r} never ran during calibration, so its range is unknown: "
                "calibrate on images that take the model's usual path."
            )
        for name, layer in self.layers.items():
            if name in self.ranges:
                scale, zero_point = self.ranges[name]
                layer = dataclasses.replace(layer, scale=scale, zero_point=zero_point)
            if layer.op in WEIGHTED_OPS:
                bias = self.int8_bias(name)
                if name in self.keep_float:
                    layer = dataclasses.replace(layer, float=True)
                    tensors[f"{name}.weight"] = self.weight(name).clone()
                    if bias is not None:
                        tensors[f"{name}.bias"] = bias.clone()
                else:
                    scales = self.weight_scales[name]
                    zeros = torch.zeros_like(scales, dtype=torch.int64)
                    values = self.integers(name)
                    own = None if bias is None else bias.clone()
                    tensors |= weight_tensors(name, values, scales, zeros, own)
            layers[name] = layer
        artifact = Artifact(self.info, layers, tensors, package_versions())
        return with_room_for_biases(artifact)


def match_layers(patterns: Sequence[str], names: Sequence[str]) -> set[str]:
    """Returns the layers that names or shell patterns ("layer4.*") stand for.

    Raises:
        ArgumentError: One of them matches no layer.
    """
    if isinstance(patterns, str):
        patterns = [patterns]
    found = set()
    for pattern in patterns:
        matched = {name for name in names if fnmatchcase(name, pattern)}
        if not matched:
            raise ArgumentError(
                f"{pattern!r} matches no layer with weights: there are {listed(names)}."
                + did_you_mean(pattern, names)
            )
        found |= matched
    return found


def spread(scale: Tensor, weight: Tensor) -> Tensor:
    """Returns a scale, [C] or 0-d, in a shape that multiplies a weight [C, ...]."""
    return scale.reshape(-1, *[1] * (weight.dim() - 1)) if scale.dim() else scale
