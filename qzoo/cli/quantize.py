"""`qzoo quantize`: a float model becomes an int8 artifact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from torch import nn

from ..artifact.native import model_info, save
from ..backends import BACKENDS
from ..benchmark import torch_threads
from ..datasets.sources import Data, open_data
from ..errors import ArgumentError
from ..evaluate import Metrics
from ..evaluate import evaluate as measure
from ..quantize import RECIPES, ptq
from ..quantize.flows import FLOWS
from ._models import load_float_model, preset_of
from ._output import print_json, print_line, print_warning
from .evaluate import DATA_HELP, figures, labelled_pictures, sentence

#: Points of top-1 that int8 may lose without a word.
LARGE_LOSS = 1.0


@click.command()
@click.argument("model")
@click.option("--data", required=True, help=f"Pictures to calibrate on: {DATA_HELP}")
@click.option("--out", "-o", required=True, type=click.Path(path_type=Path), help="Artifact.")
@click.option("--weights", "-w", help="torchvision's float weights.  [default: DEFAULT]")
@click.option(
    "--backend",
    type=click.Choice(list(BACKENDS)),
    help="Numeric configuration.  [default: onednn or, without VNNI, x86]",
)
@click.option("--recipe", type=click.Choice(list(RECIPES)), default="default", show_default=True)
@click.option("--flow", type=click.Choice(list(FLOWS)), default="eager", show_default=True)
@click.option("--images", type=click.IntRange(1), help="To calibrate on.  [default: the recipe's]")
@click.option("--seed", type=click.IntRange(0), default=0, help="Picks images.", show_default=True)
@click.option(
    "--keep-float",
    multiple=True,
    metavar="PATTERN",
    help="Layers whose weights stay float, such as fc or 'layer4.*'; may be repeated.",
)
@click.option(
    "--evaluate/--no-evaluate",
    default=None,
    help="Measure float and int8.  [default: where a split of the data is held out]",
)
@click.option("--batch-size", "-b", default=32, show_default=True, type=click.IntRange(1))
@click.option("--threads", type=click.IntRange(1), help="[default: all cores]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of lines.")
def quantize(
    model: str,
    data: str,
    out: Path,
    weights: str | None,
    evaluate: bool | None,
    threads: int | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Quantize a float model to int8 after training (PTQ).

    MODEL is a checkpoint of float weights (references/train.py and qzoo.checkpoint.save_float write
    them) or the name of a model. Of data with a train and a val split, the first calibrates and the
    second measures.

    \b
    Examples:
      qzoo quantize my_model.safetensors --data photos -o int8.safetensors
      qzoo quantize resnet50 --data imagenet/train --recipe best -o resnet50.safetensors
      qzoo quantize my_model.safetensors --data photos --keep-float fc -o int8.safetensors
    """
    opened = open_data(data)
    held_out = "test" in opened.splits
    if evaluate and not opened.classes:
        raise ArgumentError(f"{opened.name} holds pictures without labels: drop --evaluate.")
    if not out.absolute().parent.is_dir():
        raise ArgumentError(f"There is no folder {out.parent} to write {out.name} to.")
    loaded = load_float_model(model, weights)
    preset = preset_of(loaded)
    measured = held_out if evaluate is None else evaluate
    batch_size = options["batch_size"]
    pictures = labelled_pictures(opened, loaded, batch_size) if measured else None
    with torch_threads(threads):
        calibration = opened.split("train" if held_out else "all", preset)
        int8 = ptq(loaded, calibration, **{**options, "keep_float": list(options["keep_float"])})
        found = {}
        if pictures is not None:
            found = {"float": measure(loaded, pictures), "int8": measure(int8, pictures)}
    _save(int8, out, opened, found)
    if as_json:
        print_json(_row(loaded, int8, out, opened, found))
    else:
        _report(loaded, int8, out, found)
    lost = found["float"].top1 - found["int8"].top1 if found else 0.0
    if lost > LARGE_LOSS:
        print_warning(
            f"int8 loses {lost:.2f} points of top-1: try --recipe best, another --backend "
            "with a scale per channel, or --keep-float."
        )


def _save(int8: nn.Module, out: Path, data: Data, found: dict[str, Metrics]) -> None:
    if not found:
        save(int8, out)
        return
    recipe = {
        **model_info(int8).recipe,
        "float_metrics": {data.held_out: found["float"].to_dict()},
    }
    save(int8, out, recipe=recipe, metrics={data.held_out: found["int8"].to_dict()})


def _row(
    model: nn.Module, int8: nn.Module, out: Path, data: Data, found: dict[str, Metrics]
) -> dict[str, Any]:
    info = model_info(int8)
    return {
        "model": info.architecture,
        "backend": info.backend,
        "file": str(out),
        "float_bytes": _float_bytes(model),
        "int8_bytes": out.stat().st_size,
        "data": data.name,
        **{kind: figures(metrics) for kind, metrics in found.items()},
        "recipe": info.recipe,
    }


def _report(model: nn.Module, int8: nn.Module, out: Path, found: dict[str, Metrics]) -> None:
    info = model_info(int8)
    before, after = _float_bytes(model) / 2**20, out.stat().st_size / 2**20
    images = info.recipe["calibration_images"]
    print_line(f"{info.architecture}, {info.backend}, calibrated on {images} images")
    if changed := info.recipe.get("changed"):
        print_line(f"{len(changed)} places round differently from the flow's own model (recorded)")
    print_line(f"{out}: {before:.2f} MiB float, {after:.2f} MiB int8")
    for kind, metrics in found.items():
        print_line(f"{kind:5}: {sentence(metrics)}")


def _float_bytes(model: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in model.state_dict().values())
