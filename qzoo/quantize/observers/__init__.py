"""Observers: what a tensor's values are like, and the range that an integer grid should cover.

Every observer gathers its statistics in one pass and costs little beside the layer that it watches:
minimum and maximum are exact, histograms count an evenly spaced sample of each tensor. What they
know of all batches together is the same in whichever order, and in however many processes, those
were seen (but for the moving average, which needs an order).
"""

from ...errors import check_known
from .base import IntegerRange, MovingAverage, Observer
from .histogram import BINS, MSE, Entropy, HistogramObserver, Percentile

__all__ = [
    "BINS",
    "MSE",
    "OBSERVERS",
    "Entropy",
    "HistogramObserver",
    "IntegerRange",
    "MovingAverage",
    "Observer",
    "Percentile",
    "make_observer",
]

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
