"""Where to cut a distribution off: ranges chosen on histograms, one row per channel."""

from __future__ import annotations

import torch
from torch import Tensor

#: Candidates for each end of a range, as shares of the observed end.
CANDIDATES = 40
#: The least share of an observed end that a range may keep.
LEAST_SHARE = 0.3
#: Steps between candidates of the entropy search, in bins.
ENTROPY_STRIDE = 16


def percentile_range(
    counts: Tensor, low: Tensor, width: Tensor, minimum: Tensor, maximum: Tensor, percentile: float
) -> tuple[Tensor, Tensor]:
    """Returns the range that leaves an equal share of the values out at both ends.

    Args:
        counts: Float64 [C, bins].
        low: Float64 [C], lower end of the first bin.
        width: Float64 [C], width of a bin.
        minimum: Float32 [C], the smallest value of each channel.
        maximum: Float32 [C], the largest.
        percentile: Share of the values within the range, in percent, above 0.

    Returns:
        Lower and upper ends, float32 [C]. An end beyond which nothing lies, such as the 0 of a
        ReLU, is kept.
    """
    share = counts.cumsum(dim=1) / counts.sum(dim=1, keepdim=True)
    outside = (100 - percentile) / 200
    first = (share <= outside).sum(dim=1)
    last = (share < 1 - outside).sum(dim=1) + 1
    lower = torch.maximum((low + first * width).float(), minimum)
    upper = torch.minimum((low + last * width).float(), maximum)
    return lower, upper


def mse_range(
    counts: Tensor, centers: Tensor, minimum: Tensor, maximum: Tensor, steps: int
) -> tuple[Tensor, Tensor]:
    """Returns the range of the least mean squared error of rounding and clipping.

    Both ends are searched in turn, which finds the same ranges as trying all pairs in a small part
    of the time: beyond each other's influence on the step they are independent.

    Args:
        counts: Float64 [C, bins].
        centers: Float64 [C, bins], the middle of every bin.
        minimum: Float32 [C], the smallest value of each channel.
        maximum: Float32 [C], the largest.
        steps: Number of steps of the grid between both ends (255 for 8 bits).

    Returns:
        Lower and upper ends, float32 [C].
    """
    ends = torch.empty(2, len(counts), dtype=torch.float32, device="cpu")
    shares = torch.linspace(1.0, LEAST_SHARE, CANDIDATES, dtype=torch.float64, device="cpu")
    for row in range(len(counts)):
        filled = counts[row] > 0
        n, x = counts[row][filled], centers[row][filled]
        lower = float(minimum[row].double().clamp(max=0))
        upper = float(maximum[row].double().clamp(min=0))
        low, high = (
            torch.tensor([lower], dtype=torch.float32, device="cpu").double(),
            torch.tensor([upper], dtype=torch.float32, device="cpu").double(),
        )
        for _ in range(2):
            highs = upper * shares
            high = highs[_errors(n, x, low.expand_as(highs), highs, steps).argmin()][None]
            if lower < 0:
                lows = lower * shares
                low = lows[_errors(n, x, lows, high.expand_as(lows), steps).argmin()][None]
        ends[0, row], ends[1, row] = low.float(), high.float()
    return ends[0], ends[1]


def _errors(n: Tensor, x: Tensor, low: Tensor, high: Tensor, steps: int) -> Tensor:
    """Returns the squared error of each candidate range, float64 [candidates]."""
    scale = ((high - low) / steps).clamp(min=1e-30)[:, None]
    zero = torch.round(-low[:, None] / scale)
    rounded = (torch.round(x / scale) + zero).clamp_(0, steps).sub_(zero).mul_(scale)
    return ((rounded - x) ** 2 * n).sum(dim=1)


def entropy_range(
    counts: Tensor, low: Tensor, width: Tensor, minimum: Tensor, maximum: Tensor, levels: int
) -> tuple[Tensor, Tensor]:
    """Returns the range that loses the least information (Kullback-Leibler divergence).

    The far end (the one larger in magnitude) is searched; the near end is cut at the same
    magnitude, as in the symmetric original.

    Args:
        counts: Float64 [C, bins].
        low: Float64 [C], lower end of the first bin.
        width: Float64 [C], width of a bin.
        minimum: Float32 [C], the smallest value of each channel.
        maximum: Float32 [C], the largest.
        levels: Number of integers of the grid.

    Returns:
        Lower and upper ends, float32 [C].
    """
    ends = torch.empty(2, len(counts), dtype=torch.float32, device="cpu")
    bins, counts = counts.shape[1], counts.clone()
    for row in range(len(counts)):
        # 0.0, of which a ReLU makes many, is on every grid: as in NVIDIA's pytorch-quantization,
        # its bin counts no more than the one beside it.
        zero = int(((0 - low[row]) / width[row]).floor().clamp(0, bins - 1))
        beside = counts[row, max(zero - 1, 0) : zero + 2].sum() - counts[row, zero]
        counts[row, zero] = torch.minimum(counts[row, zero], beside)
        edges = low[row] + torch.arange(bins + 1, dtype=torch.int64, device="cpu") * width[row]
        reach = torch.maximum(-minimum[row], maximum[row]).double()
        best, limit = float("inf"), float(reach)
        start = max(levels, ENTROPY_STRIDE)
        for kept in range(start, bins + 1, ENTROPY_STRIDE):
            candidate = float(reach) * kept / bins
            inside = (edges[1:] > -candidate) & (edges[:-1] < candidate)
            divergence = _divergence(counts[row], inside, levels)
            if divergence < best:
                best, limit = divergence, candidate
        ends[0, row] = torch.clamp(minimum[row], min=-limit)
        ends[1, row] = torch.clamp(maximum[row], max=limit)
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
