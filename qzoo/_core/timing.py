"""Timing callables side by side on a machine that may be busy with other work."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """The times of one callable, in milliseconds per call.

    Attributes:
        name: What it is called.
        median_ms: Median over the rounds.
        low_ms: 25th percentile.
        high_ms: 75th percentile.
        cpu_ms: Median of the CPU time that the process spent, over all its threads.
        rounds: How many rounds were timed.
    """

    name: str
    median_ms: float
    low_ms: float
    high_ms: float
    cpu_ms: float
    rounds: int

    @classmethod
    def of(cls, name: str, rounds: Sequence[tuple[float, float]]) -> Timing:
        """Sums up what `time_once` gave in each round."""
        walls = [wall for wall, _ in rounds]
        low, median, high = (
            statistics.quantiles(walls, n=4, method="inclusive") if len(walls) > 1 else walls * 3
        )
        cpu = statistics.median(cpu for _, cpu in rounds)
        return cls(name, median, low, high, cpu, len(rounds))


def time_once(call: Callable[[], object], repeats: int = 1) -> tuple[float, float]:
    """Returns the milliseconds that a call takes, on the clock and of the CPU.

    Args:
        call: A function without arguments.
        repeats: How often to call it; the times are the mean of a call.
    """
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(repeats):
        call()
    end = time.perf_counter(), time.process_time()
    return (end[0] - wall) * 1e3 / repeats, (end[1] - cpu) * 1e3 / repeats


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
        once_ms = max(time_once(call)[0], 1e-4)
        repeats[name] = max(1, min(1000, int(round_s * 1e3 / once_ms)))
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(time_once(call, repeats[name]))
    return {name: Timing.of(name, values) for name, values in times.items()}
