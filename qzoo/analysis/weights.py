"""Int8 weights against the float ones."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..quantize.mixed.damage import decibels, sqnr
from ..quantize.observers import make_observer
from ..quantize.simulate import Simulation
from ..quantize.state import WEIGHT_GRID, spread
from .measures import Error, ErrorMeter, Figures, Histogram


@dataclass(frozen=True)
class WeightError(Figures):
    """A layer's int8 weight beside the float one.

    Attributes:
        error: Of all values; `max_steps` is in steps of each channel's own scale.
        per_channel: Whether each output channel has a scale of its own.
        worst_channel: The output channel with the lowest ratio of signal to noise.
        worst_channel_db: That ratio in decibels.
        spread: Largest over smallest peak of an output channel, channels of zeros left out. A
            single scale for all of them leaves the smallest ones few integers.
        zeroed_channels: Output channels whose integers are all 0, though the weights are not.
        clipped: Share of the float weights beyond the integers' range by more than half a step.
        excess_db: By how many decibels the weights are rounded worse than scales from the plain
            minimum and maximum would round them.
        histogram: Float weights in steps of their scale, whose integers reach from -127 to 127.
    """

    error: Error
    per_channel: bool
    worst_channel: int
    worst_channel_db: float
    spread: float
    zeroed_channels: int
    clipped: float
    excess_db: float
    histogram: Histogram


def compare_weights(simulation: Simulation, name: str) -> WeightError:
    """Compares the weights of a layer that the artifact holds as integers."""
    tensors = simulation.artifact.tensors
    exact, rounded = simulation.float_weight(name), simulation.int8_weight(name)
    scale = tensors[f"{name}.weight_scale"].float()
    shaped = spread(scale, exact)
    meter = ErrorMeter(float(scale.max()))
    meter.update(exact, rounded)
    error = meter.result()
    steps = exact / shaped
    own = (rounded - exact).abs() / shaped
    channels = [sqnr(a, b) for a, b in zip(exact, rounded, strict=True)]
    worst = min(range(len(channels)), key=channels.__getitem__)
    peaks = exact.flatten(1).abs().amax(1)
    alive = peaks[peaks > 0]
    integers = tensors[f"{name}.weight"].flatten(1)
    reach = WEIGHT_GRID.high + 0.5
    return WeightError(
        Error(error.sqnr_db, error.cosine, error.max_error, float(own.max())),
        scale.dim() > 0,
        worst,
        channels[worst],
        float(alive.max() / alive.min()) if len(alive) else 1.0,
        int(((integers == 0).all(1) & (peaks > 0)).sum()),
        float((steps.abs() > reach).double().mean()),
        _excess(exact, rounded, per_channel=scale.dim() > 0),
        Histogram.of_values(steps),
    )


def _excess(exact: Tensor, rounded: Tensor, per_channel: bool) -> float:
    observer = make_observer("minmax", WEIGHT_GRID, axis=0 if per_channel else None)
    observer.update(exact)
    scale = observer.qparams()[0].float()
    shaped = spread(scale if per_channel else scale[0], exact)
    plain = (exact / shaped).round().clamp(WEIGHT_GRID.low, WEIGHT_GRID.high) * shaped
    noises = [float((x - exact).double().square().sum()) for x in (rounded, plain)]
    return decibels(noises[0], noises[1]) if min(noises) > 0 else 0.0
