"""A float model on its way to int8: what the steps of a recipe read and change."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from .. import _torch_ao
from .._torch_ao_hooks import output_hooks
from ..artifact.format import Artifact, ModelInfo
from ..artifact.layers import RANGED_OPS, Layer, weight_tensors
from ..artifact.native import model_info, package_versions
from ..backends import Backend
from ..errors import ArgumentError, ArtifactError, QuantizationWarning, did_you_mean
from ..reference.trace import Recording, record
from ..registry import get_entry
from .data import Calibration
from .observers import Grid

#: Weights are symmetric, without the -128 that has no positive counterpart.
WEIGHT_GRID = Grid(-127, 127, symmetric=True)


class Quantization:
    """A model on its way from float to int8.

    Attributes:
        fused: The float model with batch norm folded into convolutions, a copy of the user's, on
            the CPU in eval mode; steps may change its weights and biases in place.
        info: What the model is.
        backend: The numeric configuration to quantize for.
        grid: The integers of activations: 8 bits, or 7 with a reduced range.
        calibration: The images.
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
        reduce_range: bool = False,
        progress: bool = True,
    ) -> None:
        self.fused = fused_copy(model)
        self.grid = Grid(0, 127 if reduce_range else 255)
        self.backend, self.calibration, self.progress = backend, calibration, progress
        self.layers = fused_layers(self.fused)
        self.info = int8_info(model, self.layers, self.fused, backend)
        self.recording: Recording = record_forward(self.info, self.layers)
        self.keep_float = match_layers(keep_float, self.weighted())
        self.ranges: dict[str, tuple[float, int]] = {}
        self.weight_scales: dict[str, Tensor] = {}
        self.rounded: dict[str, Tensor] = {}
        self.biases: dict[str, Tensor] = {}
        self.notes: dict[str, Any] = {}

    # The layers.

    def weighted(self) -> list[str]:
        """Returns the names of the layers with weights: convolutions and linear ones."""
        return [n for n, layer in self.layers.items() if layer.op in ("conv2d", "linear")]

    def ranged(self) -> list[str]:
        """Returns the names of the layers that run and have an output range of their own."""
        return ranged_layers(self.recording, self.layers)

    def weight(self, name: str) -> Tensor:
        """Returns the float weight of a layer; writing into it changes the model."""
        return _torch_ao.float_weights(self.fused, name)[0].data

    def bias(self, name: str) -> Tensor:
        """Returns the float bias of a layer, float32 [C]; writing into it changes the model.

        A layer without one gets zeros.
        """
        bias = _torch_ao.float_weights(self.fused, name)[1]
        if bias is None:
            zeros = torch.zeros(len(self.weight(name)), dtype=torch.float32, device="cpu")
            bias = _torch_ao.set_float_bias(self.fused, name, zeros)
        return bias.data

    def int8_bias(self, name: str) -> Tensor | None:
        """Returns the bias that the int8 layer adds, float32 [C], or None."""
        if name in self.biases:
            return self.biases[name]
        bias = _torch_ao.float_weights(self.fused, name)[1]
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
        tensors: dict[str, Tensor] = {}
        if missing := [name for name in self.ranged() if name not in self.ranges]:
            raise ArgumentError(
                f"Layer {missing[0]!r} never ran during calibration, so its range is unknown: "
                "calibrate on images that take the model's usual path."
            )
        for name, layer in self.layers.items():
            if name in self.ranges:
                scale, zero_point = self.ranges[name]
                layer = dataclasses.replace(layer, scale=scale, zero_point=zero_point)
            if layer.op in ("conv2d", "linear"):
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
        return Artifact(self.info, layers, tensors, package_versions())


def fused_copy(model: nn.Module) -> nn.Module:
    """Returns a copy of a float model of the zoo in eval mode, batch norm folded, on the CPU.

    Raises:
        ArgumentError: The model is already int8, or is not one that can be fused.
        ArtifactError: The model does not come from one of qzoo's builders.
    """
    return fuse(float_copy(model, stacklevel=5))


def float_copy(model: nn.Module, stacklevel: int = 4) -> nn.Module:
    """Returns a copy of a float model of the zoo in eval mode, without gradients, on the CPU.

    Hooks and auxiliary classifiers are left out.

    Args:
        model: The model.
        stacklevel: How far up the caller is whom warnings are meant for.

    Raises:
        ArgumentError: The model is already int8.
        ArtifactError: The model does not come from one of qzoo's builders.
    """
    model_info(model)
    if _torch_ao.is_quantized(model):
        raise ArgumentError(
            "This model is already int8: quantize the float model that it was made from."
        )
    if any(p.is_meta for p in model.parameters()):
        raise ArgumentError(
            'This model is on the device "meta", where weights hold no values: build it on the CPU '
            'and load its weights there (with torch.device("cpu"): ...).'
        )
    if model.training:
        warnings.warn(
            "The model is in train mode; a copy in eval mode is quantized, without dropout and "
            "with the batch norms' running statistics.",
            QuantizationWarning,
            stacklevel=stacklevel,
        )
    plain: Any = copy.deepcopy(model).cpu().float().eval()
    # The auxiliary classifiers of 2015 only help training.
    for attribute in get_entry(model_info(model).architecture).aux:
        setattr(plain, attribute, None)
        plain.aux_logits = False
    for module in plain.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    return plain.requires_grad_(False)


def fuse(plain: nn.Module) -> nn.Module:
    """Folds batch norm into convolutions, in place, and returns the model.

    Raises:
        ArgumentError: The model is not one that can be fused.
    """
    fused: Any = plain
    try:
        fused.fuse_model(is_qat=False)
    except (AttributeError, NotImplementedError, TypeError, AssertionError) as error:
        raise ArgumentError(
            f"This {type(plain).__name__} cannot be fused ({error}): a subclass that changes "
            "blocks needs a fuse_model(is_qat=None) that fits them."
        ) from None
    return fused.requires_grad_(False)


def fused_layers(fused: nn.Module) -> dict[str, Layer]:
    """Returns the layers that a fused float model will have once it is int8, without ranges.

    Raises:
        ArgumentError: A part of it has no int8 form.
    """
    try:
        return _torch_ao.plan_layers(fused)
    except ArtifactError as error:
        raise ArgumentError(f"This model cannot be quantized: {error}") from None


def record_forward(info: ModelInfo, layers: Mapping[str, Layer]) -> Recording:
    """Returns the forward pass that an architecture's models have.

    Args:
        info: What the int8 model will be.
        layers: What `plan_layers` says of the fused float model.

    Raises:
        ArgumentError: The float model's layers are not those of the architecture.
    """
    skeleton = get_entry(info.architecture).skeleton(info.builder_kwargs)
    kinds = (nn.Conv2d, nn.Linear)
    wanted = [name for name, module in skeleton.named_modules() if isinstance(module, kinds)]
    if lacking := [name for name in wanted if name not in layers]:
        raise ArgumentError(
            f"This model cannot be quantized: its layer {lacking[0]!r} is not what "
            f"{info.architecture} has there. Keep the builder's layers; a new head should be one "
            "Linear."
        )
    try:
        return record(skeleton, layers)
    except ArtifactError as error:
        raise ArgumentError(f"This model cannot be quantized: {error}") from None


def ranged_layers(recording: Recording, layers: Mapping[str, Layer]) -> list[str]:
    """Returns the names of the layers that run and have an output range of their own."""
    running = {str(n.target) for n in recording.graph.nodes if n.op == "call_module"}
    return [n for n, layer in layers.items() if layer.op in RANGED_OPS and n in running]


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
                f"{pattern!r} matches no layer with weights: there are {names[0]}, ..., "
                f"{names[-1]}." + did_you_mean(pattern, names)
            )
        found |= matched
    return found


def spread(scale: Tensor, weight: Tensor) -> Tensor:
    """Returns a scale, [C] or 0-d, in a shape that multiplies a weight [C, ...]."""
    return scale.reshape(-1, *[1] * (weight.dim() - 1)) if scale.dim() else scale


def int8_info(
    model: nn.Module, layers: dict[str, Layer], fused: nn.Module, backend: Backend
) -> ModelInfo:
    """Returns what the int8 model of a float one will be, which may have a head of its own.

    Args:
        model: The float model.
        layers: What `plan_layers` says of its fused copy.
        fused: That copy.
        backend: The numeric configuration.
    """
    info = model_info(model)
    kwargs = dict(info.builder_kwargs)
    if get_entry(info.architecture).aux:
        kwargs["aux_logits"] = False
    head = next(n for n in reversed(layers) if layers[n].op == "linear")
    logits = len(_torch_ao.float_weights(fused, head)[0])
    classes = info.classes
    if logits != kwargs.get("num_classes", 1000):
        kwargs["num_classes"] = logits
        classes = None
    return dataclasses.replace(
        info, builder_kwargs=kwargs, classes=classes, backend=backend.name, metrics={}
    )
