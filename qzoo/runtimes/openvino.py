"""The runtime `openvino`: Intel's OpenVINO on the ONNX form of the model, in memory."""

from __future__ import annotations

import collections
import contextlib
import functools
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from .._core.optional import require
from .._core.threads import usable_cores
from .base import CompiledModel
from .source import OnnxSource

#: Input shapes that get a form of their own when the batch is free; more run on one that takes any
#: number of images, which costs up to a third more time per call.
FIXED_SHAPES = 4

#: OpenVINO's names for what a layer with weights may become.
_MULTIPLY = ("Convolution", "FullyConnected", "MatMul")

#: Images that go through the layers together: more of them leave the caches between two layers
#: (mobilenet_v2, batch 32: 16 % less time than all at once), fewer fill the threads badly.
PART_MOST, PART_LEAST = 8, 4

#: Images or None for any number, height, width, and parts of a batch that run side by side.
_Shape = tuple[int | None, int, int, int]


class OpenvinoModel(CompiledModel):
    """An int8 model compiled by OpenVINO for this CPU.

    OpenVINO runs fixed shapes faster than free ones, so each of the first `FIXED_SHAPES` input
    shapes is compiled for itself when it first comes (about a second each). Large batches run as
    several parts, side by side where there are threads for it. Calls of several threads each use
    requests of their own.
    """

    runtime = "openvino"

    def _prepare(self) -> None:
        self._ov = require("openvino", "openvino", "The runtime 'openvino'")
        self._source = OnnxSource(self.artifact, self.runtime)
        self._lock = threading.Lock()
        self._forms: dict[_Shape, _Form] = {}
        with self._explained(*self.size):
            rows, streams = division(self.batch_size or 1, self.threads or usable_cores())
            for part in {rows, (self.batch_size or 1) % rows or rows}:
                self._form((part, *self.size, streams))

    def _run(self, x: np.ndarray) -> np.ndarray:
        batch, _, height, width = x.shape
        rows, streams = division(batch, self.threads or usable_cores())
        with self._explained(height, width):
            parts = [x[start : start + rows] for start in range(0, batch, rows)]
            forms = [self._form((len(part), height, width, streams)) for part in parts]
            logits = np.empty((batch, forms[0].classes), np.float32)
            if len(parts) == 1:
                forms[0].run(x, logits)
                return logits
            # What was started ends before its arrays go, whatever the others raise.
            with contextlib.ExitStack() as running:
                for number, (form, part) in enumerate(zip(forms, parts, strict=True)):
                    out = logits[number * rows :][: len(part)]
                    running.callback(form.start(part, out))
            return logits

    def _form(self, shape: _Shape) -> _Form:
        form = self._forms.get(shape)
        if form is not None:
            return form
        with self._lock:
            fixed = sum(known[0] is not None for known in self._forms)
            if self.batch_size is None and fixed >= FIXED_SHAPES:
                shape = (None, *shape[1:])
            if shape not in self._forms:
                # Another size of images is rare; where it keeps changing, forms must not pile up.
                while len(self._forms) > FIXED_SHAPES:
                    del self._forms[next(reversed(self._forms))]
                self._forms[shape] = _Form(self._ov, self._compile(*shape))
            return self._forms[shape]

    def _compile(self, batch: int | None, height: int, width: int, streams: int) -> Any:
        core = _core()
        model = core.read_model(self._source.serialized(height, width))
        model.reshape([-1 if batch is None else batch, 3, height, width])
        config: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            # Where the CPU has bf16, OpenVINO would compute everything that is not int8 with it.
            "INFERENCE_PRECISION_HINT": "f32",
        }
        if streams > 1:
            config["NUM_STREAMS"] = streams
        if self.threads is not None:
            config["INFERENCE_NUM_THREADS"] = self.threads
        return core.compile_model(model, "CPU", config)

    def _float_layers(self) -> tuple[str, ...]:
        form = next(iter(self._forms.values()))
        integer = set()
        for op in form.compiled.get_runtime_model().get_ordered_ops():
            facts = op.get_rt_info()
            kind, primitive = _text(facts["layerType"]), _text(facts["primitiveType"])
            if kind in _MULTIPLY and primitive.endswith(("_I8", "_i8")):
                integer |= self._source.layers_of(_text(facts["originalLayersNames"]))
        return self._source.layers_without(integer)


class _Form:
    """The model compiled for one shape, with one request for each call that runs at a time."""

    def __init__(self, ov: Any, compiled: Any) -> None:
        self.ov, self.compiled = ov, compiled
        self.classes = compiled.output(0).partial_shape[1].get_length()
        self.idle: collections.deque[Any] = collections.deque()

    def run(self, x: np.ndarray, logits: np.ndarray) -> None:
        """Reads and writes the arrays in place, in the calling thread."""
        request = self._request(x, logits)
        request.infer()
        self.idle.append(request)

    def start(self, x: np.ndarray, logits: np.ndarray) -> Callable[[], None]:
        """Starts what `run` does and returns the function that waits for its end."""
        request = self._request(x, logits)
        request.start_async()

        def wait() -> None:
            request.wait()
            self.idle.append(request)

        return wait

    def _request(self, x: np.ndarray, logits: np.ndarray) -> Any:
        try:
            request = self.idle.pop()
        except IndexError:
            request = self.compiled.create_infer_request()
        request.set_input_tensor(self.ov.Tensor(x, shared_memory=True))
        request.set_output_tensor(self.ov.Tensor(logits, shared_memory=True))
        return request


def division(batch: int, threads: int) -> tuple[int, int]:
    """Returns the images of each part of a batch, the last may have less, and parts at a time."""
    streams = max(1, min(threads, batch // PART_LEAST))
    parts = streams * -(-batch // (PART_MOST * streams))
    return -(-batch // parts), streams


@functools.cache
def _core() -> Any:
    # One for the process: each would load its own copy of the CPU plugin's settings.
    return require("openvino", "openvino", "The runtime 'openvino'").Core()


def _text(value: Any) -> str:
    return str(getattr(value, "value", value))
