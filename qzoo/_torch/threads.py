"""PyTorch's number of threads, set for a while."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import torch


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
