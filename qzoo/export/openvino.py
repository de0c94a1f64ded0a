"""OpenVINO IR files of int8 models, for programs that load them without ONNX or qzoo."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from .._core.files import write_files
from .._core.keywords import takes
from .._core.optional import require
from ..artifact.given import Int8Model
from ..errors import ArtifactError
from .onnx import to_onnx
from .plan import ExportKeywords, make_plan, open_export

if TYPE_CHECKING:
    from typing_extensions import Unpack


@takes(make_plan)
def export_openvino(
    model: Int8Model, path: str | os.PathLike[str], **options: Unpack[ExportKeywords]
) -> None:
    """Writes a model as OpenVINO IR: `<name>.xml`, and the weights beside it in `<name>.bin`.

    `openvino.Core().read_model(path)` reads it; `get_rt_info(["qzoo", ...])` of the result holds
    classes, transforms and what else the ONNX export notes. Compile it with
    `INFERENCE_PRECISION_HINT` "f32": on CPUs with bf16, OpenVINO's default rounds what is not int8.

    Args:
        model: An int8 model in any form that `qzoo.as_artifact` takes.
        path: The .xml file to write.
        **options: `batch_size`, `input_size` and `preprocess`, see `ExportKeywords`.

    Raises:
        ArgumentError: Arguments that the model does not allow.
        ArtifactError: The model is not an int8 model of the zoo, or the files cannot be written.
        MissingDependencyError: OpenVINO or onnx is not installed.
    """
    plan, target = open_export(model, path, ".xml", options)
    openvino = require("openvino", "openvino", "Export to OpenVINO")
    proto = to_onnx(plan.artifact, runtime="openvino", **options)
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
