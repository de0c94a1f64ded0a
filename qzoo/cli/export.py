"""`qzoo export`: an int8 model as a file for other runtimes."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import click

from ..errors import ArgumentError
from . import _options as opt
from ._command import command, option
from ._endings import ENDINGS, check_ending, format_of
from ._names import short_name
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


@dataclass(frozen=True)
class ExportOptions:
    """What `qzoo export` takes."""

    model: str = opt.model()
    target: str | None = option(
        "--to",
        type=opt.choice(list(FORMATS)),
        help="Format of the file.  [default: what the ending of --out says]",
    )
    out: Path | None = opt.out(
        help="File to write.  [default: the model's name with the format's ending, in this folder]"
    )
    weights: str | None = opt.weights()
    batch_size: int | None = opt.batch_size(
        help="The only number of pictures per call.  [default: any]"
    )
    size: int | None = opt.size()
    preprocess: bool = option(
        "--preprocess",
        is_flag=True,
        help="Take uint8 pictures [N, H, W, 3] of that size and normalize them in the graph.",
    )
    as_json: bool = opt.as_json()


@command(ExportOptions)
def export(options: ExportOptions) -> None:
    """Write an int8 model as a file that stands alone.

    MODEL is the name of a model, or the file or folder of an int8 model.

    \b
    Examples:
      qzoo export resnet50 --to onnx
      qzoo export resnet50 --batch-size 1 --preprocess -o model.xml
      qzoo export my_model.safetensors --to executorch
    """
    target = options.target or _format_of(options.out)
    from ._models import find_int8

    row = FORMATS[target]
    path = options.out or Path(short_name(options.model) + row.suffix)
    check_ending(path, target)
    write: Any = getattr(importlib.import_module(f"qzoo.export.{row.module}"), row.function)
    artifact = find_int8(options.model, options.weights)
    write(
        artifact,
        path,
        batch_size=options.batch_size,
        input_size=options.size,
        preprocess=options.preprocess,
    )
    files = [path, path.with_suffix(".bin")] if target == "openvino" else [path]
    if options.as_json:
        sizes = [{"file": str(file), "bytes": file.stat().st_size} for file in files]
        print_json({"model": artifact.info.name, "format": target, "files": sizes})
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
            f"{out.name!r} does not end like an exported model: name the format with --to "
            f"({', '.join(FORMATS)})."
        )
    return target
