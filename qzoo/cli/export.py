"""`qzoo export`: an int8 model as a file for other runtimes."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import click

from ..errors import ArgumentError
from ._endings import ENDINGS, check_ending, format_of
from ._options import (
    batch_size_option,
    choice,
    json_option,
    model_place,
    out_option,
    size_option,
    takes,
    weights_option,
)
from ._output import print_json, print_line


@dataclass(frozen=True)
class Format:
    """One row of the table of formats.

    Attributes:
        module: Its file in `qzoo.export`, imported when it is asked for.
        function: The function in it that writes a file.
        suffix: The file's usual ending.
    """

    module: str
    function: str
    suffix: str


FORMATS = MappingProxyType(
    {
        name: Format(module, function, ENDINGS[name][0])
        for name, module, function in (
            ("onnx", "onnx", "export_onnx"),
            ("openvino", "openvino", "export_openvino"),
            ("executorch", "executorch", "export_executorch"),
            ("torch-export", "torch_export", "export_torch"),
            ("aoti", "aoti", "export_aoti"),
        )
    }
)


@click.command()
@takes(model_place())
@click.option(
    "--to",
    "target",
    type=choice(list(FORMATS)),
    help="Format of the file.  [default: what the ending of --out says]",
)
@out_option("File to write.  [default: the model's name with the format's ending, in this folder]")
@weights_option()
@batch_size_option(None, "The only number of pictures per call.  [default: any]")
@size_option
@click.option(
    "--preprocess",
    is_flag=True,
    help="Take uint8 pictures [N, H, W, 3] of that size and normalize them in the graph.",
)
@json_option
def export(
    model: str,
    target: str | None,
    out: Path | None,
    weights: str | None,
    batch_size: int | None,
    size: int | None,
    preprocess: bool,
    as_json: bool,
) -> None:
    """Write an int8 model as a file that stands alone.

    MODEL is the name of a model, or the file or folder of an int8 model.

    \b
    Examples:
      qzoo export resnet50 --to onnx
      qzoo export resnet50 --batch-size 1 --preprocess -o model.xml
      qzoo export my_model.safetensors --to executorch
    """
    target = target or _format_of(out)
    from ..native.model import as_artifact
    from ._models import load_model
    from ._names import short_name

    row = FORMATS[target]
    path = out or Path(short_name(model) + row.suffix)
    check_ending(path, target)
    write: Any = getattr(importlib.import_module(f"qzoo.export.{row.module}"), row.function)
    artifact = as_artifact(load_model(model, weights))
    write(artifact, path, batch_size=batch_size, input_size=size, preprocess=preprocess)
    files = [path, path.with_suffix(".bin")] if target == "openvino" else [path]
    if as_json:
        sizes = [{"file": str(file), "bytes": file.stat().st_size} for file in files]
        print_json({"model": artifact.info.architecture, "format": target, "files": sizes})
        return
    for file in files:
        print_line(f"{file}  {file.stat().st_size / 2**20:.1f} MiB")


def _format_of(out: Path | None) -> str:
    """Returns the format that `--out` alone names."""
    if out is None:
        raise click.UsageError("Missing option '--to' (or --out with the ending of a format).")
    target = format_of(out)
    if target is None or target not in FORMATS:
        raise ArgumentError(
            f"The ending of {out.name!r} is none of an exported model: name the format with --to "
            f"({', '.join(FORMATS)})."
        )
    return target
