"""Observers against formulas, NumPy and PyTorch's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.ao.quantization import MovingAverageMinMaxObserver

from qzoo.errors import ArgumentError, UnknownNameError
from qzoo.quantize import OBSERVERS, IntegerRange, make_observer
from qzoo.quantize.observers import BINS, HistogramObserver


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", OBSERVERS)
def test_per_channel_is_a_loop_over_channels(name: str) -> None:
    x = normal(4, 2000) * torch.tensor([[0.1], [1.0], [3.0], [20.0]])
    together = make_observer(name, axis=0)
    together.update(x)
    for channel, scale, zero_point in zip(x, *together.qparams(), strict=True):
        alone = make_observer(name)
        alone.update(channel)
        torch.testing.assert_close(alone.qparams()[0][0], scale, rtol=1e-6, atol=0)
        assert int(alone.qparams()[1][0]) == int(zero_point)


def test_minmax_and_moving_average() -> None:
    batches = [normal(50, seed=s) * (s + 1) for s in range(5)]
    exact, average = make_observer("minmax"), make_observer("moving_average")
    theirs = MovingAverageMinMaxObserver(averaging_constant=0.01)
    for batch in batches:
        exact.update(batch)
        average.update(batch)
        theirs(batch)
    everything = torch.cat(batches)
    assert [float(v) for v in exact.range()] == [float(everything.min()), float(everything.max())]
    torch.testing.assert_close(average.range()[0][0], theirs.min_val)
    torch.testing.assert_close(average.range()[1][0], theirs.max_val)


@pytest.mark.parametrize("high", [255, 127])
@pytest.mark.parametrize("low", [-3.0, 0.0, 1.0])
def test_affine_qparams_are_pytorchs(low: float, high: int) -> None:
    theirs = MovingAverageMinMaxObserver(quant_min=0, quant_max=high, dtype=torch.quint8)
    x = torch.tensor([low, 5.0])
    theirs(x)
    scale, zero_point = IntegerRange(0, high).qparams(x[:1], x[1:])
    torch.testing.assert_close(scale.float(), theirs.calculate_qparams()[0])
    assert int(zero_point) == int(theirs.calculate_qparams()[1])


def test_symmetric_qparams_have_no_offset() -> None:
    scale, zero_point = IntegerRange(-127, 127, symmetric=True).qparams(
        torch.tensor([-2.0]), torch.tensor([1.0])
    )
    assert float(scale) == pytest.approx(2 / 127) and int(zero_point) == 0


def test_percentile_is_numpys_within_a_bin() -> None:
    x = normal(40_000)
    seen = make_observer("percentile")
    seen.update(x)
    assert isinstance(seen, HistogramObserver)
    low, high = (float(v) for v in seen.range())
    assert abs(low - np.percentile(x, 0.005)) <= 1.01 * float(seen.width)
    assert abs(high - np.percentile(x, 99.995)) <= 1.01 * float(seen.width)


def error(x: Tensor, low: float, high: float) -> float:
    scale, zero = IntegerRange().qparams(torch.tensor([low]), torch.tensor([high]))
    y = ((x.double() / scale).round() + zero).clamp(0, 255).sub(zero) * scale
    return float((y - x).square().mean())


def test_mse_is_near_the_best_of_a_fine_search() -> None:
    x = normal(30_000) ** 3
    seen = make_observer("mse")
    seen.update(x)
    low, high = float(x.min()), float(x.max())
    shares = torch.linspace(0.05, 1, 60).tolist()
    best = min(error(x, a * low, b * high) for a in shares for b in shares)
    found = error(x, *(float(v) for v in seen.range()))
    assert found <= 1.1 * best
    assert found < error(x, low, high)


def test_entropy_cuts_outliers_off_and_no_more() -> None:
    plain = normal(60_000).relu()
    seen = make_observer("entropy")
    seen.update(plain)
    assert 2.0 < float(seen.range()[1]) <= float(plain.max())
    spoilt = torch.cat([plain[1:], torch.tensor([60.0])])
    seen = make_observer("entropy")
    seen.update(spoilt)
    assert 2.0 < float(seen.range()[1]) < 30.0


def test_a_growing_histogram_loses_no_value() -> None:
    seen = make_observer("mse")
    total = 0
    for step in range(6):
        x = normal(1000, seed=step) * 3.0**step - step
        seen.update(x)
        total += x.numel()
    assert isinstance(seen, HistogramObserver)
    assert int(seen.counts.sum()) == total
    assert float(seen.low) <= float(seen.minimum)
    assert float(seen.low + BINS * seen.width) >= float(seen.maximum)


@pytest.mark.parametrize("name", OBSERVERS)
def test_bad_values_are_refused(name: str) -> None:
    seen = make_observer(name)
    for bad in (torch.empty(0), torch.tensor([1.0, float("nan")]), torch.tensor([float("inf")])):
        with pytest.raises(ArgumentError):
            seen.update(bad)
    with pytest.raises(ArgumentError, match="Nothing was observed"):
        seen.qparams()
    with pytest.raises(UnknownNameError, match="mse"):
        make_observer("mze")
