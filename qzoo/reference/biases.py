"""Biases that fit into 32 bits, which runtimes that add them as integers need.

ONNX Runtime, XNNPACK (ExecuTorch) and QNNPACK round a layer's bias to an integer of the scale that
its sums have, weight scale times input scale, without a look at the range. A channel of next to no
weight has a tiny scale, and its bias would wrap around.
"""

from __future__ import annotations

import dataclasses

from torch import Tensor

from ..artifact.format import Artifact
from ..artifact.grid import HARDSIGMOID_GRID
from ..artifact.layers import raised

#: Largest bias in steps of the sums that it joins; as much again is left for the sums.
BIAS_MAX = 2**30


def with_room_for_biases(artifact: Artifact) -> Artifact:
    """Returns an artifact whose biases are integers of at most `BIAS_MAX` steps: mostly itself."""
    finest = min([HARDSIGMOID_GRID.scale, *(layer.scale for layer in artifact.layers.values())])
    suspects = [name for name in artifact.layers if _lacking(artifact, name, finest)]
    if not suspects:
        return artifact
    nodes = {node.name: node for node in artifact.graph.nodes}
    tensors = dict(artifact.tensors)
    for name in suspects:
        source = nodes[nodes[name].inputs[0]] if name in nodes else None
        if source is None or source.grid is None:
            continue
        grid = source.grid.single()
        if not _lacking(artifact, name, grid.scale):
            continue
        weight, scale, zero_point = widened(
            tensors[f"{name}.weight"],
            tensors[f"{name}.weight_scale"].float(),
            tensors.pop(f"{name}.weight_zero_point", None),
            tensors[f"{name}.bias"],
            grid.scale,
        )
        tensors |= {f"{name}.weight": weight, f"{name}.weight_scale": scale}
        if zero_point is not None:
            tensors[f"{name}.weight_zero_point"] = zero_point
    changed = any(tensors.get(key) is not value for key, value in artifact.tensors.items())
    return dataclasses.replace(artifact, tensors=tensors) if changed else artifact


def widened(
    weight: Tensor, scale: Tensor, zero_point: Tensor | None, bias: Tensor, input_scale: float
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Widens the scales of channels whose bias would not fit into 32 bits at the sums' scale.

    What their weights lose by it is far below a step of the output, whose range the bias is in.

    Args:
        weight: int8, output channels first.
        scale: Float32 [C] or 0-d.
        zero_point: Integers of the same shape as `scale`, or None.
        bias: Float32 [C].
        input_scale: Step of the layer's input.

    Returns:
        Weight, scale and zero point, [C] where a bias did not fit; else what was given.
    """
    weight, scale = raised(weight, scale, zero_point, _least_scale(bias, input_scale))
    if zero_point is not None:
        zero_point = zero_point.expand(scale.shape).contiguous()
    return weight, scale, zero_point


def _lacking(artifact: Artifact, name: str, input_scale: float) -> bool:
    """Whether a layer has a bias that does not fit, if its input has steps of this size."""
    bias = artifact.tensors.get(f"{name}.bias")
    scale = artifact.tensors.get(f"{name}.weight_scale")
    if bias is None or scale is None:
        return False
    return bool((_least_scale(bias, input_scale) > scale).any())


def _least_scale(bias: Tensor, input_scale: float) -> Tensor:
    return bias.abs() / (BIAS_MAX * input_scale)
