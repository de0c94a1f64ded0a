"""Observers: what a tensor's values are like, and the range that an integer grid should cover.

Every observer gathers its statistics in one pass and costs little beside the layer that it watches:
minimum and maximum are exact, histograms count an evenly spaced sample of each tensor. What they
know of all batches together is the same in whichever order, and in however many processes, those
were seen (but for the moving average, which needs an order).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
import torch
from torch import Tensor

from ...artifact.grid import Grid
from ...artifact.layers import SMALLEST_SCALE
from ...errors import ArgumentError, check_known
from .clipping import entropy_range, mse_range, percentile_range

#: Bins of a histogram: eight for each of the 256 integers, which tells rounding errors apart.
BINS = 2048
#: Elements of one tensor that a histogram counts at most; more hardly change a range.
SAMPLE = 1 << 16


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
        """Returns what one observer would have seen of batches that several took turns at.

        Args:
            parts: Observers of this kind. With P of them, number k saw the batches k, k + P and so
                on.

        Returns:
            An observer of exactly the same statistics.
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
        """Adds what other observers counted, within the ends of whose batches this one is."""

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


class HistogramObserver(Observer):
    """Counts values in bins; its subclasses choose the range by them.

    The bins are as wide as a power of two and begin at multiples of it, the narrowest that hold all
    values seen. So which bin a value falls in depends neither on the order of the batches nor on
    rounding, and wider bins consist of whole narrower ones.

    Attributes:
        counts: Float64 [C, BINS].
        level: Int64 [C], the exponent of the bins' width.
        first: Int64 [C], the lower end of the first bin, in widths of a bin.
    """

    counts = torch.empty(0, dtype=torch.float32, device="cpu")
    level: Tensor
    first: Tensor

    @property
    def width(self) -> Tensor:
        """Width of a bin, float64 [C]."""
        return _times_power(
            torch.ones(len(self.level), dtype=torch.float32, device="cpu"), self.level
        )

    @property
    def low(self) -> Tensor:
        """The lower end of the first bin, float64 [C]."""
        return _times_power(self.first, self.level)

    def _move(self, minimum: Tensor, maximum: Tensor) -> None:
        super()._move(minimum, maximum)
        level, first = _bins(self.minimum, self.maximum)
        if self.batches:
            counts = self._in_bins(level, first)
        else:
            counts = torch.zeros(len(level), BINS, dtype=torch.float64, device="cpu")
        self.counts, self.level, self.first = counts, level, first

    def _count(self, rows: Tensor) -> None:
        rows = _sample(rows, SAMPLE)
        # In the values' own precision, which is what makes this cheap, and exact all the same:
        # powers of two change the exponent only.
        gain = (1 / self.width).to(rows.dtype)[:, None]
        index = (rows * gain).floor_().long().sub_(self.first[:, None])
        if len(rows) > 1:
            index += BINS * torch.arange(len(rows), dtype=torch.int64, device="cpu")[:, None]
        found = torch.bincount(index.flatten(), minlength=BINS * len(rows))
        self.counts += found.reshape(len(rows), BINS)

    def _add(self, parts: Sequence[Observer]) -> None:
        for part in parts:
            assert isinstance(part, HistogramObserver)
            self.counts += part._in_bins(self.level, self.first)

    def _in_bins(self, level: Tensor, first: Tensor) -> Tensor:
        """Returns the counts of other bins, as wide or wider, that hold all values too."""
        numbers = self.first[:, None] + torch.arange(BINS, dtype=torch.int64, device="cpu")
        # Bins beyond the others' ends are empty.
        index = (numbers >> (level - self.level)[:, None]).sub_(first[:, None]).clamp_(0, BINS - 1)
        return torch.zeros_like(self.counts).scatter_add_(1, index, self.counts)

    def centers(self) -> Tensor:
        """Returns the middle of every bin, float64 [C, BINS]."""
        return (
            self.low[:, None]
            + (torch.arange(BINS, dtype=torch.float32, device="cpu") + 0.5) * self.width[:, None]
        )


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


def make_observer(name: str, grid: IntegerRange | None = None, axis: int | None = None) -> Observer:
    """Makes the observer called `name`.

    Raises:
        UnknownNameError: There is no such observer; the message names the known ones.
    """
    check_known(name, OBSERVERS, "observer")
    return OBSERVERS[name](grid, axis)


def _ends(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Returns each row's minimum and maximum, [C], NaN where a row holds one."""
    if len(rows) == 1:
        # Over a whole tensor this is vectorized; over a dimension it takes 15 times as long, which
        # made observing as costly as the convolutions.
        low, high = torch.aminmax(rows)
        return low[None], high[None]
    return rows.amin(dim=1), rows.amax(dim=1)


def _bins(minimum: Tensor, maximum: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the narrowest bins that hold values from a minimum to a maximum, all [C].

    Returns:
        The exponents of their widths and the numbers of the first ones, int64 [C].
    """
    low, high = minimum.double().numpy(), maximum.double().numpy()
    _, reach = np.frexp(np.maximum(np.abs(low), np.abs(high)))
    # Of values that are all equal, too, the middle of the bin should be near them.
    _, span = np.frexp(high - low)
    span = np.asarray(np.where(high > low, span, reach))
    # Not so narrow that float32 could not tell bins apart, or hold the inverse of their width.
    level = np.maximum(np.maximum(span - BINS.bit_length() + 1, reach - 24), -100).astype(np.int64)
    # Values from the middle of a bin on may need one more.
    level += np.floor(np.ldexp(high, -level)) - np.floor(np.ldexp(low, -level)) >= BINS
    first = np.floor(np.ldexp(low, -level)).astype(np.int64)
    return torch.from_numpy(level), torch.from_numpy(first)


def _times_power(values: Tensor, exponent: Tensor) -> Tensor:
    """Returns values times powers of two, float64, without rounding."""
    return torch.from_numpy(np.ldexp(values.double().numpy(), exponent.numpy()))


def _sample(rows: Tensor, most: int) -> Tensor:
    """Returns evenly spaced elements of every row, at most so many in all (but one a row)."""
    step = max(1, rows.numel() // most)
    if step > 1:
        # An odd step walks through all columns of a picture instead of always the same ones.
        step += 1 - step % 2
    return rows[:, ::step]
