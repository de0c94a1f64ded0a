"""Measures candidates for one model and chooses the fastest."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from .._core.threads import usable_cores
from .._core.timing import Timing, time_once
from ..artifact.format import Artifact
from ..errors import QzooError
from .base import CompiledModel, Setting
from .choice import Choice, choice_key, recall, remember

#: Time for all timed rounds together; first calls come on top. Engines differ clearly, and are
#: often timed within a choice of runtime, so that they get half of it.
BUDGET_S = 1.5
MIN_ROUNDS, MAX_ROUNDS = 3, 25
#: Shorter calls are repeated until it is over, after one that is not timed: the candidate before
#: has emptied the caches, and its threads may still spin and keep a core.
TURN_MS = 20.0
#: A candidate this much slower than the fastest after `MIN_ROUNDS` is not looked at again.
HOPELESS = 1.5
#: One this much slower in its second call is not called again.
HOPELESS_AT_ONCE = 5.0


def choose(
    purpose: str,
    artifact: Artifact,
    names: Sequence[str],
    build: Callable[[str], CompiledModel],
    setting: Setting,
    skipped: Mapping[str, str] = MappingProxyType({}),
) -> tuple[Choice, CompiledModel | None]:
    """Finds the fastest candidate: measured now, or remembered from an earlier call.

    Args:
        purpose: What is chosen ("runtime", "engine"); part of the key.
        artifact: The model.
        names: The candidates.
        build: Makes one ready to run.
        setting: What they are made ready for; with any batch size, one image is measured.
        skipped: Candidates that are left out, and why, for the record.

    Returns:
        The choice, and the chosen candidate where it was made to be measured.

    Raises:
        QzooError: No candidate can run the model; the message is that of the first.
    """
    batch, count = setting.batch_size or 1, setting.threads or usable_cores()
    key = choice_key(purpose, artifact, names, batch, setting.size, count)
    known = recall(key)
    if known is not None and known.name in names:
        return known, None
    built: dict[str, CompiledModel] = {}
    failed: dict[str, QzooError] = {}
    for name in names:
        try:
            built[name] = build(name)
        except QzooError as error:
            failed[name] = error
    if not built:
        raise next(iter(failed.values()))
    x = random_images(batch, setting.size)
    calls = {name: functools.partial(model, x) for name, model in built.items()}
    # Other work on the machine adds to the clock, but not to the CPU's time; that, in turn, counts
    # threads that wait by spinning, so that with several threads the quicker calls must do.
    times = _time(calls, BUDGET_S / 2 if purpose == "engine" else BUDGET_S)
    measured = tuple(sorted(times, key=lambda m: m.cpu_ms if count == 1 else m.low_ms))
    left_out = {**skipped, **{name: str(error) for name, error in failed.items()}}
    choice = Choice(measured[0].name, measured, batch, setting.size, count, left_out)
    remember(key, choice)
    return choice, built[choice.name]


def random_images(batch: int, size: tuple[int, int]) -> np.ndarray:
    """Returns the images that speed is measured with, float32 [N, 3, H, W], always the same."""
    return np.random.default_rng(0).standard_normal((batch, 3, *size), np.float32)


def _time(calls: Mapping[str, Callable[[], object]], budget_s: float) -> list[Timing]:
    """Times callables in turn, and spends little time on the hopeless ones."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for call in calls.values():
        call()  # allocates, and compiles where a runtime does that late
    running, end = list(calls), time.perf_counter() + budget_s
    second = {name: time_once(calls[name]) for name in running}
    fastest = {name: wall for name, (wall, _) in second.items()}
    # Some take many seconds for a model that they have no kernels for.
    limit = HOPELESS_AT_ONCE * min(fastest.values())
    times |= {name: [second[name]] for name in running if fastest[name] > limit}
    running = [name for name in running if fastest[name] <= limit]
    for done in range(MAX_ROUNDS):
        for name in running:
            repeats = max(1, int(TURN_MS / fastest[name]))
            if repeats > 1:
                calls[name]()
            times[name] += [time_once(calls[name]) for _ in range(repeats)]
            # The fastest call says most about each where other work disturbs the rest.
            fastest[name] = min(times[name])[0]
        if done + 1 >= MIN_ROUNDS:
            best = min(fastest.values())
            running = [name for name in running if fastest[name] <= HOPELESS * best]
            if len(running) == 1 or time.perf_counter() > end:
                break
    return [Timing.of(name, values) for name, values in times.items()]
