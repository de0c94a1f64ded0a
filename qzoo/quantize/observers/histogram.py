"""Where to cut a distribution off: observers that choose ranges on histograms."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .base import Observer

#: Bins of a histogram: eight for each of the 256 integers, which tells rounding errors apart.
BINS = 2048
#: Elements of one tensor that a histogram counts at most; more hardly change a range.
SAMPLE = 1 << 16
#: Candidates for each end of a range, as shares of the observed end.
CANDIDATES = 40
#: The least share of an observed end that a range may keep.
LEAST_SHARE = 0.3
#: Steps between candidates of the entropy search, in bins.
ENTROPY_STRIDE = 16


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
    """Leaves out the outermost values: covers all but a share of them, as many at each end.

    An end beyond which nothing lies, such as the 0 of a ReLU, is kept.

    Source: J. L. McKinstry et al., "Discovering Low-Precision Networks Close to Full-Precision
    Networks for Efficient Embedded Inference", 2018, https://arxiv.org/abs/1809.04191.
    """

    #: The share of the values that lies within the range, in percent.
    percentile = 99.99

    def _choose(self) -> tuple[Tensor, Tensor]:
        share = self.counts.cumsum(dim=1) / self.counts.sum(dim=1, keepdim=True)
        outside = (100 - self.percentile) / 200
        first = (share <= outside).sum(dim=1)
        last = (share < 1 - outside).sum(dim=1) + 1
        lower = torch.maximum((self.low + first * self.width).float(), self.minimum)
        upper = torch.minimum((self.low + last * self.width).float(), self.maximum)
        return lower, upper


class MSE(HistogramObserver):
    """Chooses the range whose rounding and clipping errors, squared, add up to the least.

    Both ends are searched in turn, which finds the same ranges as trying all pairs in a small part
    of the time: beyond each other's influence on the step they are independent.

    Source: R. Banner et al., "Post Training 4-bit Quantization of Convolution Networks for
    Rapid-Deployment", 2019, section 2, https://arxiv.org/abs/1810.05723; searched on the histogram.
    """

    def _choose(self) -> tuple[Tensor, Tensor]:
        ends = torch.empty(2, len(self.counts), dtype=torch.float32, device="cpu")
        shares = torch.linspace(1.0, LEAST_SHARE, CANDIDATES, dtype=torch.float64, device="cpu")
        for row, (counts, centers) in enumerate(zip(self.counts, self.centers(), strict=True)):
            filled = counts > 0
            n, x = counts[filled], centers[filled]
            lower = float(self.minimum[row].double().clamp(max=0))
            upper = float(self.maximum[row].double().clamp(min=0))
            low, high = (
                torch.tensor([end], dtype=torch.float32, device="cpu").double()
                for end in (lower, upper)
            )
            for _ in range(2):
                highs = upper * shares
                high = highs[self._errors(n, x, low.expand_as(highs), highs).argmin()][None]
                if lower < 0:
                    lows = lower * shares
                    low = lows[self._errors(n, x, lows, high.expand_as(lows)).argmin()][None]
            ends[0, row], ends[1, row] = low.float(), high.float()
        return ends[0], ends[1]

    def _errors(self, n: Tensor, x: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """Returns the squared error of each candidate range, float64 [candidates]."""
        steps = self.grid.high - self.grid.low
        scale = ((high - low) / steps).clamp(min=1e-30)[:, None]
        zero = torch.round(-low[:, None] / scale)
        rounded = (torch.round(x / scale) + zero).clamp_(0, steps).sub_(zero).mul_(scale)
        return ((rounded - x) ** 2 * n).sum(dim=1)


class Entropy(HistogramObserver):
    """Chooses the range that keeps the distribution's shape: the least Kullback-Leibler divergence.

    The far end (the one larger in magnitude) is searched; the near end is cut at the same
    magnitude, as in the symmetric original.

    Source: S. Migacz, "8-bit Inference with TensorRT", GPU Technology Conference 2017,
    https://on-demand.gputechconf.com/gtc/2017/presentation/s7310-8-bit-inference-with-tensorrt.pdf.
    """

    def _choose(self) -> tuple[Tensor, Tensor]:
        ends = torch.empty(2, len(self.counts), dtype=torch.float32, device="cpu")
        levels = self.grid.high + 1
        for row, (counts, low, width) in enumerate(
            zip(self.counts.clone(), self.low, self.width, strict=True)
        ):
            # 0.0, of which a ReLU makes many, is on every grid: as in NVIDIA's
            # pytorch-quantization, its bin counts no more than the one beside it.
            zero = int(((0 - low) / width).floor().clamp(0, BINS - 1))
            beside = counts[max(zero - 1, 0) : zero + 2].sum() - counts[zero]
            counts[zero] = torch.minimum(counts[zero], beside)
            edges = low + torch.arange(BINS + 1, dtype=torch.int64, device="cpu") * width
            reach = float(torch.maximum(-self.minimum[row], self.maximum[row]).double())
            best, limit = float("inf"), reach
            for kept in range(max(levels, ENTROPY_STRIDE), BINS + 1, ENTROPY_STRIDE):
                candidate = reach * kept / BINS
                inside = (edges[1:] > -candidate) & (edges[:-1] < candidate)
                divergence = _divergence(counts, inside, levels)
                if divergence < best:
                    best, limit = divergence, candidate
            ends[0, row] = torch.clamp(self.minimum[row], min=-limit)
            ends[1, row] = torch.clamp(self.maximum[row], max=limit)
        return ends[0], ends[1]


def _divergence(counts: Tensor, inside: Tensor, levels: int) -> float:
    """Returns the divergence of the clipped, rounded distribution from the clipped one, in nats."""
    kept = counts[inside]
    if len(kept) < 2 or float(kept.sum()) == 0:
        return float("inf")
    first = int(inside.nonzero()[0])
    wanted = kept.clone()
    wanted[0] += counts[:first].sum()
    wanted[-1] += counts[first + len(kept) :].sum()
    # Values that share an integer become evenly spread over the bins that held any.
    group = torch.arange(len(kept), dtype=torch.int64, device="cpu") * levels // len(kept)
    total = torch.zeros(levels, dtype=torch.float64, device="cpu").index_add_(0, group, kept)
    held = torch.zeros(levels, dtype=torch.float64, device="cpu").index_add_(
        0, group, (kept > 0).double()
    )
    rounded = torch.where(kept > 0, (total / held.clamp(min=1))[group], 0.0)
    p, q = wanted / wanted.sum(), rounded / rounded.sum()
    # What was clipped into an empty bin has no counterpart; a tiny one keeps the sum finite.
    q = q.clamp(min=1e-12)
    return float((p * (p / q).log()).nan_to_num(0.0).sum())


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
