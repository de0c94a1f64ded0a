"""Measures candidates for one model and chooses the fastest."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch

from ..artifact.format import Artifact
from ..errors import QzooError
from .base import CompiledModel
from .choice import Choice, Measured, choice_key, recall, remember, usable_cores

#: Time for all timed rounds together; first calls come on top. Engines differ clearly, and are
#: often timed within a choice of runtime, so that they get half of it.
BUDGET_S = 1.5
MIN_ROUNDS, MAX_ROUNDS = 3, 25
#: Shorter calls are repeated until it is over, after one that is not timed: the candidate before
#: has emptied the caches, and its threads may still spin and keep a core.
TURN_MS = 20.0
#: A candidate this much slower than the fastest after `MIN_ROUNDS` is not looked at again.
HOPELESS = 1.5


def choose(
    purpose: str,
    artifact: Artifact,
    names: Sequence[str],
    build: Callable[[str], CompiledModel],
    threads: int | None,
    batch_size: int | None,
    size: tuple[int, int],
    skipped: Mapping[str, str] | None = None,
    built: dict[str, CompiledModel] | None = None,
) -> Choice:
    """Returns the fastest candidate, measured now or remembered from an earlier call.

    Args:
        purpose: What is chosen ("runtime", "engine"); part of the key.
        artifact: The model.
        names: The candidates.
        build: Makes one ready to run.
        threads: Threads to compute with; None leaves that to each candidate.
        batch_size: Pictures per call; None measures with one.
        size: Height and width of the pictures to measure with, in pixels.
        skipped: Candidates that are left out, and why, for the record.
        built: Filled with the candidates that were made, so that the winner need not be again.

    Raises:
        QzooError: No candidate can run the model; the message is that of the first.
    """
    batch, count = batch_size or 1, threads or usable_cores()
    key = choice_key(purpose, artifact, names, batch, size, count)
    known = recall(key)
    if known is not None and known.name in names:
        return known
    skipped, built = dict(skipped or {}), {} if built is None else built
    first_error = None
    for name in names:
        try:
            built[name] = build(name)
        except QzooError as error:
            skipped[name], first_error = str(error), first_error or error
    if not built:
        assert first_error is not None
        raise first_error
    x = torch.randn(
        batch,
        3,
        *size,
        generator=torch.Generator().manual_seed(0),
        dtype=torch.float32,
        device="cpu",
    )
    calls = {name: lambda model=model: model(x) for name, model in built.items()}
    # Other work on the machine adds to the clock, but not to the CPU's time; that, in turn, counts
    # threads that wait by spinning, so that with several threads the quicker calls must do.
    times = _time(calls, BUDGET_S / 2 if purpose == "engine" else BUDGET_S)
    measured = tuple(sorted(times, key=lambda m: m.cpu_ms if count == 1 else m.low_ms))
    choice = Choice(measured[0].name, measured, batch, size, count, skipped)
    remember(key, choice)
    return choice


def _time(calls: Mapping[str, Callable[[], object]], budget_s: float) -> list[Measured]:
    """Times callables in turn, and spends little time on the hopeless ones."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for call in calls.values():
        call()  # allocates, and compiles where a runtime does that late
    running, end = list(calls), time.perf_counter() + budget_s
    fastest = {name: _once(calls[name])[0] for name in running}
    for done in range(MAX_ROUNDS):
        for name in running:
            repeats = max(1, int(TURN_MS / fastest[name]))
            if repeats > 1:
                calls[name]()
            times[name] += [_once(calls[name]) for _ in range(repeats)]
            # The fastest call says most about each where other work disturbs the rest.
            fastest[name] = min(times[name])[0]
        if done + 1 >= MIN_ROUNDS:
            best = min(fastest.values())
            running = [name for name in running if fastest[name] <= HOPELESS * best]
            if len(running) == 1 or time.perf_counter() > end:
                break
    return [_summary(name, values) for name, values in times.items()]


def _once(call: Callable[[], object]) -> tuple[float, float]:
    """Returns the milliseconds of a call on the clock and of the CPU."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    end = time.perf_counter(), time.process_time()
    return (end[0] - wall) * 1e3, (end[1] - cpu) * 1e3


def _summary(name: str, values: list[tuple[float, float]]) -> Measured:
    walls = [wall for wall, _ in values]
    low, median, high = statistics.quantiles(walls, n=4, method="inclusive")
    return Measured(
        name, median, low, high, statistics.median(cpu for _, cpu in values), len(values)
    )
