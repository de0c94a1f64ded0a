"""Biases that fit into 32 bits, which runtimes that add them as integers need.

ONNX Runtime, XNNPACK (ExecuTorch) and QNNPACK round a layer's bias to an integer of the scale that
its sums have, weight scale times input scale, without a look at the range. A channel of next to no
weight has a tiny scale, and its bias would wrap around.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from .format import Artifact
from .grid import HARDSIGMOID_GRID
from .layers import raised
from .tensors import Tensors

#: Largest bias in steps of the sums that it joins; as much again is left for the sums.
BIAS_MAX = 2**30


def with_room_for_biases(artifact: Artifact) -> Artifact:
    """Returns an artifact whose biases are integers of at most `BIAS_MAX` steps: mostly itself."""
    finest = min([HARDSIGMOID_GRID.scale, *(layer.scale for layer in artifact.layers.values())])
    suspects = [name for name in artifact.layers if _lacking(artifact, name, finest)]
    if not suspects:
        return artifact
    nodes = {node.name: node for node in artifact.graph.nodes}
    arrays = dict(artifact.arrays)
    for name in suspects:
        source = nodes[nodes[name].inputs[0]] if name in nodes else None
        if source is None or source.grid is None:
            continue
        grid = source.grid.single()
        if not _lacking(artifact, name, grid.scale):
            continue
        weight, scale, zero_point = widened(
            arrays[f"{name}.weight"],
            arrays[f"{name}.weight_scale"].astype(np.float32, copy=False),
            arrays.pop(f"{name}.weight_zero_point", None),
            arrays[f"{name}.bias"],
            grid.scale,
        )
        arrays |= {f"{name}.weight": weight, f"{name}.weight_scale": scale}
        if zero_point is not None:
            arrays[f"{name}.weight_zero_point"] = zero_point
    changed = any(arrays.get(key) is not value for key, value in artifact.arrays.items())
    return dataclasses.replace(artifact, tensors=Tensors(arrays)) if changed else artifact


def widened(
    weight: np.ndarray,
    scale: np.ndarray,
    zero_point: np.ndarray | None,
    bias: np.ndarray,
    input_scale: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
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
        zero_point = np.broadcast_to(zero_point, scale.shape).copy()
    return weight, scale, zero_point


def _lacking(artifact: Artifact, name: str, input_scale: float) -> bool:
    """Whether a layer has a bias that does not fit, if its input has steps of this size."""
    bias = artifact.arrays.get(f"{name}.bias")
    scale = artifact.arrays.get(f"{name}.weight_scale")
    if bias is None or scale is None:
        return False
    return bool((_least_scale(bias, input_scale) > scale).any())


def _least_scale(bias: np.ndarray, input_scale: float) -> np.ndarray:
    return np.abs(bias) / (BIAS_MAX * input_scale)
