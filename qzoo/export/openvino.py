"""OpenVINO IR files of int8 models, for programs that load them without ONNX or qzoo."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from .._core.files import write_files
from .._core.optional import require
from ..artifact.format import Artifact
from ..errors import ArtifactError
from .onnx import to_onnx
from .plan import make_plan, output_path


def export_openvino(
    model: nn.Module | Artifact,
    path: str | os.PathLike[str],
    *,
    batch_size: int | None = None,
    input_size: int | Sequence[int] | None = None,
    preprocess: bool = False,
) -> None:
    """Writes a model as OpenVINO IR: `<name>.xml`, and the weights beside it in `<name>.bin`.

    `openvino.Core().read_model(path)` reads it; `get_rt_info(["qzoo", ...])` of the result holds
    classes, transforms and what else the ONNX export notes. Compile it with
    `INFERENCE_PRECISION_HINT` "f32": on CPUs with bf16, OpenVINO's default rounds what is not int8.

    Args:
        model: A native int8 model, an artifact, or a reference model.
        path: The .xml file to write.
        batch_size: The only batch size to take; None for any.
        input_size: Height and width of the pictures in pixels, or one number for both; None takes
            what the model was made for.
        preprocess: Whether the model takes uint8 [N, H, W, 3] pictures and normalizes them itself,
            instead of normalized float32 [N, 3, H, W].

    Raises:
        ArgumentError: Arguments that the model does not allow.
        ArtifactError: The model is not an int8 model of the zoo, or the files cannot be written.
        MissingDependencyError: OpenVINO or onnx is not installed.
    """
    target = output_path(path, ".xml")
    openvino = require("openvino", "openvino", "Export to OpenVINO")
    plan = make_plan(model, batch_size, input_size, preprocess)
    proto = to_onnx(
        plan.artifact,
        batch_size=batch_size,
        input_size=plan.size,
        preprocess=preprocess,
        runtime="openvino",
    )
    converted = openvino.Core().read_model(proto.SerializeToString())
    for entry in proto.metadata_props:
        converted.set_rt_info(entry.value, ["qzoo", entry.key])
    try:
        with tempfile.TemporaryDirectory(prefix="qzoo-") as folder:
            written = Path(folder) / target.name
            # float16 would move scales and biases, and with them the answers.
            openvino.save_model(converted, written, compress_to_fp16=False)
            # The description last: while it is missing, nobody reads half a model.
            parts = {s: written.with_suffix(s).read_bytes() for s in (".bin", ".xml")}
    except (OSError, RuntimeError) as error:
        raise ArtifactError(f"Cannot write {target}: {error}.") from None
    write_files({target.with_suffix(suffix): content for suffix, content in parts.items()})
