"""The runtime `libqzoo`: qzoo's own C library, with the same integers on every processor."""

from __future__ import annotations

import collections
import threading
from typing import TYPE_CHECKING

import numpy as np

from .._core.threads import usable_cores
from ..errors import ArgumentError
from ..libqzoo.binding import Model, Session
from .base import CompiledModel
from .measure import random_images
from .profile import Profile, profile

if TYPE_CHECKING:
    from torch import Tensor

#: The library's most.
MOST_THREADS = 256
#: Sizes of images that sessions are kept for; another takes the place of the oldest.
SIZES = 4


class LibqzooModel(CompiledModel):
    """An int8 model in libqzoo: the integers of `qzoo.artifact.interpret`, bit for bit.

    A call leaves Python's lock to other threads while it computes; calls that several threads make
    at a time each have memory and `threads` threads of their own.
    """

    runtime = "libqzoo"

    def _prepare(self) -> None:
        self._lock = threading.Lock()
        self._threads = self.threads or min(usable_cores(), MOST_THREADS)
        self._idle: dict[tuple[int, int], collections.deque[Session]] = {}
        with self._explained(*self.size):
            self._model = Model(self.artifact.graph)
            self._queue(self.size).append(self._session(self.size))

    def _session(self, size: tuple[int, int]) -> Session:
        return self._model.session(*size, threads=self._threads)

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
                session = self._session(size)
            logits = session.run(x)
            idle.append(session)
            return logits

    def profile(self, images: np.ndarray | Tensor | None = None, repeats: int = 20) -> Profile:
        """Measures where the time of an image goes; see `CompiledModel.profile`."""
        if type(repeats) is not int or repeats < 1:
            raise ArgumentError(f"repeats must be a whole number above 0, not {repeats!r}.")
        checked = random_images(1, self.size) if images is None else self._checked(images)
        with self._explained(*checked.shape[2:]):
            return profile(self._model, self.artifact.info.name, checked, self._threads, repeats)

    @property
    def memory(self) -> int:
        """Bytes that the model and the memory for one call on images of `size` take."""
        idle = self._queue(self.size)
        session = idle[0] if idle else self._session(self.size)
        return self._model.memory + session.memory
