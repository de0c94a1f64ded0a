"""From a model in quantization-aware training to the int8 artifact."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...artifact.format import Artifact
from ...artifact.layers import SMALLEST_SCALE
from ...errors import ArgumentError
from ..source.float_model import is_finite
from ..state import Quantization, spread
from .fake_quantize import WEIGHT_MAX
from .layers import Weighted, gain_of

if TYPE_CHECKING:
    from .model import QatModel

_TINY = torch.finfo(torch.float32).tiny


def build_artifact(model: QatModel) -> Artifact:
    """Returns the artifact of the numbers that a model computes with in eval mode.

    Raises:
        ArgumentError: It has no ranges yet, or its training diverged.
    """
    ranges = model.ranges
    scales, zero_points = ranges.scale.detach().abs().tolist(), ranges.zero_point.tolist()
    if not all(scales):
        raise ArgumentError(
            "This model has no ranges yet, so there is nothing to convert: train it for a step, or "
            "give prepare calibration images (data=) or a PTQ result (from_ptq=)."
        )
    check_converged([*model.named_parameters(), *model.named_buffers()])
    state = model.plan.fresh_state()
    with torch.no_grad():
        for name in state.weighted():
            layer: Any = model.get_submodule(name)
            norm = model.plan.folds.get(name)
            _write(state, name, layer, None if norm is None else model.get_submodule(norm))
    for name, index in model.plan.index.items():
        state.ranges[name] = (max(scales[index], SMALLEST_SCALE), zero_points[index])
    notes = {**model.plan.notes, "observed_batches": int(ranges.batches)}
    info = dataclasses.replace(state.info, recipe={**state.info.recipe, **notes})
    return dataclasses.replace(state.artifact(), info=info)


def check_converged(tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Checks that what a model in training consists of is finite.

    Raises:
        ArgumentError: A tensor is not; the message names it.
    """
    for name, tensor in tensors:
        if not is_finite(tensor):
            raise ArgumentError(
                f"The tensor {name!r} of this model has values that are not finite numbers: its "
                "training diverged. Go back to an earlier checkpoint and lower the learning rate."
            )


def _write(state: Quantization, name: str, layer: Weighted, norm: Any) -> None:
    """Writes one layer's numbers, batch norm folded in."""
    weight = layer.weight.cpu().float()
    bias: Tensor | None = layer.bias  # type: ignore[assignment]
    bias = None if bias is None else bias.cpu().float()
    gain = None
    if norm is not None:
        gain = gain_of(norm.weight, norm.running_var, norm.eps)
        offset = -norm.running_mean if bias is None else bias - norm.running_mean.cpu()
        bias = (norm.bias + offset.to(norm.bias) * gain).cpu()
    if bias is not None:
        state.bias(name).copy_(bias)
    if name not in state.keep_float:
        # The same arithmetic as in training, so that ties are rounded alike.
        steps = layer.weight * (1.0 / layer.channel_step(gain))
        integers = steps.round_().clamp_(-WEIGHT_MAX, WEIGHT_MAX).cpu()
        step = layer.own_step(gain).cpu()
        if gain is not None:
            integers *= spread(gain.cpu().sign(), weight)
            if layer.per_channel:
                step = torch.where(gain.cpu() != 0, step * gain.cpu().abs(), 1.0)
        state.weight_scales[name] = step.clamp(min=_TINY)
        state.rounded[name] = integers.to(torch.int8)
    if gain is not None:
        weight = weight * spread(gain.cpu(), weight)
    state.weight(name).copy_(weight)
