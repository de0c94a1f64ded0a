"""`qzoo quantize`: a float model becomes an int8 artifact."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ._endings import ARTIFACT, check_ending
from ._options import (
    FLOWS,
    backend_option,
    batch_size_option,
    choice,
    data_place,
    images_option,
    json_option,
    keep_float_option,
    model_place,
    out_option,
    recipe_option,
    seed_option,
    state_dict_options,
    takes,
    threads_option,
    weights_option,
)
from ._output import only_json, print_json, print_line, print_warning
from ._pictures import pictures_to_measure
from .analyze import check_folder
from .evaluate import figures, sentence

if TYPE_CHECKING:
    from torch import nn

    from ..datasets.evaluate import Metrics
    from ..datasets.sources import Data

#: Points of top-1 that int8 may lose without a word.
LARGE_LOSS = 1.0


@click.command()
@takes(model_place(), data_place())
@out_option(required=True)
@weights_option("Which of torchvision's float weights of MODEL, where that is a name.")
@state_dict_options()
@backend_option
@recipe_option
@click.option(
    "--flow",
    type=choice(FLOWS),
    default="eager",
    show_default=True,
    help="What chooses the numbers: eager is qzoo itself, fx and pt2e are PyTorch's own ways.",
)
@images_option
@seed_option
@keep_float_option()
@click.option(
    "--evaluate/--no-evaluate",
    default=None,
    help="Measure float and int8.  [default: where a split of the data is held out]",
)
@batch_size_option(32, "Pictures that go through the model at once.")
@threads_option
@json_option
def quantize(
    model: str,
    data: str,
    out: Path,
    weights: str | None,
    told: dict[str, Any],
    evaluate: bool | None,
    threads: int | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Quantize a float model to int8 after training (PTQ).

    MODEL is the name of a model, or a file or folder of float weights: of qzoo finetune, or a state
    dict that torch.save or safetensors wrote, also in a training checkpoint. DATA, to calibrate on,
    is digits, fractals, or a folder: with train/ and val/, with a folder per class, or of pictures.
    Of data with a train and a val split, the first calibrates and the second measures; of a folder
    on part of which MODEL was trained, that part calibrates and the rest measures.

    \b
    Examples:
      qzoo quantize my_model.safetensors --data photos -o int8.safetensors
      qzoo quantize resnet50 --data imagenet/train --recipe best -o resnet50.safetensors
      qzoo quantize resnet18_state_dict.pth --data photos -o int8.safetensors
      qzoo quantize my_model.safetensors --data photos --keep-float fc -o int8.safetensors
    """
    from torch.utils.data import DataLoader

    from .._core.timing import torch_threads
    from ..datasets.evaluate import evaluate as measure
    from ..datasets.holdout import by_training
    from ..datasets.sources import open_data
    from ..native.model import model_info
    from ..quantize import ptq
    from ._models import load_float_model, preset_of

    check_ending(out, ARTIFACT)
    check_folder(out)
    opened = open_data(data)
    loaded = load_float_model(model, weights, told)
    opened = by_training(opened, model_info(loaded).seen)
    held_out = "test" in opened.splits
    measured = (held_out and bool(opened.classes)) if evaluate is None else evaluate
    if measured:
        opened.labels_for(model_info(loaded))  # what does not fit shows now and not at the end
    with only_json(as_json), torch_threads(threads):
        calibration = opened.split("train" if held_out else "all", preset_of(loaded))
        int8 = ptq(loaded, calibration, **options)
        found = {}
        if measured:
            pictures, _ = pictures_to_measure(opened, loaded, int8, labelled=True)
            loader = DataLoader(pictures, options["batch_size"], num_workers=opened.workers)
            found = {"float": measure(loaded, loader), "int8": measure(int8, loader)}
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
    from ..native.model import model_info, save

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
    from ..native.model import model_info

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
    from ..native.model import model_info

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
