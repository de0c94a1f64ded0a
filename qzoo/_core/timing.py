"""Timing callables side by side on a machine that may be busy with other work."""

from __future__ import annotations

import contextlib
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Timing:
    """The times of one callable, in milliseconds per call.

    Attributes:
        median_ms: Median over the rounds.
        low_ms: 25th percentile.
        high_ms: 75th percentile.
        rounds: How many rounds were timed.
    """

    median_ms: float
    low_ms: float
    high_ms: float
    rounds: int


class _Changed:
    """How many blocks of `torch_threads` run, and the number that new threads should start with."""

    lock = threading.Lock()
    blocks = 0
    default = 1


@contextlib.contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Runs a block with `count` torch threads (None: as they are) and restores the number.

    PyTorch's number belongs to the calling thread, but setting it also sets what threads that
    first use PyTorch later start with. When the last of the blocks that overlap has ended, that is
    again what it was before the first one.
    """
    with _Changed.lock:
        if _Changed.blocks:
            # Or this thread, where it is new, would keep the number of another one's block.
            _set_default(_Changed.default)
        before = torch.get_num_threads()
        changes = count is not None and count != before
        if count is not None and changes:
            if not _Changed.blocks:
                _Changed.default = before
            _Changed.blocks += 1
            torch.set_num_threads(count)
    try:
        yield
    finally:
        if changes:
            with _Changed.lock:
                torch.set_num_threads(before)
                _Changed.blocks -= 1
                if not _Changed.blocks and before != _Changed.default:
                    _set_default(_Changed.default)


def _set_default(count: int) -> None:
    """Sets the number that new threads start with, and no other thread's, from one of its own."""
    thread = threading.Thread(target=torch.set_num_threads, args=(count,))
    thread.start()
    thread.join()


def interleave(
    calls: Mapping[str, Callable[[], object]],
    rounds: int = 15,
    round_s: float = 0.02,
    warmup: int = 3,
) -> dict[str, Timing]:
    """Times callables in turn, A B A B ..., so that drifts of the machine hit all alike.

    Args:
        calls: Name to callable without arguments.
        rounds: Timed rounds of each callable.
        round_s: Each round repeats a callable until about this many seconds have passed.
        warmup: Calls of each that are not timed.

    Returns:
        Name to timing; compare the medians.
    """
    repeats = {}
    for name, call in calls.items():
        for _ in range(warmup):
            call()
        start = time.perf_counter()
        call()
        once = max(time.perf_counter() - start, 1e-7)
        repeats[name] = max(1, min(1000, int(round_s / once)))
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            for _ in range(repeats[name]):
                call()
            times[name].append((time.perf_counter() - start) / repeats[name] * 1e3)
    return {name: _summary(values) for name, values in times.items()}


def _summary(values: list[float]) -> Timing:
    low, median, high = (
        statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    )
    return Timing(median, low, high, len(values))
