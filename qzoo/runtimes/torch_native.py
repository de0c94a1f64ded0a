"""The runtime `torch`: PyTorch's own int8 kernels, on the engine that is fastest here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from .._torch.threads import torch_threads
from ..artifact.format import Artifact
from ..backends import SATURATING_ENGINES
from ..errors import ArgumentError
from ..native.engines import available_engines, quantized_engine
from ..native.markers import require_torch_ao
from ..native.model import has_wide_depthwise, to_native
from .base import CompiledModel
from .choice import Choice
from .measure import choose


class TorchModel(CompiledModel):
    """A native int8 model on one of PyTorch's quantized engines.

    Which engine is fastest depends on the model's shapes (depthwise layers with an odd number of
    channels run four times slower on one than on another), so the engines are measured when a
    structure is seen for the first time on a machine.

    Args:
        artifact: The model's numbers.
        threads: See `CompiledModel`, as for the next two.
        batch_size: See there.
        input_size: See there.
        engine: The engine; None measures which is the fastest.

    Attributes:
        engine: The quantized engine that computes.
        engines: What was measured to choose it; None where the caller chose.
    """

    runtime = "torch"

    def __init__(
        self,
        artifact: Artifact,
        threads: int | None = None,
        batch_size: int | None = None,
        input_size: int | Sequence[int] | None = None,
        engine: str | None = None,
    ) -> None:
        self._wanted = engine
        super().__init__(artifact, threads, batch_size, input_size)

    def _prepare(self) -> None:
        if self.artifact.info.architecture is None:
            raise ArgumentError(
                "The runtime 'torch' has modules of the builders' models only, and this model "
                "comes from none: choose another runtime."
            )
        require_torch_ao("The runtime 'torch'")
        self.engines: Choice | None = None
        ready: CompiledModel | None = None
        if self._wanted is None:
            self.engine, ready = self._best_engine()
        else:
            self.engine = self._wanted
        self.model: nn.Module = (
            ready.model if isinstance(ready, TorchModel) else to_native(self.artifact, self.engine)
        )

    def _best_engine(self) -> tuple[str, CompiledModel | None]:
        """Returns the engine to run on, and the model on it where that was made to be measured."""
        names = available_engines()
        if len(names) > 1 and "x86" in names:
            names.remove("qnnpack")  # made for ARM; several times slower here
        if has_wide_depthwise(self.artifact):
            names = [n for n in names if n not in SATURATING_ENGINES] or names
        if torch.are_deterministic_algorithms_enabled():
            # PyTorch takes the linear layers of these for algorithms that are not.
            names = [n for n in names if n not in ("fbgemm", "x86")] or names
        if len(names) == 1:
            return names[0], None

        def build(engine: str) -> CompiledModel:
            return TorchModel(
                self.artifact, self.threads, self.batch_size, self.size, engine=engine
            )

        self.engines, ready = choose("engine", self.artifact, names, build, self.setting)
        return self.engines.name, ready

    def _options(self) -> dict[str, Any]:
        return {**super()._options(), "engine": self.engine}

    def _run(self, x: np.ndarray) -> np.ndarray:
        with (
            self._explained(*x.shape[2:]),
            torch_threads(self.threads),
            quantized_engine(self.engine, elementwise=True),
            torch.inference_mode(),
        ):
            logits: np.ndarray = self.model(torch.from_numpy(x)).numpy()
        return logits
