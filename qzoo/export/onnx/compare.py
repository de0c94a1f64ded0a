"""Compares an ONNX runtime with another realisation node by node, on the same input integers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..._core.given import as_array
from ..._core.optional import require
from ...artifact.compare import LayerDifference, differences, integers
from ...artifact.given import Int8Model, as_artifact
from ...errors import ArgumentError
from . import RUNTIMES, to_onnx


def compare_onnx_layers(
    model: Int8Model, x: Any, expected: Mapping[str, Any] | None, runtime: str
) -> list[LayerDifference]:
    """Runs every layer of a model in an ONNX runtime on the integers that another realisation saw.

    Args:
        model: An int8 model in any form that `qzoo.as_artifact` takes.
        x: Images, an array or tensor, float32 [N, 3, H, W].
        expected: Each node's integers, arrays or tensors, uint8 by name, as `native_outputs` or
            `reference_outputs` gives them for `x`; None takes those that docs/artifact.md defines.
        runtime: "onnxruntime" or "openvino".

    Returns:
        One entry for each node that rounds.

    Raises:
        MissingDependencyError: onnx or the runtime is not installed.
        ArgumentError: There is no such runtime.
    """
    if runtime not in RUNTIMES:
        raise ArgumentError(f"runtime is one of {', '.join(RUNTIMES)}, not {runtime!r}.")
    module = require(runtime, runtime, f"Comparing with {runtime}")
    artifact, images = as_artifact(model), as_array(x)
    proto = to_onnx(artifact, input_size=images.shape[-2:], runtime=runtime, isolate=True)
    known = integers(artifact.graph, images) if expected is None else expected
    feeds = {"input": images}
    for value in proto.graph.input[1:]:
        feeds[value.name] = as_array(known[value.name.removesuffix(".in")])
    outputs = [value.name for value in proto.graph.output]
    run = _run_openvino if runtime == "openvino" else _run_onnxruntime
    arrays = run(module, proto.SerializeToString(), outputs, feeds)
    given = {
        name.removesuffix(".out"): np.array(array)
        for name, array in zip(outputs, arrays, strict=True)
    }
    return differences(artifact.graph, known, given)


def _run_onnxruntime(
    ort: Any, model: bytes, outputs: list[str], feeds: dict[str, np.ndarray]
) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    arrays: list[np.ndarray] = ort.InferenceSession(model, options).run(outputs, feeds)
    return arrays


def _run_openvino(
    ov: Any, model: bytes, outputs: list[str], feeds: dict[str, np.ndarray]
) -> list[np.ndarray]:
    core = ov.Core()
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = core.compile_model(core.read_model(model), "CPU", options)
    result = compiled(feeds)
    return [result[compiled.output(name)] for name in outputs]
