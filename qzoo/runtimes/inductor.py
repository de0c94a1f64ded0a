"""The runtime `inductor`: the model compiled by AOTInductor around oneDNN's int8 kernels."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch

from .._core.process import undisturbed
from .._core.threads import usable_cores
from .._torch.threads import torch_threads
from ..errors import ArgumentError
from ..export.aoti import compile_package
from ..export.plan import make_plan
from ..export.torch_plan import MAX_BATCH
from .base import CompiledModel

#: Copies of the model's working memory, and so calls that run at the same time; further ones wait.
_MAX_RUNNERS = 8


class InductorModel(CompiledModel):
    """An int8 model compiled to machine code, which takes 10 to 60 seconds.

    It takes any number of images (up to 4096, or only `batch_size`) of one size. Calls of several
    threads run side by side. Without `threads` it takes PyTorch's number at each call; else a call
    sets that number, for this thread, and puts it back (`torch_threads`).

    Raises:
        MissingDependencyError: There is no C++ compiler.
        ArgumentError: Impossible sizes, or a PyTorch without oneDNN.
    """

    runtime = "inductor"
    one_size = True

    def _prepare(self) -> None:
        plan = make_plan(self.artifact, self.batch_size, self.size)
        runners = max(1, min(_MAX_RUNNERS, usable_cores() // (self.threads or 1)))
        with undisturbed():
            from torch._inductor.package import load_package

        with tempfile.TemporaryDirectory(prefix="qzoo-") as folder:
            package = Path(folder) / "model.pt2"
            self._in_float = compile_package(plan, package, self.threads)
            # Loading unpacks the file, which is not needed any more afterwards.
            self._model = load_package(str(package), num_runners=runners)

    def _run(self, x: np.ndarray) -> np.ndarray:
        if len(x) > MAX_BATCH:
            raise ArgumentError(
                f"The input has {len(x)} images, but the model takes at most {MAX_BATCH}: split it."
            )
        with torch_threads(self.threads), torch.no_grad(), self._explained(*self.size):
            logits: np.ndarray = self._model(torch.from_numpy(x)).numpy()
        return logits

    def _float_layers(self) -> tuple[str, ...]:
        return self._in_float
