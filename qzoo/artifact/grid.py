"""The grid that a quantized tensor's values lie on."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Grid:
    """The values that a quantized tensor can take: scale * (integer - zero_point).

    Attributes:
        scale: Distance of two neighbouring values, above 0.
        zero_point: The integer that stands for 0.0.
        low: Smallest integer; below 0 where integers are signed (int8 instead of uint8).
        high: Largest integer.
    """

    scale: float
    zero_point: int
    low: int = 0
    high: int = 255

    @property
    def arguments(self) -> tuple[float, int, int, int]:
        """Scale, zero point, smallest and largest integer."""
        return (self.scale, self.zero_point, self.low, self.high)

    def like(self, other: Grid) -> bool:
        """Whether an integer stands for the same number on both, whatever their bounds are."""
        return (self.scale, self.zero_point) == (other.scale, other.zero_point)

    def signed(self) -> Grid:
        """Returns the same real values on int8 integers, each less by 128."""
        return Grid(self.scale, self.zero_point - 128, self.low - 128, self.high - 128)

    def single(self) -> Grid:
        """Returns the grid with its scale in float32, as kernels and file formats hold it."""
        return replace(self, scale=ctypes.c_float(self.scale).value)


#: PyTorch's quantized hardsigmoid always answers on this grid, which covers [0, 1).
HARDSIGMOID_GRID = Grid(1 / 256, 0)
