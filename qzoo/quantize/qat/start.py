"""What quantization-aware training starts from: float weights, calibration images, a PTQ result."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...artifact.format import Artifact
from ...artifact.layers import WEIGHTED_OPS
from ...errors import ArgumentError
from ...native.layers import float_weights
from ..state import Quantization, spread
from .layers import gain_of

#: A float weight this near to the integer that PTQ rounded to, in steps, is where it came from.
_NEAR = 1.0
#: Weights start no closer than this to where they would round to another integer, in steps.
_MARGIN = 0.01


def carry_over(state: Quantization, artifact: Artifact) -> dict[str, Tensor]:
    """Takes over ranges, weights and biases of a PTQ result, so that training starts as it answers.

    Weights stay those of the float model within the steps that PTQ rounded them to. Where they are
    from elsewhere, because a recipe rescaled layers, they start in the middle of a step.

    Args:
        state: The float model; its weights, biases and `ranges` are changed.
        artifact: The PTQ result.

    Returns:
        Layer name to the share of its largest weights that int8 reaches, float32 [C] or 0-d, where
        that is not all of it.

    Raises:
        ArgumentError: It is of another model, or its numbers are not of the backend's kind.
    """
    _check_same(state, artifact)
    clips = {}
    for name in state.weighted():
        layer = artifact.layers[name]
        weight, values = state.weight(name), artifact.tensors[f"{name}.weight"]
        bias = artifact.tensors.get(f"{name}.bias")
        if bias is not None:
            state.bias(name).copy_(bias)
        if layer.float:
            state.keep_float.add(name)
            weight.copy_(values)
            continue
        step = artifact.tensors[f"{name}.weight_scale"].float()
        along = spread(step, weight)
        integers = values.float()
        near = (weight / along - integers).abs() <= _NEAR
        inside = torch.clamp(weight / along, integers - 0.5 + _MARGIN, integers + 0.5 - _MARGIN)
        weight.copy_(torch.where(near, inside, integers) * along)
        reach = weight.abs().flatten(1).amax(1)
        reach = reach if step.dim() else reach.amax()
        clip = torch.where(reach > 0, step * 127 / reach, 1.0)
        if bool(((clip - 1).abs() > 1e-6).any()):
            clips[name] = clip
    for name in state.ranged():
        layer = artifact.layers[name]
        state.ranges[name] = (layer.scale, layer.zero_point)
    return clips


class Folded:
    """Gives training weights and biases with batch norm folded in."""

    def __init__(self, state: Quantization) -> None:
        self._state = state

    def __call__(self, name: str, norm: str | None) -> tuple[Tensor, Tensor | None]:
        """Returns weight and bias of the layer `name`."""
        return float_weights(self._state.fused, name)


class Unfolded:
    """Gives training weights and biases in front of batch norm.

    Args:
        state: The model; its weights and biases are those that the folded layers start with.
        plain: A copy of the float model with its batch norms.
        carried: Whether the state's numbers are a PTQ result's, and not just the float model's.

    Attributes:
        norms: Batch norms by name.
    """

    def __init__(self, state: Quantization, plain: nn.Module, carried: bool) -> None:
        self._state, self._plain, self._carried = state, plain, carried
        self.norms = {n: m for n, m in plain.named_modules() if isinstance(m, nn.BatchNorm2d)}

    def __call__(self, name: str, norm: str | None) -> tuple[Tensor, Tensor | None]:
        """Returns weight and bias of the layer `name`; what PTQ did to the bias goes to `norm`."""
        folded, folded_bias = float_weights(self._state.fused, name)
        if norm is None:
            return folded, folded_bias
        layer: Any = self._plain.get_submodule(name)
        if not self._carried:
            return layer.weight, layer.bias
        batch_norm = self.norms[norm]
        assert batch_norm.running_var is not None and batch_norm.running_mean is not None
        gain = gain_of(batch_norm.weight, batch_norm.running_var, batch_norm.eps)
        offset = (
            -batch_norm.running_mean if layer.bias is None else layer.bias - batch_norm.running_mean
        )
        if folded_bias is not None:
            batch_norm.bias.copy_(folded_bias - offset * gain)
        along = spread(gain, folded)
        # A channel that batch norm multiplies by 0 keeps its weights.
        return torch.where(along != 0, folded / along, layer.weight), layer.bias


def _check_same(state: Quantization, artifact: Artifact) -> None:
    info, other = state.info, artifact.info
    if info.architecture != other.architecture:
        raise ArgumentError(
            f"The PTQ result is a {other.architecture} and the float model a {info.architecture}: "
            "give the result of quantizing this model."
        )
    for name, layer in state.layers.items():
        found = artifact.layers.get(name)
        if layer.op not in WEIGHTED_OPS and found is None:
            continue  # graphs lack what does nothing or does not run
        shapes = [
            None if tensor is None else list(tensor.shape)
            for tensor in (
                state.weight(name) if layer.op in WEIGHTED_OPS else None,
                artifact.tensors.get(f"{name}.weight"),
            )
        ]
        if found is None or found.op != layer.op or shapes[0] != shapes[1]:
            raise ArgumentError(
                f"Layer {name!r} of the PTQ result does not fit the float model (weights "
                f"{shapes[1]} and {shapes[0]}): give the result of quantizing this model."
            )
        scale = artifact.tensors.get(f"{name}.weight_scale")
        if scale is not None and bool(scale.dim()) != state.backend.per_channel:
            raise ArgumentError(
                f"The PTQ result was made for the backend {other.backend}, whose weight scales are "
                f"not those of {state.backend.name}: leave backend out to keep it."
            )
        if f"{name}.weight_zero_point" in artifact.tensors:
            raise ArgumentError(
                f"Layer {name!r} of the PTQ result has weights with a zero point, which training "
                "does not have: quantize with qzoo.quantize.ptq."
            )
