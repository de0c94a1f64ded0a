"""The runtime `libqzoo`: qzoo's own C library, with the same integers on every processor."""

from __future__ import annotations

import collections
import threading

import numpy as np

from ..libqzoo.binding import Model, Session
from .base import CompiledModel

#: Sizes of images that sessions are kept for; another takes the place of the oldest.
SIZES = 4


class LibqzooModel(CompiledModel):
    """An int8 model in libqzoo: the integers of `qzoo.artifact.interpret`, bit for bit.

    A call computes in the thread that makes it, one image after the other, and leaves Python's lock
    to other threads meanwhile; calls of several threads each use memory of their own.
    """

    runtime = "libqzoo"

    def _prepare(self) -> None:
        self._lock = threading.Lock()
        self._idle: dict[tuple[int, int], collections.deque[Session]] = {}
        with self._explained(*self.size):
            self._model = Model(self.artifact.graph)
            self._queue(self.size).append(self._model.session(*self.size))

    def _queue(self, size: tuple[int, int]) -> collections.deque[Session]:
        """Returns the sessions for a size of images that no call uses at the moment."""
        with self._lock:
            if size not in self._idle and len(self._idle) >= SIZES:
                del self._idle[next(iter(self._idle))]
            return self._idle.setdefault(size, collections.deque())

    def _run(self, x: np.ndarray) -> np.ndarray:
        size = (x.shape[2], x.shape[3])
        with self._explained(*size):
            idle = self._queue(size)
            try:
                session = idle.pop()
            except IndexError:
                session = self._model.session(*size)
            logits = session.run(x)
            idle.append(session)
            return logits

    @property
    def memory(self) -> int:
        """Bytes that the model and the memory for one call on images of `size` take."""
        idle = self._queue(self.size)
        session = idle[0] if idle else self._model.session(*self.size)
        return self._model.memory + session.memory
