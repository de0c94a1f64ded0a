"""ONNX files of int8 models, in the QDQ form that onnxruntime, OpenVINO and others run in int8."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from ..._core.files import write_atomically
from ..._core.keywords import takes
from ..._core.lazy import module_getattr
from ..._core.optional import require
from ...errors import ArgumentError
from ...native.model import Int8Model, package_versions
from ...pictures.classes import class_names
from ...reference import ReferenceModel, build_reference
from ...reference.ops import QUANTIZE
from ..plan import ExportKeywords, ExportPlan, make_plan

if TYPE_CHECKING:
    import onnx
    from typing_extensions import Unpack

    from .writer import Value
else:
    __getattr__ = module_getattr(__name__, __path__)

#: HardSwish came with opset 14; the forms written here are those of all later ones.
MIN_OPSET = 14
#: Old enough for the runtimes of the last four years.
DEFAULT_OPSET = 17
RUNTIMES = ("onnxruntime", "openvino")


class OnnxKeywords(ExportKeywords, total=False):
    """The options of `export_onnx`, by name.

    Attributes:
        opset: Version of ONNX's operators, at least 14.
        runtime: Which runtime the graph is shaped for, "onnxruntime" or "openvino". Either runs
            both with the same answers to one step of the output scale, but is faster with its own.
    """

    opset: int
    runtime: str


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
        opset: See `OnnxKeywords`.
        runtime: See `OnnxKeywords`.
        isolate: Whether to cut the graph after every rounding, for comparing layer by layer: the
            outputs are then the recorded steps' integers ("<step>.out"), and the inputs, besides
            the images, the integers to go on with after each step ("<step>.in").
        **options: `batch_size`, `input_size` and `preprocess`, see `qzoo.export.plan`.

    Raises:
        MissingDependencyError: The package onnx is not installed.
        ArgumentError: Arguments that the model or ONNX cannot meet.
        ArtifactError: The model is not an int8 model of the zoo.
    """
    onnx = require("onnx", "onnx", "Export to ONNX")
    from .graph import write_graph
    from .writer import Writer

    _check_options(opset, onnx.defs.onnx_opset_version(), runtime)
    reference = _reference(model)
    plan = make_plan(reference, **options)
    writer = Writer(openvino=runtime == "openvino", isolate=isolate)
    start, images = _input(plan)
    logits = write_graph(writer, reference, images)
    if isolate:
        inputs, outputs = [start, *writer.used_inputs()], writer.cut_outputs()
    else:
        name = writer.op("Identity", writer.real(logits), name="logits")
        shape = [plan.batch_size or "batch", *logits.shape]
        kind = onnx.TensorProto.FLOAT
        inputs, outputs = [start], [onnx.helper.make_tensor_value_info(name, kind, shape)]
    constants = list(writer.constants.values())
    graph = onnx.helper.make_graph(
        writer.nodes, plan.artifact.info.name, inputs, outputs, constants
    )
    imports = [onnx.helper.make_opsetid("", opset)]
    proto: Any = onnx.helper.make_model(
        graph,
        opset_imports=imports,
        ir_version=onnx.helper.find_min_ir_version_for(imports),
        producer_name="qzoo",
        producer_version=package_versions()["qzoo"],
    )
    onnx.helper.set_model_props(proto, _metadata(plan, runtime))
    return proto


@takes(to_onnx)
def export_onnx(
    model: Int8Model, path: str | os.PathLike[str], **options: Unpack[OnnxKeywords]
) -> None:
    """Writes an int8 model as an ONNX file that stands alone.

    Args:
        model: An int8 model in any form that `qzoo.as_artifact` takes.
        path: The file to write, whole or not at all; usually ends in ".onnx".
        **options: `batch_size`, `input_size` and `preprocess`, see `qzoo.export.plan`; `opset` and
            `runtime`, see `OnnxKeywords`.

    Raises:
        MissingDependencyError: The package onnx is not installed.
        ArgumentError: Arguments that the model or ONNX cannot meet.
        ArtifactError: The model is not an int8 model of the zoo, or the file cannot be written.
    """
    proto = to_onnx(model, **options)
    write_atomically(path, proto.SerializeToString(deterministic=True))


def _input(plan: ExportPlan) -> tuple[onnx.ValueInfoProto, Value]:
    """Returns the graph's input, and what the first operation reads."""
    from onnx import TensorProto, helper

    from .writer import Pixels, Value

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


def _reference(model: Int8Model) -> ReferenceModel:
    if isinstance(model, ReferenceModel) and any(n.target is QUANTIZE for n in model.graph.nodes):
        return model
    return build_reference(model)


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
