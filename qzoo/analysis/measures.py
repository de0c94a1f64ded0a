"""What is measured of a layer, and how it is gathered batch by batch."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..artifact.grid import Grid
from ..quantize.mixed.damage import decibels, json_number
from ..quantize.observers import HistogramObserver

#: Bars of a histogram.
BARS = 64


class Figures:
    """What all figures share: the way to JSON."""

    def to_dict(self) -> dict[str, Any]:
        """Returns the figures as JSON values; what is infinite becomes None."""
        return {
            f.name: plain(getattr(self, f.name))
            for f in dataclasses.fields(self)  # type: ignore[arg-type]
        }


def plain(value: Any) -> Any:
    """Returns a value as JSON holds it."""
    if isinstance(value, Figures):
        return value.to_dict()
    if isinstance(value, (tuple, list)):
        return [plain(v) for v in value]
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    return json_number(value)


@dataclass(frozen=True)
class Error(Figures):
    """How far int8 values are from the float ones.

    Attributes:
        sqnr_db: Power of the values over that of the error, in decibels; infinite without error.
        cosine: Cosine of the angle between both, all values taken as one vector; 1 without error.
        max_error: Largest absolute difference.
        max_steps: The same in steps of the int8 grid; of weights with a scale per channel, in
            steps of the channel's own.
    """

    sqnr_db: float
    cosine: float
    max_error: float
    max_steps: float


class ErrorMeter:
    """Gathers an `Error` over batches."""

    def __init__(self, scale: float) -> None:
        self._scale = scale
        self._signal = self._noise = self._given = self._product = self._largest = 0.0

    def update(self, expected: Tensor, given: Tensor) -> None:
        """Takes note of float values and those of int8, float tensors of one shape."""
        gap = given - expected
        # Sums in float64: over millions of values, float32 would lose the small ones.
        self._signal += float(expected.square().sum(dtype=torch.float64))
        self._noise += float(gap.square().sum(dtype=torch.float64))
        self._given += float(given.square().sum(dtype=torch.float64))
        self._product += float((expected * given).sum(dtype=torch.float64))
        self._largest = max(self._largest, float(gap.abs().max()))

    def result(self) -> Error:
        """Returns the figures of all batches so far."""
        lengths = math.sqrt(self._signal * self._given)
        cosine = min(1.0, self._product / lengths) if lengths else float(self._noise == 0)
        return Error(
            decibels(self._signal, self._noise),
            cosine,
            self._largest,
            self._largest / self._scale,
        )


@dataclass(frozen=True)
class Histogram(Figures):
    """How values are spread.

    Attributes:
        low: Lower end of the first bar.
        high: Upper end of the last bar.
        shares: Share of the values in each bar; they add up to 1.
    """

    low: float
    high: float
    shares: tuple[float, ...]

    @classmethod
    def of_observer(cls, observer: HistogramObserver) -> Histogram:
        """Returns the histogram of what an observer without an axis has seen."""
        counts, low, width = observer.counts[0], float(observer.low[0]), float(observer.width[0])
        filled = counts.nonzero().flatten()
        first, last = int(filled[0]), int(filled[-1]) + 1
        kept = counts[first:last]
        bars = min(BARS, len(kept))
        group = torch.arange(len(kept), dtype=torch.int64, device="cpu") * bars // len(kept)
        sums = torch.zeros(bars, dtype=counts.dtype, device="cpu").index_add_(0, group, kept)
        shares = (sums / sums.sum()).tolist()
        return cls(low + first * width, low + last * width, tuple(shares))

    @classmethod
    def of_values(cls, values: Tensor) -> Histogram:
        """Returns the histogram of a tensor."""
        low, high = float(values.min()), float(values.max())
        if high <= low:
            return cls(low, low, (1.0,))
        counts = torch.histc(values.float(), BARS, low, high)
        return cls(low, high, tuple((counts / counts.sum()).tolist()))


@dataclass(frozen=True)
class OutputRange(Figures):
    """A layer's grid beside the float values that it is to hold.

    Attributes:
        scale: Step of the grid.
        zero_point: The integer that stands for 0.0.
        low: The smallest real value that the grid holds.
        high: The largest one.
        float_low: The smallest float value that occurred.
        float_high: The largest one.
        clipped_low: Share of the float values more than half a step below `low`, which are cut off.
        clipped_high: The same above `high`.
        saturated_low: Share of the int8 outputs at the lowest integer, but for those that stand for
            the zeros of a ReLU.
        saturated_high: Share of the int8 outputs at the highest integer.
        excess_db: By how many decibels rounding to this grid is worse than rounding to the best
            grid for the same values; None where the grid is fixed.
        best_low: Lower end of that best grid; None where the grid is fixed.
        best_high: Upper end of it.
        shared: Whether the layer shares its grid with a concatenation; the best grid is then the
            best for that.
    """

    scale: float
    zero_point: int
    low: float
    high: float
    float_low: float
    float_high: float
    clipped_low: float
    clipped_high: float
    saturated_low: float
    saturated_high: float
    excess_db: float | None
    best_low: float | None
    best_high: float | None
    shared: bool

    @property
    def clipped(self) -> float:
        """Share of the float values beyond either end."""
        return self.clipped_low + self.clipped_high

    @property
    def saturated(self) -> float:
        """Share of the int8 outputs at either end."""
        return self.saturated_low + self.saturated_high


class RangeMeter:
    """Gathers how a layer's values lie in its range."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self.low = (grid.low - grid.zero_point) * grid.scale
        self.high = (grid.high - grid.zero_point) * grid.scale
        self.minimum, self.maximum = math.inf, -math.inf
        self.count = 0
        self.clipped = [0, 0]
        self.saturated = [0, 0]

    def update(self, expected: Tensor, integers: Tensor) -> None:
        """Takes note of a batch of float outputs and of the int8 model's integers, uint8."""
        grid, half = self.grid, self.grid.scale / 2
        low, high = torch.aminmax(expected)
        self.minimum = min(self.minimum, float(low))
        self.maximum = max(self.maximum, float(high))
        self.count += expected.numel()
        self.clipped[0] += int((expected < self.low - half).sum())
        self.clipped[1] += int((expected > self.high + half).sum())
        bottom = integers == grid.low
        if grid.zero_point == grid.low:
            # There the integer also stands for 0.0, which is where ReLU's zeros belong.
            bottom &= expected < -half
        self.saturated[0] += int(bottom.sum())
        self.saturated[1] += int((integers == grid.high).sum())
