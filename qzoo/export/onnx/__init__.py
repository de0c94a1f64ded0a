"""ONNX files of int8 models, in the QDQ form that onnxruntime, OpenVINO and others run in int8."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..._core.files import write_atomically
from ..._core.lazy import module_getattr
from ...artifact.format import Artifact
from ...errors import ArgumentError, MissingDependencyError
from ...native.model import package_versions
from ...reference import ReferenceModel, build_reference
from ...reference.ops import QUANTIZE
from ...registry import get_entry
from ...transforms import preset_kwargs
from ...weights import class_names

if TYPE_CHECKING:
    import onnx
else:
    __getattr__ = module_getattr(__name__, __path__)

#: HardSwish came with opset 14; the forms written here are those of all later ones.
MIN_OPSET = 14
#: Old enough for the runtimes of the last four years.
DEFAULT_OPSET = 17
RUNTIMES = ("onnxruntime", "openvino")


def export_onnx(
    model: nn.Module | Artifact,
    path: str | os.PathLike[str],
    *,
    batch_size: int | None = None,
    input_size: int | tuple[int, int] | None = None,
    opset: int = DEFAULT_OPSET,
    preprocess: bool = False,
    runtime: str = "onnxruntime",
) -> None:
    """Writes an int8 model as an ONNX file that stands alone; see `to_onnx` for the arguments.

    Args:
        model: See `to_onnx`.
        path: The file to write, whole or not at all; usually ends in ".onnx".
        batch_size: See `to_onnx`.
        input_size: See `to_onnx`.
        opset: See `to_onnx`.
        preprocess: See `to_onnx`.
        runtime: See `to_onnx`.

    Raises:
        MissingDependencyError: The package onnx is not installed.
        ArgumentError: Arguments that the model or ONNX cannot meet.
        ArtifactError: The model is not an int8 model of the zoo, or the file cannot be written.
    """
    proto = to_onnx(
        model,
        batch_size=batch_size,
        input_size=input_size,
        opset=opset,
        preprocess=preprocess,
        runtime=runtime,
    )
    write_atomically(path, proto.SerializeToString(deterministic=True))


def to_onnx(
    model: nn.Module | Artifact,
    *,
    batch_size: int | None = None,
    input_size: int | tuple[int, int] | None = None,
    opset: int = DEFAULT_OPSET,
    preprocess: bool = False,
    runtime: str = "onnxruntime",
    isolate: bool = False,
) -> onnx.ModelProto:
    """Turns an int8 model into an ONNX model: int8 weights, uint8 activations, both per QDQ.

    The input is called "input" and the output "logits" (float32 [N, classes]). The model's
    metadata hold its architecture, backend, classes, preprocessing and the artifact's digest.

    Args:
        model: A native int8 model, an artifact or a reference model.
        batch_size: Number of images in each call; None leaves it open.
        input_size: Height and width of the images in pixels; None takes the crop size of the
            model's transforms, else that of torchvision's float weights.
        opset: Version of ONNX's operators, at least 14.
        preprocess: Whether the input is uint8 [N, H, W, 3], which the graph normalizes as the
            model's transforms do, instead of normalized float32 [N, 3, H, W].
        runtime: Which runtime the graph is shaped for, "onnxruntime" or "openvino". Either runs
            both with the same answers to one step of the output scale, but is faster with its own.
        isolate: Whether to cut the graph after every rounding, for comparing layer by layer: the
            outputs are then the recorded steps' integers ("<step>.out"), and the inputs, besides
            the images, the integers to go on with after each step ("<step>.in").

    Raises:
        MissingDependencyError: The package onnx is not installed.
        ArgumentError: Arguments that the model or ONNX cannot meet.
        ArtifactError: The model is not an int8 model of the zoo.
    """
    try:
        import onnx
        from onnx import TensorProto, helper
    except ImportError:
        raise MissingDependencyError(
            'Export to ONNX needs the package onnx: pip install "qzoo[onnx]".'
        ) from None
    from .graph import write_graph
    from .writer import Pixels, Value, Writer

    _check_options(batch_size, opset, onnx.defs.onnx_opset_version(), runtime)
    reference = _reference(model)
    artifact = reference.artifact
    height, width = _input_size(artifact, input_size)
    batch = "batch" if batch_size is None else batch_size
    writer = Writer(openvino=runtime == "openvino", isolate=isolate)
    if preprocess:
        kind, shape = TensorProto.UINT8, [batch, height, width, 3]
        gain, offset = _normalization(artifact)
        x: Value = Pixels((3, height, width), real="input", gain=gain, offset=offset)
    else:
        kind, shape = TensorProto.FLOAT, [batch, 3, height, width]
        x = Value((3, height, width), real="input")
    logits = write_graph(writer, reference, x)
    inputs = [helper.make_tensor_value_info("input", kind, shape)]
    if isolate:
        inputs, outputs = inputs + writer.used_inputs(), writer.cut_outputs()
    else:
        name = writer.op("Identity", writer.real(logits), name="logits")
        outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, *logits.shape])]
    graph = helper.make_graph(
        writer.nodes, artifact.info.architecture, inputs, outputs, list(writer.constants.values())
    )
    imports = [helper.make_opsetid("", opset)]
    versions = package_versions()
    proto = helper.make_model(
        graph,
        opset_imports=imports,
        ir_version=helper.find_min_ir_version_for(imports),
        producer_name="qzoo",
        producer_version=versions["qzoo"],
    )
    helper.set_model_props(proto, _metadata(artifact, (height, width), preprocess, runtime))
    return proto


def _reference(model: nn.Module | Artifact) -> ReferenceModel:
    if isinstance(model, ReferenceModel) and any(n.target is QUANTIZE for n in model.graph.nodes):
        return model
    return build_reference(model)


def _check_options(batch_size: int | None, opset: int, newest: int, runtime: str) -> None:
    if batch_size is not None and (type(batch_size) is not int or batch_size < 1):
        raise ArgumentError(
            f"batch_size is a number of images above 0 or None, not {batch_size!r}."
        )
    if type(opset) is not int or not MIN_OPSET <= opset <= newest:
        raise ArgumentError(
            f"opset is a number from {MIN_OPSET} to {newest} (what the installed onnx knows), "
            f"not {opset!r}."
        )
    if runtime not in RUNTIMES:
        raise ArgumentError(f"runtime is one of {', '.join(RUNTIMES)}, not {runtime!r}.")


def _input_size(artifact: Artifact, size: int | Sequence[int] | None) -> tuple[int, int]:
    if size is None:
        transforms = artifact.info.transforms
        if transforms is None:
            default = get_entry(artifact.info.architecture).float_weights["DEFAULT"]
            return (default.transforms.keywords["crop_size"],) * 2
        return (preset_kwargs(transforms)["crop_size"],) * 2
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or any(type(n) is not int or n < 1 for n in pair):
        raise ArgumentError(f"input_size is one or two numbers of pixels above 0, not {size!r}.")
    return pair


def _normalization(artifact: Artifact) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns gain and offset per channel, float64 [3], from a pixel in 0..255 to the input."""
    if artifact.info.transforms is None:
        raise ArgumentError(
            "preprocess=True needs the model's transforms, and this model carries none: save it "
            "with qzoo.save(model, path, transforms=preset.to_dict()) first."
        )
    preset = preset_kwargs(artifact.info.transforms)
    mean, std = (
        torch.tensor(preset[k], dtype=torch.float64, device="cpu") for k in ("mean", "std")
    )
    return 1 / (255 * std), -mean / std


def _metadata(
    artifact: Artifact, size: tuple[int, int], preprocess: bool, runtime: str
) -> dict[str, str]:
    info = artifact.info
    values: dict[str, Any] = {
        "qzoo_version": package_versions()["qzoo"],
        "architecture": info.architecture,
        "builder_kwargs": info.builder_kwargs,
        "backend": info.backend,
        "runtime": runtime,
        "classes": class_names(info.classes),
        "transforms": info.transforms,
        "input_layout": "NHWC" if preprocess else "NCHW",
        "input_size": size,
        "normalization_in_graph": preprocess,
        "recipe": info.recipe,
        "metrics": info.metrics,
        "kept_in_float": artifact.float_layers,
        "artifact_sha256": artifact.digest(),
    }
    return {
        key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for key, value in values.items()
    }
