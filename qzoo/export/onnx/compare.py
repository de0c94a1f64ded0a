"""Compares an ONNX runtime with the native model layer by layer, on the same input integers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..._core.optional import require
from ...errors import ArgumentError
from ...reference import LayerDifference, ReferenceModel, differences
from . import RUNTIMES, to_onnx


def compare_onnx_layers(
    reference: ReferenceModel, x: Tensor, expected: dict[str, Tensor], runtime: str
) -> list[LayerDifference]:
    """Runs every layer of a model in an ONNX runtime on the integers that another realisation saw.

    Args:
        reference: The model.
        x: Images, float32 [N, 3, H, W].
        expected: The integers after each recorded call, as `native_outputs` or `reference_outputs`
            gives them for `x`.
        runtime: "onnxruntime" or "openvino".

    Returns:
        One entry for each operation that rounds.

    Raises:
        MissingDependencyError: onnx or the runtime is not installed.
        ArgumentError: There is no such runtime.
    """
    if runtime not in RUNTIMES:
        raise ArgumentError(f"runtime is one of {', '.join(RUNTIMES)}, not {runtime!r}.")
    module = require(runtime, runtime, f"Comparing with {runtime}")
    height, width = x.shape[-2:]
    proto = to_onnx(reference, input_size=(height, width), runtime=runtime, isolate=True)
    feeds = {"input": x.numpy()}
    for value in proto.graph.input:
        if value.name != "input":
            feeds[value.name] = expected[value.name.removesuffix(".in")].numpy()
    outputs = [value.name for value in proto.graph.output]
    run = _run_openvino if runtime == "openvino" else _run_onnxruntime
    arrays = run(module, proto.SerializeToString(), outputs, feeds)
    given = {
        name.removesuffix(".out"): torch.from_numpy(np.array(array))
        for name, array in zip(outputs, arrays, strict=True)
    }
    return differences(reference, expected, given)


def _run_onnxruntime(
    ort: Any, model: bytes, outputs: list[str], feeds: dict[str, np.ndarray]
) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return ort.InferenceSession(model, options).run(outputs, feeds)


def _run_openvino(
    ov: Any, model: bytes, outputs: list[str], feeds: dict[str, np.ndarray]
) -> list[np.ndarray]:
    core = ov.Core()
    options = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    compiled = core.compile_model(core.read_model(model), "CPU", options)
    result = compiled(feeds)
    return [result[compiled.output(name)] for name in outputs]
