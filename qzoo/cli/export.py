"""`qzoo export`: an int8 model as a file for other runtimes."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import click

from ..runtimes.api import to_artifact
from ._models import load_model
from ._output import print_line


@dataclass(frozen=True)
class Format:
    """One row of the table of formats.

    Attributes:
        module: Its file in `qzoo.export`, imported when it is asked for.
        function: The function in it that writes a file.
        suffix: The file's ending.
    """

    module: str
    function: str
    suffix: str


FORMATS = MappingProxyType(
    {
        "onnx": Format("onnx", "export_onnx", ".onnx"),
        "openvino": Format("openvino", "export_openvino", ".xml"),
        "executorch": Format("executorch", "export_executorch", ".pte"),
        "torch-export": Format("torch_export", "export_torch", ".pt2"),
        "aoti": Format("aoti", "export_aoti", ".pt2"),
    }
)


@click.command()
@click.argument("model")
@click.option(
    "--to", "target", required=True, type=click.Choice(list(FORMATS)), help="Format of the file."
)
@click.option(
    "--out", "-o", type=click.Path(path_type=Path), help="File to write.  [default: MODEL.SUFFIX]"
)
@click.option("--weights", "-w", help="Name of the int8 weights.  [default: DEFAULT]")
@click.option(
    "--batch", type=click.IntRange(1), help="The only batch size to take.  [default: any]"
)
@click.option(
    "--size", type=click.IntRange(1), help="Height and width in pixels.  [default: the model's own]"
)
@click.option(
    "--preprocess",
    is_flag=True,
    help="Take uint8 pictures [N, H, W, 3] of that size and normalize them in the graph.",
)
def export(
    model: str,
    target: str,
    out: Path | None,
    weights: str | None,
    batch: int | None,
    size: int | None,
    preprocess: bool,
) -> None:
    """Write an int8 model as a file that stands alone.

    \b
    Examples:
      qzoo export resnet50 --to onnx
      qzoo export resnet50 --to openvino --batch 1 --preprocess -o model.xml
      qzoo export my_model.safetensors --to executorch
    """
    row = FORMATS[target]
    path = out or Path(Path(model).stem + row.suffix)
    write: Any = getattr(importlib.import_module(f"qzoo.export.{row.module}"), row.function)
    artifact = to_artifact(load_model(model, weights))
    write(artifact, path, batch_size=batch, input_size=size, preprocess=preprocess)
    files = [path, path.with_suffix(".bin")] if target == "openvino" else [path]
    for file in files:
        print_line(f"{file}  {file.stat().st_size / 2**20:.1f} MiB")
