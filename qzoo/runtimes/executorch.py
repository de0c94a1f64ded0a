"""The runtime `executorch`: the program for phones and boards, run here by its Python runtime."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import torch

from .._core.optional import require
from ..export.executorch import lower
from ..export.plan import make_plan
from .base import CompiledModel


class _Pool:
    """ExecuTorch's thread pool, of which the process has one.

    A loaded method keeps a pointer to the pool that it was loaded with, so that every method must
    be loaded anew once the pool has been given another size.

    Attributes:
        lock: To be held while the pool changes or a method runs.
        changes: How often this module has changed the pool.
        default: Threads that ExecuTorch chose by itself; None before the first use.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.changes = 0
        self.default: int | None = None

    def resize(self, native: Any, threads: int | None) -> int:
        """Gives the pool a size, None the one that it had at first, and returns `changes`."""
        size = native._threadpool_get_thread_count()
        if self.default is None:
            self.default = size
        wanted = threads or self.default
        if size != wanted:
            native._unsafe_reset_threadpool(wanted)
            self.changes += 1
        return self.changes


_pool = _Pool()


class ExecutorchModel(CompiledModel):
    """An int8 model as an ExecuTorch program that XNNPACK executes as a whole.

    Making it ready takes 10 to 60 seconds. A program takes a fixed number of images of one size,
    so that without `batch_size` they are run one by one. Calls of several threads take turns,
    because the process has one ExecuTorch thread pool. Models with different `threads` change its
    size in turns, which takes as long as loading the model; ExecuTorch programs of others in the
    process must not be used after such a change without loading them again.

    Raises:
        MissingDependencyError: ExecuTorch is not installed.
        ArgumentError: Impossible sizes, or a layer that XNNPACK cannot execute on integers.
    """

    runtime = "executorch"
    one_size = True

    def _prepare(self) -> None:
        purpose = "The runtime 'executorch'"
        self._api = require("executorch.runtime", "executorch", purpose)
        self._native = require(
            "executorch.extension.pybindings.portable_lib", "executorch", purpose
        )
        self._file = lower(make_plan(self.artifact, self.batch_size or 1, self.size))
        self._loaded_at = -1
        self._forward: Any = None
        with _pool.lock:
            self._load()

    def _load(self) -> None:
        """Makes sure that the method belongs to a pool of the right size; needs the lock."""
        if self._loaded_at != _pool.resize(self._native, self.threads):
            self._program = self._api.Runtime.get().load_program(self._file)
            self._forward = self._program.load_method("forward")
            self._loaded_at = _pool.changes

    def _run(self, x: np.ndarray) -> np.ndarray:
        with _pool.lock, self._explained(*self.size):
            self._load()
            # Each output is copied, for the next call may write to the same memory.
            outputs = [
                self._forward.execute([part])[0].numpy().copy()
                for part in torch.from_numpy(x).split(self.batch_size or 1)
            ]
        return outputs[0] if len(outputs) == 1 else np.concatenate(outputs)
