"""The layers of a float model that is to be quantized, and what its int8 model will be."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from ...artifact.format import ModelInfo
from ...artifact.layers import RANGED_OPS, WEIGHTED_OPS, Layer, weighted_layers
from ...backends import Backend
from ...errors import ArgumentError, ArtifactError
from ...native.layers import check_fit, float_weights, plan_layers
from ...native.model import model_info
from ...reference.trace import Recording, record
from ...registry import get_entry
from .float_model import unlike_builder


@dataclass(frozen=True)
class Source:
    """A float model of the zoo, found to compute what its int8 model will.

    Attributes:
        plain: A copy in eval mode on the CPU, without hooks and auxiliary classifiers.
        fused: The same with batch norm folded.
        layers: Module name to layer, without ranges, in the architecture's order.
        info: What the int8 model will be.
        recording: The architecture's forward pass: which layer feeds which.
    """

    plain: nn.Module
    fused: nn.Module
    layers: dict[str, Layer]
    info: ModelInfo
    recording: Recording


def fused_layers(fused: nn.Module) -> dict[str, Layer]:
    """Returns the layers that a fused float model will have once it is int8, without ranges.

    Raises:
        ArgumentError: A part of it has no int8 form.
    """
    try:
        return plan_layers(fused)
    except ArtifactError as error:
        raise ArgumentError(f"This model cannot be quantized: {error}") from None


def record_forward(info: ModelInfo, layers: Mapping[str, Layer]) -> Recording:
    """Returns the forward pass that an architecture's models have."""
    return record(_skeleton(info), layers)


def _skeleton(info: ModelInfo) -> nn.Module:
    return get_entry(info.architecture).skeleton(info.builder_kwargs)


def check_layers(
    plain: nn.Module, fused: nn.Module, info: ModelInfo, layers: dict[str, Layer]
) -> None:
    """Checks that a float model's layers are those of its architecture.

    Args:
        plain: The float model.
        fused: A copy with batch norm folded.
        info: What the int8 model will be.
        layers: What `plan_layers` says of `fused`; a dropout that was replaced by an identity,
            which is the same in eval mode, becomes one again.

    Raises:
        ArgumentError: They are not; the message names one.
    """
    skeleton = _skeleton(info)
    for name, module in skeleton.named_modules():
        found = layers.get(name)
        if isinstance(module, nn.Dropout) and found == Layer("identity"):
            layers[name] = Layer("dropout")
        lacking = found is None or found.op not in WEIGHTED_OPS
        if isinstance(module, (nn.Conv2d, nn.Linear)) and lacking:
            raise ArgumentError(
                f"This model cannot be quantized: its layer {name!r} is not what "
                f"{info.architecture} has there. Keep the builder's layers; a new head should be "
                "one Linear."
            )
    weights = {f"{n}.weight": float_weights(fused, n)[0] for n in weighted_layers(layers)}
    try:
        check_fit(skeleton, layers, weights)
    except ArtifactError as error:
        reason = unlike_builder(plain) or str(error).rstrip(".")
        raise ArgumentError(
            f"This model cannot be quantized: {reason}. An int8 model has its architecture's "
            "layers and no others."
        ) from None


def int8_info(
    model: nn.Module, layers: dict[str, Layer], fused: nn.Module, backend: Backend
) -> ModelInfo:
    """Returns what the int8 model of a float one will be, which may have a head of its own."""
    info = model_info(model)
    kwargs = dict(info.builder_kwargs)
    if get_entry(info.architecture).aux:
        kwargs["aux_logits"] = False
    classes = info.classes
    heads = [name for name, layer in layers.items() if layer.op == "linear"]
    logits = len(float_weights(fused, heads[-1])[0]) if heads else None
    if heads and logits != kwargs.get("num_classes", 1000):
        kwargs["num_classes"] = logits
        classes = None
    return dataclasses.replace(
        info, builder_kwargs=kwargs, classes=classes, backend=backend.name, metrics={}
    )


def ranged_layers(recording: Recording, layers: Mapping[str, Layer]) -> list[str]:
    """Returns the names of the layers that run and have an output range of their own."""
    running = {str(n.target) for n in recording.graph.nodes if n.op == "call_module"}
    return [n for n, layer in layers.items() if layer.op in RANGED_OPS and n in running]
