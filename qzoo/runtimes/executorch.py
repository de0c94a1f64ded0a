"""The runtime `executorch`: the program for phones and boards, run here by its Python runtime."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..artifact.format import Artifact
from ..errors import ArgumentError
from ..export._plan import make_plan
from ..export.executorch import lower
from .base import CompiledModel, require

# ExecuTorch has one thread pool in the process, and no calls may run while its size changes.
_pool = threading.Lock()


class ExecutorchModel(CompiledModel):
    """An int8 model as an ExecuTorch program that XNNPACK executes as a whole.

    Making it ready takes 10 to 60 seconds. A program takes a fixed number of pictures of one size,
    so that without `batch_size` they are run one by one. Calls of several threads take turns, for
    all models of the process share ExecuTorch's thread pool.

    Args:
        artifact: The model's numbers.
        threads: Threads to compute with; None takes one per core.
        batch_size: The only batch size to take; None for any.
        input_size: Height and width of the pictures in pixels, or one number for both; None takes
            what the model was made for.

    Raises:
        MissingDependencyError: ExecuTorch is not installed.
        ArgumentError: Impossible sizes, or a layer that XNNPACK cannot execute on integers.
    """

    runtime = "executorch"

    def __init__(
        self,
        artifact: Artifact,
        threads: int | None = None,
        batch_size: int | None = None,
        input_size: int | Sequence[int] | None = None,
    ) -> None:
        super().__init__(artifact, threads, batch_size, input_size)
        purpose = "The runtime 'executorch'"
        api = require("executorch.runtime", "executorch", purpose)
        self._native = require(
            "executorch.extension.pybindings.portable_lib", "executorch", purpose
        )
        program = lower(make_plan(artifact, batch_size or 1, self.size))
        self._program = api.Runtime.get().load_program(program)
        self._forward = self._program.load_method("forward")

    def _run(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        if (height, width) != self.size:
            raise ArgumentError(
                f"The input has {height}x{width} pixels, but the model was compiled for "
                f"{self.size[0]}x{self.size[1]}: pass those, or compile with "
                f"input_size=({height}, {width})."
            )
        with _pool, _threads(self._native, self.threads), self._explained(height, width):
            # Each output is copied, for the next call may write to the same memory.
            outputs = [
                self._forward.execute([part])[0].clone() for part in x.split(self.batch_size or 1)
            ]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


@contextlib.contextmanager
def _threads(native: Any, count: int | None) -> Iterator[None]:
    """Gives ExecuTorch's thread pool a size for one block.

    The pool keeps it afterwards: making threads anew for every call would cost more than it runs.
    """
    wanted = count or os.cpu_count() or 1
    if native._threadpool_get_thread_count() != wanted:
        native._unsafe_reset_threadpool(wanted)
    yield
