"""Calibration spread over the processes that `torchrun` started.

Each process runs its share of the batches; afterwards all of them know what a single one would have
seen, and go on with the same ranges.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch.distributed as dist

from ..observers import Observer

_SPREAD = ContextVar("spread", default=False)


@contextmanager
def spread_calibration() -> Iterator[None]:
    """Spreads the calibrations inside the block over the processes of the process group.

    All processes have to calibrate the same model on the same data. A process group alone does not
    spread anything, because one process may quantize while the others do something else.
    """
    token = _SPREAD.set(True)
    try:
        yield
    finally:
        _SPREAD.reset(token)


def turns() -> tuple[int, int]:
    """Returns which process takes its turn here and how many do: 0 of 1 where nothing is spread."""
    if _SPREAD.get() and dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def all_reduce_ranges(observers: Mapping[str, Observer]) -> dict[str, Observer]:
    """Merges the observers of all processes of the process group.

    With W processes, number r saw the batches r, r + W and so on. The statistics, and so the
    ranges, are those of one process bit for bit.

    Args:
        observers: By name, the same names and kinds in every process.

    Returns:
        Observers of all batches, the same in every process; those given, where there is one.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return dict(observers)
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, dict(observers))
    return {name: own.in_turn([part[name] for part in parts]) for name, own in observers.items()}
