"""What each layer's range could have been: the best grid for the values that were seen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ..artifact.grid import Grid
from ..backends import get_backend
from ..quantize.mixed.damage import decibels
from ..quantize.observers import MSE, IntegerRange
from ..quantize.simulate import Simulation, fake_quantize
from ..quantize.steps.shared_ranges import joined_layers


@dataclass(frozen=True)
class BestRange:
    """The range that a layer's values call for.

    Attributes:
        low: Lower end, 0 or below.
        high: Upper end, 0 or above.
        excess_db: By how many decibels the layer's own grid rounds worse than this one would.
        shared: Whether it is the range of a group that a concatenation joins.
    """

    low: float
    high: float
    excess_db: float
    shared: bool


def best_ranges(simulation: Simulation, observers: Mapping[str, MSE]) -> dict[str, BestRange]:
    """Compares each layer's grid with the one of the least squared error for its values.

    Layers that share their grid with a concatenation are compared with the best grid for that:
    they gave up some resolution on purpose, so that joining them is copying.

    Args:
        simulation: The models; the grids of the int8 one are judged.
        observers: Layer name to what was seen of its float outputs.
    """
    backend = get_backend(str(simulation.artifact.info.backend))
    integers = IntegerRange(0, backend.activation_max)
    ends: dict[str, tuple[float, float]] = {}
    for name, observer in observers.items():
        lowest, highest = observer.range()
        ends[name] = (min(float(lowest[0]), 0.0), max(float(highest[0]), 0.0))
    shared = _shared(simulation, ends)
    found = {}
    for name, observer in observers.items():
        low, high = shared.get(name, ends[name])
        best = integers.grid(low, high)
        noises = [_noise(observer, grid) for grid in (simulation.grids[name], best)]
        # Rounding a constant costs next to nothing on either grid, which says nothing.
        excess = decibels(noises[0], noises[1]) if min(noises) > 0 else 0.0
        found[name] = BestRange(low, high, excess, name in shared)
    return found


def _shared(
    simulation: Simulation, ends: Mapping[str, tuple[float, float]]
) -> dict[str, tuple[float, float]]:
    """Returns the best range of the layers that share theirs with a concatenation."""
    layers = simulation.artifact.layers
    found = {}
    for members, concatenations in joined_layers(simulation.recording, ends):
        grids = {name: (layers[name].scale, layers[name].zero_point) for name in members}
        # One of them may be the layer at fault, so the grid that most of them have decides.
        common, count = Counter(grids.values()).most_common(1)[0]
        if count == 1:
            continue
        low = min(ends[name][0] for name in concatenations)
        high = max(ends[name][1] for name in concatenations)
        found.update({name: (low, high) for name in members if grids[name] == common})
    return found


def _noise(observer: MSE, grid: Grid) -> float:
    """Returns the squared error of rounding what was seen, by its histogram."""
    counts, centers = observer.counts[0], observer.centers()[0]
    filled = counts > 0
    values: Tensor = centers[filled].float()
    error = (fake_quantize(values, grid) - values).double()
    return float((error.square() * counts[filled]).sum())
