"""ONNX files of int8 models, in the QDQ form that onnxruntime, OpenVINO and others run in int8."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from ..._core.files import write_atomically
from ..._core.keywords import takes
from ..._core.lazy import module_getattr
from ..._core.optional import require
from ..._core.versions import package_versions
from ...artifact.given import Int8Model
from ...errors import ArgumentError
from ...pictures.classes import class_names
from ..plan import ExportKeywords, ExportPlan, make_plan

if TYPE_CHECKING:
    import onnx
    from typing_extensions import Unpack

    from .values import Value
else:
    __getattr__ = module_getattr(__name__, __path__)

#: HardSwish came with opset 14; the forms written here are those of all later ones.
MIN_OPSET = 14
#: Old enough for the runtimes of the last four years.
DEFAULT_OPSET = 17
RUNTIMES = ("onnxruntime", "openvino")


@takes(make_plan)
def to_onnx(
    model: Int8Model,
    *,
    opset: int = DEFAULT_OPSET,
    runtime: str = "onnxruntime",
    isolate: bool = False,
    **options: Unpack[ExportKeywords],
) -> onnx.ModelProto:
    """Turns an int8 model into an ONNX model: int8 weights, uint8 activations, both per QDQ.

    The input is called "input" and the output "logits" (float32 [N, classes]). The model's
    metadata hold its architecture, backend, classes, preprocessing and the artifact's digest.

    Args:
        model: An int8 model in any form that `qzoo.as_artifact` takes.
        opset: Version of ONNX's operators, at least 14.
        runtime: Which runtime the graph is shaped for, "onnxruntime" or "openvino". Either runs
            both with the same answers to one step of the output scale, but is faster with its own.
        isolate: Whether to cut the graph after every rounding, for comparing layer by layer: the
            outputs are then the integers of all nodes that round ("<node>.out"), and the inputs,
            besides the images, the integers to go on with after each of them ("<node>.in").
        **options: `batch_size`, `input_size` and `preprocess`, see `qzoo.export.plan`.

    Raises:
        MissingDependencyError: The package onnx is not installed.
        ArgumentError: Arguments that the model or ONNX cannot meet.
        ArtifactError: The model is not an int8 model of the zoo.
    """
    package = require("onnx", "onnx", "Export to ONNX")
    content = onnx_bytes(make_plan(model, **options), opset, runtime, isolate)
    proto: onnx.ModelProto = package.ModelProto.FromString(content)
    return proto


@takes(make_plan)
def export_onnx(
    model: Int8Model,
    path: str | os.PathLike[str],
    *,
    opset: int = DEFAULT_OPSET,
    runtime: str = "onnxruntime",
    **options: Unpack[ExportKeywords],
) -> None:
    """Writes an int8 model as an ONNX file that stands alone.

    Args:
        model: An int8 model in any form that `qzoo.as_artifact` takes.
        path: The file to write, whole or not at all; usually ends in ".onnx".
        opset: Version of ONNX's operators, at least 14.
        runtime: See `to_onnx`.
        **options: `batch_size`, `input_size` and `preprocess`, see `qzoo.export.plan`.

    Raises:
        MissingDependencyError: The package onnx is not installed.
        ArgumentError: Arguments that the model or ONNX cannot meet.
        ArtifactError: The model is not an int8 model of the zoo, or the file cannot be written.
    """
    write_atomically(path, onnx_bytes(make_plan(model, **options), opset, runtime))


def onnx_bytes(
    plan: ExportPlan,
    opset: int = DEFAULT_OPSET,
    runtime: str = "onnxruntime",
    isolate: bool = False,
    described: bool = True,
) -> bytes:
    """Returns what an ONNX file of a model holds.

    Args:
        plan: The model, checked.
        opset: Version of ONNX's operators.
        runtime: Which runtime the graph is shaped for.
        isolate: See `to_onnx`.
        described: Whether to say what the model is, which takes a checksum of all weights.

    Raises:
        MissingDependencyError: The package onnx is not installed.
        ArgumentError: `opset` or `runtime` is impossible.
    """
    onnx = require("onnx", "onnx", "Export to ONNX")
    from .graph import write_graph
    from .joined import joined
    from .writer import Writer

    _check_options(opset, onnx.defs.onnx_opset_version(), runtime)
    imports = [onnx.helper.make_opsetid("", opset)]
    proto = onnx.ModelProto(
        ir_version=onnx.helper.find_min_ir_version_for(imports),
        producer_name="qzoo",
        producer_version=package_versions()["qzoo"],
        opset_import=imports,
    )
    target, graph = proto.graph, plan.artifact.graph
    target.name = plan.artifact.info.name
    start, images = _input(plan)
    target.input.append(start)
    writer = Writer(graph, plan.size, target, openvino=runtime == "openvino", isolate=isolate)
    logits = write_graph(writer, graph, images)
    if isolate:
        target.input.extend(writer.used_cuts())
    else:
        writer.copy(writer.real(logits), "logits")
        shape = [plan.batch_size or "batch", *logits.shape]
        kind = onnx.TensorProto.FLOAT
        target.output.append(onnx.helper.make_tensor_value_info("logits", kind, shape))
    if described:
        onnx.helper.set_model_props(proto, _metadata(plan, runtime))
    return joined(proto, writer.constants)


def _input(plan: ExportPlan) -> tuple[onnx.ValueInfoProto, Value]:
    """Returns the graph's input, and what the first operation reads."""
    from onnx import TensorProto, helper

    from .values import Pixels, Value

    height, width = plan.size
    batch = plan.batch_size or "batch"
    if plan.preprocess:
        kind, shape = TensorProto.UINT8, [batch, height, width, 3]
        gain, offset = plan.normalization()
        value: Value = Pixels((3, height, width), real="input", gain=gain, offset=offset)
    else:
        kind, shape = TensorProto.FLOAT, [batch, 3, height, width]
        value = Value((3, height, width), real="input")
    return helper.make_tensor_value_info("input", kind, shape), value


def _check_options(opset: int, newest: int, runtime: str) -> None:
    if type(opset) is not int or not MIN_OPSET <= opset <= newest:
        raise ArgumentError(
            f"opset is a number from {MIN_OPSET} to {newest} (what the installed onnx knows), "
            f"not {opset!r}."
        )
    if runtime not in RUNTIMES:
        raise ArgumentError(f"runtime is one of {', '.join(RUNTIMES)}, not {runtime!r}.")


def _metadata(plan: ExportPlan, runtime: str) -> dict[str, str]:
    info = plan.artifact.info
    values: dict[str, Any] = {
        "qzoo_version": package_versions()["qzoo"],
        "architecture": info.architecture,
        "builder_kwargs": info.builder_kwargs,
        "backend": info.backend,
        "runtime": runtime,
        "classes": class_names(info.classes),
        "transforms": info.transforms,
        "input_layout": "NHWC" if plan.preprocess else "NCHW",
        "input_size": plan.size,
        "normalization_in_graph": plan.preprocess,
        "recipe": info.recipe,
        "metrics": info.metrics,
        "kept_in_float": plan.artifact.float_layers,
        "artifact_sha256": plan.artifact.digest(),
    }
    return {
        key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for key, value in values.items()
    }
