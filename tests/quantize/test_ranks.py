"""Statistics do not depend on the order of batches, nor on how processes share them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from qzoo.quantize import OBSERVERS, IntegerRange, make_observer
from qzoo.quantize.observers import BINS, HistogramObserver
from qzoo.quantize.steps.ranks import all_reduce_ranges
from tests.helpers import spreading
from tests.helpers.calling import python
from tests.helpers.places import ROOT

HISTOGRAMS = [name for name, kind in OBSERVERS.items() if issubclass(kind, HistogramObserver)]


def batches(channels: int = 1) -> list[Tensor]:
    """Batches that make bins grow at either end, by a little and by far."""
    generator = torch.Generator().manual_seed(0)
    spans = [(0, 1), (-0.001, 1.5), (-3, 3), (0.1, 0.2), (-1000, 5), (-1000, 1000)]
    return [
        low + (high - low) * torch.rand(channels, 500, generator=generator) for low, high in spans
    ]


@pytest.mark.parametrize("name", OBSERVERS)
@pytest.mark.parametrize("axis", [None, 0])
@pytest.mark.parametrize("world", [2, 4])
def test_observers_that_took_turns_know_what_one_would(
    name: str, axis: int | None, world: int
) -> None:
    alone = make_observer(name, IntegerRange(), axis)
    parts = [make_observer(name, IntegerRange(), axis) for _ in range(world)]
    for i, batch in enumerate(batches(3)):
        alone.update(batch)
        parts[i % world].update(batch)
    whole = alone.in_turn(parts)
    assert whole.batches == alone.batches
    pairs = zip((*alone.range(), *alone.qparams()), (*whole.range(), *whole.qparams()), strict=True)
    for own, other in pairs:
        assert torch.equal(own, other)
    assert torch.equal(getattr(alone, "counts", Tensor()), getattr(whole, "counts", Tensor()))


def test_more_observers_than_batches() -> None:
    parts = [make_observer("mse") for _ in range(3)]
    parts[0].update(torch.tensor([1.0, 2.0]))
    assert torch.equal(parts[0].in_turn(parts).range()[1], parts[0].range()[1])
    assert all_reduce_ranges({"a": parts[0]}) == {"a": parts[0]}  # alone there is nothing to do


@pytest.mark.parametrize("name", HISTOGRAMS)
def test_the_order_of_batches_does_not_matter(name: str) -> None:
    forward, backward = make_observer(name), make_observer(name)
    for there, back in zip(batches(), reversed(batches()), strict=True):
        forward.update(there)
        backward.update(back)
    assert torch.equal(forward.range()[0], backward.range()[0])
    assert torch.equal(forward.range()[1], backward.range()[1])


@pytest.mark.parametrize("stop", range(1, 7))
def test_bins_hold_what_numpy_counts(stop: int) -> None:
    observer = make_observer("mse")
    assert isinstance(observer, HistogramObserver)
    for batch in batches()[:stop]:
        observer.update(batch)
    edges = (observer.low + torch.arange(BINS + 1) * observer.width).numpy()
    values = torch.cat(batches()[:stop], dim=1).flatten().double().numpy()
    assert edges[0] <= values.min() < edges[1]
    expected = np.histogram(values, edges)[0]
    # Numpy puts a value at the very end into the last bin.
    assert np.array_equal(observer.counts[0].numpy(), expected)
    assert values.max() - values.min() >= 0.49 * BINS * float(observer.width)


@pytest.mark.parametrize("value", [0.0, 1e-25, -1e-5, 1.0, 3e38])
def test_a_constant_lies_in_one_narrow_bin(value: float) -> None:
    observer = make_observer("mse")
    assert isinstance(observer, HistogramObserver)
    observer.update(torch.full((100,), value))
    (place,) = observer.counts[0].nonzero()
    assert float(observer.counts[0, place]) == 100
    center = float(observer.centers()[0, place])
    assert abs(center - value) <= max(abs(value) / 1000, 1e-3 if value == 0 else 0)
    low, high = observer.range()
    assert min(value, 0) == pytest.approx(float(low))
    assert max(value, 0) == pytest.approx(float(high))


@pytest.mark.extended
def test_ptq_in_two_processes_gives_the_bytes_of_one(tmp_path: Path) -> None:
    for world in (1, 2):
        python("-W", "ignore", "-m", spreading.__name__, tmp_path, world, cwd=ROOT)
    alone = (tmp_path / "1-0.safetensors").read_bytes()
    assert len(alone) > 100_000
    assert (tmp_path / "2-0.safetensors").read_bytes() == alone
    assert (tmp_path / "2-1.safetensors").read_bytes() == alone
    ranges = [torch.load(tmp_path / f"observers-{world}.pt") for world in (1, 2)]
    for name, values in ranges[0].items():
        for own, other in zip(values, ranges[1][name], strict=True):
            assert torch.equal(own, other), name
