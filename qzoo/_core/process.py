"""Keeps the process as its owner set it up while PyTorch and other packages work for qzoo.

Default dtype, default device, warning filters, random numbers, logging: what belongs to the whole
process or thread is neither relied on nor left changed.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any


class _Quiet:
    """The blocks of `quiet` that run, and what puts the filters back after the last of them."""

    lock = threading.Lock()
    blocks = 0
    kept: Any = None


@contextlib.contextmanager
def quiet(message: str = "") -> Iterator[None]:
    """Keeps warnings quiet in a block, which users of qzoo cannot act on.

    Python's filters belong to the process: blocks of several threads share one change of them, so
    that the filters are as before when the last block has ended, in whatever order that happens.

    Args:
        message: A regular expression that the start of a warning matches; "" takes all.
    """
    with _Quiet.lock:
        if not _Quiet.blocks:
            _Quiet.kept = warnings.catch_warnings()
            _Quiet.kept.__enter__()
        _Quiet.blocks += 1
        warnings.filterwarnings("ignore", message=message)
    try:
        yield
    finally:
        with _Quiet.lock:
            _Quiet.blocks -= 1
            if not _Quiet.blocks:
                _Quiet.kept.__exit__(None, None, None)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Runs other packages' code, imports included, and leaves the process as it was.

    Their tensors are float32 on the CPU where they name nothing. Warnings are quiet, and filters,
    PyTorch's random state, the recursion limit and the root logger's handlers are put back.
    """
    limit, handlers = sys.getrecursionlimit(), list(logging.root.handlers)
    try:
        with quiet(), _torch_kept():
            yield
    finally:
        sys.setrecursionlimit(limit)
        for added in [h for h in logging.root.handlers if h not in handlers]:
            logging.root.removeHandler(added)


def _torch_kept() -> contextlib.AbstractContextManager[None]:
    if sys.modules.get("torch") is None:  # it has no state that could change
        return contextlib.nullcontext()
    from .._torch.defaults import undisturbed_torch

    return undisturbed_torch()
