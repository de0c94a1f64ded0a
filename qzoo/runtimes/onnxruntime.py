"""The runtime `onnxruntime`: Microsoft's ONNX Runtime on the ONNX form of the model, in memory."""

from __future__ import annotations

import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np

from .._core.cpu import has_vnni
from .._core.optional import require
from .base import CompiledModel
from .source import OnnxSource

#: Sizes of images that are kept ready; another takes the place of the one made last.
SIZES = 4
#: Operators that multiply integers.
_INTEGER_OPS = frozenset(
    {
        "QLinearConv",
        "QGemm",
        "QLinearMatMul",
        "MatMulIntegerToFloat",
        "ConvInteger",
        "MatMulInteger",
    }
)


class OnnxruntimeModel(CompiledModel):
    """An int8 model in an ONNX Runtime session on the CPU.

    A session takes any number of images of one size; other sizes get a session when they first
    come. Calls of several threads share it.
    """

    runtime = "onnxruntime"

    def _prepare(self) -> None:
        self._ort = require("onnxruntime", "onnxruntime", "The runtime 'onnxruntime'")
        self._source = OnnxSource(self.artifact, self.runtime)
        self._lock = threading.Lock()
        self._sessions: dict[tuple[int, int], Any] = {}
        with self._explained(*self.size):
            self._session(*self.size)

    def _run(self, x: np.ndarray) -> np.ndarray:
        with self._explained(*x.shape[2:]):
            session = self._session(*x.shape[2:])
            logits: np.ndarray = session.run(None, {session.get_inputs()[0].name: x})[0]
        return logits

    def _session(self, height: int, width: int) -> Any:
        session = self._sessions.get((height, width))
        if session is None:
            with self._lock:
                if (height, width) not in self._sessions:
                    while len(self._sessions) >= SIZES:
                        del self._sessions[next(reversed(self._sessions))]
                    self._sessions[height, width] = self._open(height, width)
                session = self._sessions[height, width]
        return session

    def _open(self, height: int, width: int, optimized: Path | None = None) -> Any:
        options = self._ort.SessionOptions()
        options.log_severity_level = 3  # errors, which are raised besides
        options.intra_op_num_threads = self.threads or 0
        # Waiting threads spin within a call, where the next operation comes in microseconds, and
        # not between calls, where they would take the cores from everybody else.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if not has_vnni():
            # Such x86 CPUs add products of uint8 and int8 in 16 bits, which overflow; this makes it
            # exact, at half the speed. Others ignore it.
            options.add_session_config_entry("session.x64quantprecision", "1")
        if optimized is not None:
            options.optimized_model_filepath = str(optimized)
        return self._ort.InferenceSession(
            self._source.serialized(height, width), options, providers=["CPUExecutionProvider"]
        )

    def _float_layers(self) -> tuple[str, ...]:
        onnx = require("onnx", "onnxruntime", "Looking into ONNX Runtime's graph")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "optimized.onnx"
            self._open(*self.size, optimized=path)
            nodes = onnx.load(path).graph.node
        integer = {
            name.removesuffix(".weight")
            for node in nodes
            if node.op_type in _INTEGER_OPS
            for name in node.input
            if name.endswith(".weight")
        }
        return self._source.layers_without(integer)
