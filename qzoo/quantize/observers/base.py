"""What a tensor's values reach: exact ends, and averages of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import torch
from torch import Tensor

from ...artifact.grid import Grid
from ...artifact.layers import SMALLEST_SCALE
from ...errors import ArgumentError


@dataclass(frozen=True)
class IntegerRange:
    """The integers that a tensor is rounded to.

    Attributes:
        low: Smallest integer.
        high: Largest integer.
        symmetric: Whether 0.0 is the middle of the range (else anywhere within it).
    """

    low: int = 0
    high: int = 255
    symmetric: bool = False

    def grid(self, low: float, high: float) -> Grid:
        """Returns the grid that covers a range, which is widened to hold 0.0."""
        ends = (torch.tensor([end], dtype=torch.float32, device="cpu") for end in (low, high))
        scale, zero_point = self.qparams(*ends)
        return Grid(float(scale[0]), int(zero_point[0]), self.low, self.high)

    def qparams(self, minimum: Tensor, maximum: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the scale and zero point that cover a range, which is widened to hold 0.0.

        Args:
            minimum: Float [C], the lower end of each channel's range.
            maximum: Float [C], the upper end.

        Returns:
            Scale, float64 [C], above 0; zero point, int64 [C], in [low, high].
        """
        low = minimum.double().clamp(max=0)
        high = maximum.double().clamp(min=0)
        if self.symmetric:
            # As many steps above the middle as below, so that the scale is the same for both signs.
            steps = (self.high - self.low) // 2
            scale = _step(torch.maximum(-low, high), steps)
            return scale, torch.full_like(scale, self.high - steps, dtype=torch.int64)
        scale = _step(high - low, self.high - self.low)
        zero = self.low - torch.round(low / scale)
        return scale, zero.clamp(self.low, self.high).long()


def _step(span: Tensor, steps: int) -> Tensor:
    """Returns a range's share of each step, as float32 holds it; of an empty range, that of 1."""
    scale = torch.where(span > 0, span, 1.0) / steps
    return scale.float().clamp(min=SMALLEST_SCALE).double()


class Observer:
    """Watches tensors and chooses a range; this one takes the exact minimum and maximum.

    Args:
        grid: The integers to choose a range for.
        axis: The dimension whose entries get a range each (per-channel); None for one range.
    """

    def __init__(self, grid: IntegerRange | None = None, axis: int | None = None) -> None:
        self.grid = grid or IntegerRange()
        self.axis = axis
        self.batches = 0
        self.minimum = self.maximum = torch.empty(0, dtype=torch.float32, device="cpu")
        #: The minima and maxima of each batch, in their order.
        self.ends: list[tuple[Tensor, Tensor]] = []

    def update(self, x: Tensor) -> None:
        """Takes note of a tensor.

        Args:
            x: Float, of any shape, of finite values.

        Raises:
            ArgumentError: It is empty, has values that are not finite, or another number of
                channels than the ones before.
        """
        rows = self._rows(x.detach())
        if rows.numel() == 0:
            raise ArgumentError("There are no values to observe: the tensor is empty.")
        minimum, maximum = _ends(rows)
        if not bool(torch.isfinite(minimum).all() and torch.isfinite(maximum).all()):
            raise ArgumentError("The observed values are not finite numbers (NaN or infinity).")
        if self.batches and len(minimum) != len(self.minimum):
            raise ArgumentError(
                f"The observed tensor has {len(minimum)} channels; earlier ones had "
                f"{len(self.minimum)}."
            )
        self._note(minimum, maximum)
        self._count(rows)

    @classmethod
    def in_turn(cls, parts: Sequence[Observer]) -> Observer:
        """Merges observers that took turns at the batches of one pass.

        Args:
            parts: Observers of this kind. With P of them, number k saw the batches k, k + P and so
                on.

        Returns:
            The observer that would have seen all batches itself, with the same statistics.
        """
        whole = cls(parts[0].grid, parts[0].axis)
        for turn in zip_longest(*(part.ends for part in parts)):
            for ends in turn:
                if ends is not None:
                    whole._note(*ends)
        whole._add([part for part in parts if part.batches])
        return whole

    def range(self) -> tuple[Tensor, Tensor]:
        """Returns the ends of the chosen range, float32 [C]; C is 1 without an axis.

        Raises:
            ArgumentError: Nothing was observed.
        """
        if not self.batches:
            raise ArgumentError("Nothing was observed yet: call update first.")
        return self._choose()

    def qparams(self) -> tuple[Tensor, Tensor]:
        """Returns scale, float64 [C], and zero point, int64 [C], of the chosen range.

        Raises:
            ArgumentError: Nothing was observed.
        """
        return self.grid.qparams(*self.range())

    def _rows(self, x: Tensor) -> Tensor:
        if self.axis is None:
            # Any order of the elements will do; this one needs no copy of channels_last tensors.
            if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
                x = x.permute(0, 2, 3, 1)
            return x.reshape(1, -1)
        return x.movedim(self.axis, 0).flatten(1) if x.dim() > 1 else x[:, None]

    def _note(self, minimum: Tensor, maximum: Tensor) -> None:
        """Takes note of the ends of a batch."""
        self.ends.append((minimum, maximum))
        self._move(minimum, maximum)
        self.batches += 1

    def _move(self, minimum: Tensor, maximum: Tensor) -> None:
        if self.batches:
            minimum = torch.minimum(minimum, self.minimum)
            maximum = torch.maximum(maximum, self.maximum)
        self.minimum, self.maximum = minimum.clone(), maximum.clone()

    def _count(self, rows: Tensor) -> None:
        """Takes note of a batch's values, float [C, n]; its ends are noted already."""

    def _add(self, parts: Sequence[Observer]) -> None:
        """Adds the counts of other observers, whose minima and maxima are noted already."""

    def _choose(self) -> tuple[Tensor, Tensor]:
        return self.minimum, self.maximum


class MovingAverage(Observer):
    """Averages the minima and maxima of batches, the latest ones weighing most.

    Source: B. Jacob et al., "Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference", 2018, section 3.1, https://arxiv.org/abs/1712.05877.
    """

    #: How much of a new batch enters.
    momentum = 0.01

    def _move(self, minimum: Tensor, maximum: Tensor) -> None:
        if self.batches:
            minimum = torch.lerp(self.minimum, minimum, self.momentum)
            maximum = torch.lerp(self.maximum, maximum, self.momentum)
        self.minimum, self.maximum = minimum.clone(), maximum.clone()


def _ends(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Returns each row's minimum and maximum, [C], NaN where a row holds one."""
    if len(rows) == 1:
        # Over a whole tensor this is vectorized; over a dimension it takes 15 times as long, which
        # made observing as costly as the convolutions.
        low, high = torch.aminmax(rows)
        return low[None], high[None]
    return rows.amin(dim=1), rows.amax(dim=1)
