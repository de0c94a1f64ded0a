"""The runtime `openvino`: Intel's OpenVINO on the ONNX form of the model, in memory."""

from __future__ import annotations

import collections
import functools
import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..artifact.format import Artifact
from ..optional import require
from .base import CompiledModel
from .source import OnnxSource

#: Input shapes that get a form of their own when the batch is free; more run on one that takes any
#: number of pictures, which costs up to a third more time per call.
FIXED_SHAPES = 4

_Shape = tuple[int | None, int, int]


class OpenvinoModel(CompiledModel):
    """An int8 model compiled by OpenVINO for this CPU.

    OpenVINO runs fixed shapes faster than free ones, so each of the first `FIXED_SHAPES` input
    shapes is compiled for itself when it first comes (about a second each). Calls of several
    threads each use a request of their own.
    """

    runtime = "openvino"

    def __init__(
        self,
        artifact: Artifact,
        threads: int | None = None,
        batch_size: int | None = None,
        input_size: int | Sequence[int] | None = None,
    ) -> None:
        super().__init__(artifact, threads, batch_size, input_size)
        self._ov = require("openvino", "openvino", "The runtime 'openvino'")
        self._source = OnnxSource(artifact, self.runtime)
        self._lock = threading.Lock()
        self._forms: dict[_Shape, _Form] = {}
        with self._explained(*self.size):
            self._form(batch_size or 1, *self.size)

    def _run(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        with self._explained(height, width):
            return self._form(batch, height, width).run(x)

    def _form(self, batch: int, height: int, width: int) -> _Form:
        form = self._forms.get((batch, height, width))
        if form is not None:
            return form
        with self._lock:
            fixed = sum(shape[0] is not None for shape in self._forms)
            free = self.batch_size is None and fixed >= FIXED_SHAPES
            shape = (None if free else batch, height, width)
            if shape not in self._forms:
                # Another size of pictures is rare; where it keeps changing, forms must not pile up.
                while len(self._forms) > FIXED_SHAPES:
                    del self._forms[next(reversed(self._forms))]
                self._forms[shape] = _Form(self._ov, self._compile(*shape))
            return self._forms[shape]

    def _compile(self, batch: int | None, height: int, width: int) -> Any:
        core = _core()
        model = core.read_model(self._source.serialized(height, width))
        model.reshape([-1 if batch is None else batch, 3, height, width])
        config: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            # Where the CPU has bf16, OpenVINO would compute everything that is not int8 with it.
            "INFERENCE_PRECISION_HINT": "f32",
        }
        if self.threads is not None:
            config["INFERENCE_NUM_THREADS"] = self.threads
        return core.compile_model(model, "CPU", config)

    def _float_layers(self) -> tuple[str, ...]:
        form = next(iter(self._forms.values()))
        integer = set()
        for op in form.compiled.get_runtime_model().get_ordered_ops():
            facts = op.get_rt_info()
            if _text(facts["primitiveType"]).endswith(("_I8", "_i8")):
                names = _text(facts["originalLayersNames"]).split(",")
                integer |= {name.partition("/")[0] for name in names}
        return self._source.layers_without(integer)


class _Form:
    """The model compiled for one shape, with one request for each call that runs at a time."""

    def __init__(self, ov: Any, compiled: Any) -> None:
        self.ov, self.compiled = ov, compiled
        self.classes = compiled.output(0).partial_shape[1].get_length()
        self.idle: collections.deque[Any] = collections.deque()

    def run(self, x: Tensor) -> Tensor:
        try:
            request = self.idle.pop()
        except IndexError:
            request = self.compiled.create_infer_request()
        logits = torch.empty(len(x), self.classes)
        # Both are read and written in place.
        request.set_input_tensor(self.ov.Tensor(x.numpy(), shared_memory=True))
        request.set_output_tensor(self.ov.Tensor(logits.numpy(), shared_memory=True))
        request.infer()
        self.idle.append(request)
        return logits


@functools.cache
def _core() -> Any:
    # One for the process: each would load its own copy of the CPU plugin's settings.
    return require("openvino", "openvino", "The runtime 'openvino'").Core()


def _text(value: Any) -> str:
    return str(getattr(value, "value", value))
