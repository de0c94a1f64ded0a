"""What ONNX nodes read and give while a graph is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ...artifact.grid import Grid


@dataclass
class Value:
    """A tensor of the ONNX graph, as far as it has been written down yet.

    Attributes:
        shape: Its shape without the batch dimension.
        real: Name of the float tensor.
        integers: Name of the quantized tensor, uint8.
        grid: What the integers mean; None where the values lie on no grid.
        pieces: The tensors along the channels that make it up, until somebody asks for the whole.
    """

    shape: tuple[int, ...]
    real: str | None = None
    integers: str | None = None
    grid: Grid | None = None
    pieces: Sequence[Value] = ()


@dataclass
class Pixels(Value):
    """The uint8 [N, H, W, 3] input, and what remains to be done to it per channel.

    Attributes:
        gain: float64 [3]; the real value is gain * pixel + offset.
        offset: float64 [3].
    """

    gain: np.ndarray = field(default_factory=lambda: np.ones(3))
    offset: np.ndarray = field(default_factory=lambda: np.zeros(3))


@dataclass(frozen=True)
class Weight:
    """The weight of a layer that multiplies integers.

    Attributes:
        name: What it is called in the file.
        values: int8, output channels first.
        scale: float32, 0-d or [C].
        zero_point: int8, shaped like `scale`.
    """

    name: str
    values: np.ndarray
    scale: np.ndarray
    zero_point: np.ndarray
