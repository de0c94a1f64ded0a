"""Observers: what a tensor's values are like, and the range that an integer grid should cover.

Every observer gathers its statistics in one pass and costs little beside the layer that it watches:
minimum and maximum are exact, histograms count an evenly spaced sample of each tensor. A
histogram's range grows by doubling, so that no value seen is ever thrown away or counted twice.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ArgumentError, UnknownNameError, did_you_mean
from .clipping import entropy_range, mse_range, percentile_range

#: Bins of a histogram: eight for each of the 256 integers, which tells rounding errors apart.
BINS = 2048
#: Elements of one tensor that a histogram counts at most; more hardly change a range.
SAMPLE = 1 << 16


@dataclass(frozen=True)
class Grid:
    """The integers that a tensor is rounded to.

    Attributes:
        low: Smallest integer.
        high: Largest integer.
        symmetric: Whether 0.0 is the middle of the range (else anywhere within it).
    """

    low: int = 0
    high: int = 255
    symmetric: bool = False

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
    return scale.float().clamp(min=torch.finfo(torch.float32).tiny).double()


class Observer:
    """Watches tensors and chooses a range; this one takes the exact minimum and maximum.

    Args:
        grid: The integers to choose a range for.
        axis: The dimension whose entries get a range each (per-channel); None for one range.
    """

    def __init__(self, grid: Grid | None = None, axis: int | None = None) -> None:
        self.grid = grid or Grid()
        self.axis = axis
        self.batches = 0
        self.minimum = self.maximum = torch.empty(0)

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
        minimum, maximum = torch.aminmax(rows, dim=1)
        if not bool(torch.isfinite(minimum).all() and torch.isfinite(maximum).all()):
            raise ArgumentError("The observed values are not finite numbers (NaN or infinity).")
        if self.batches and len(minimum) != len(self.minimum):
            raise ArgumentError(
                f"The observed tensor has {len(minimum)} channels; earlier ones had "
                f"{len(self.minimum)}."
            )
        self._gather(rows, minimum, maximum)
        self.batches += 1

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

    def _gather(self, rows: Tensor, minimum: Tensor, maximum: Tensor) -> None:
        if self.batches:
            minimum = torch.minimum(minimum, self.minimum)
            maximum = torch.maximum(maximum, self.maximum)
        self.minimum, self.maximum = minimum.clone(), maximum.clone()

    def _choose(self) -> tuple[Tensor, Tensor]:
        return self.minimum, self.maximum


class MovingAverage(Observer):
    """Averages the minima and maxima of batches, the latest ones weighing most.

    Source: B. Jacob et al., "Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference", 2018, section 3.1, https://arxiv.org/abs/1712.05877.
    """

    #: How much of a new batch enters.
    momentum = 0.01

    def _gather(self, rows: Tensor, minimum: Tensor, maximum: Tensor) -> None:
        if self.batches:
            minimum = torch.lerp(self.minimum, minimum, self.momentum)
            maximum = torch.lerp(self.maximum, maximum, self.momentum)
        self.minimum, self.maximum = minimum.clone(), maximum.clone()


class HistogramObserver(Observer):
    """Counts values in bins; its subclasses choose the range by them.

    Attributes:
        counts: Float64 [C, BINS].
        low: Float64 [C], the lower end of the first bin.
        width: Float64 [C], width of a bin.
    """

    counts: Tensor
    low: Tensor
    width: Tensor

    def _gather(self, rows: Tensor, minimum: Tensor, maximum: Tensor) -> None:
        if self.batches:
            self._grow(minimum.double(), maximum.double())
        else:
            self.low = minimum.double()
            span = (maximum.double() - self.low).clamp(min=torch.finfo(torch.float32).tiny)
            self.width = span / BINS
            self.counts = torch.zeros(len(rows), BINS, dtype=torch.float64)
        super()._gather(rows, minimum, maximum)
        rows = _sample(rows, SAMPLE)
        # In the values' own precision, which is what makes this cheap.
        gain = (1 / self.width).to(rows.dtype)[:, None]
        index = ((rows - self.low.to(rows.dtype)[:, None]) * gain).long().clamp_(0, BINS - 1)
        if len(rows) > 1:
            index += BINS * torch.arange(len(rows))[:, None]
        found = torch.bincount(index.flatten(), minlength=BINS * len(rows))
        self.counts += found.reshape(len(rows), BINS)

    def _grow(self, minimum: Tensor, maximum: Tensor) -> None:
        """Doubles the bins of the rows whose range a batch leaves, until it holds all values."""
        for row in range(len(self.counts)):
            while True:
                low, width = float(self.low[row]), float(self.width[row])
                above = float(maximum[row]) > low + BINS * width
                if not above and float(minimum[row]) >= low:
                    break
                merged = self.counts[row].reshape(-1, 2).sum(dim=1)
                empty = torch.zeros_like(merged)
                if above:
                    self.counts[row] = torch.cat([merged, empty])
                else:
                    self.counts[row] = torch.cat([empty, merged])
                    self.low[row] = low - BINS * width
                self.width[row] = width * 2

    def centers(self) -> Tensor:
        """Returns the middle of every bin, float64 [C, BINS]."""
        return self.low[:, None] + (torch.arange(BINS) + 0.5) * self.width[:, None]


class Percentile(HistogramObserver):
    """Leaves out the outermost values: covers all but a share of them at each end.

    Source: J. L. McKinstry et al., "Discovering Low-Precision Networks Close to Full-Precision
    Networks for Efficient Embedded Inference", 2018, https://arxiv.org/abs/1809.04191.
    """

    #: The share of the values that lies within the range, in percent.
    percentile = 99.99

    def _choose(self) -> tuple[Tensor, Tensor]:
        return percentile_range(
            self.counts, self.low, self.width, self.minimum, self.maximum, self.percentile
        )


class MSE(HistogramObserver):
    """Chooses the range whose rounding and clipping errors, squared, add up to the least.

    Source: R. Banner et al., "Post Training 4-bit Quantization of Convolution Networks for
    Rapid-Deployment", 2019, section 2, https://arxiv.org/abs/1810.05723; searched on the histogram.
    """

    def _choose(self) -> tuple[Tensor, Tensor]:
        return mse_range(
            self.counts, self.centers(), self.minimum, self.maximum, self.grid.high - self.grid.low
        )


class Entropy(HistogramObserver):
    """Chooses the range that keeps the distribution's shape: the least Kullback-Leibler divergence.

    Source: S. Migacz, "8-bit Inference with TensorRT", GPU Technology Conference 2017,
    https://on-demand.gputechconf.com/gtc/2017/presentation/s7310-8-bit-inference-with-tensorrt.pdf.
    """

    def _choose(self) -> tuple[Tensor, Tensor]:
        return entropy_range(
            self.counts, self.low, self.width, self.minimum, self.maximum, self.grid.high + 1
        )


#: Observers by name. "histogram" is PyTorch's name of choosing by the least squared error.
OBSERVERS: dict[str, type[Observer]] = {
    "minmax": Observer,
    "moving_average": MovingAverage,
    "histogram": MSE,
    "percentile": Percentile,
    "mse": MSE,
    "entropy": Entropy,
}


def make_observer(name: str, grid: Grid | None = None, axis: int | None = None) -> Observer:
    """Makes the observer called `name`.

    Raises:
        UnknownNameError: There is no such observer; the message names the known ones.
    """
    if name not in OBSERVERS:
        raise UnknownNameError(
            f"Unknown observer {name!r}: choose one of {', '.join(OBSERVERS)}."
            + did_you_mean(str(name), OBSERVERS)
        )
    return OBSERVERS[name](grid, axis)


def _sample(rows: Tensor, most: int) -> Tensor:
    """Returns evenly spaced elements of every row, at most so many in all (but one a row)."""
    step = max(1, rows.numel() // most)
    if step > 1:
        # An odd step walks through all columns of a picture instead of always the same ones.
        step += 1 - step % 2
    return rows[:, ::step]
