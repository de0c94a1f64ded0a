"""`qzoo quantize`: a float model becomes an int8 artifact."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import _options as opt
from ._command import command, option
from ._endings import ARTIFACT, check_ending, check_folder
from ._output import only_json, print_json, print_line, print_warning
from ._pictures import figures, pictures_to_measure, sentence

if TYPE_CHECKING:
    from torch import nn

    from ..datasets.evaluate import Metrics
    from ..datasets.sources import Data

#: Points of top-1 that int8 may lose without a word.
LARGE_LOSS = 1.0


@dataclass(frozen=True)
class QuantizeOptions:
    """What `qzoo quantize` takes."""

    model: str = opt.model()
    data: str = opt.data()
    out: Path = opt.out(required=True)
    weights: str | None = opt.float_weights()
    told: dict[str, Any] = opt.state_dict()
    backend: str | None = opt.backend()
    recipe: str = opt.recipe()
    flow: str = option(
        "--flow",
        type=opt.choice(opt.FLOWS),
        default="eager",
        help="What chooses the numbers: eager is qzoo itself, fx and pt2e are PyTorch's own ways.",
    )
    images: int | None = opt.images()
    seed: int = opt.seed()
    keep_float: tuple[str, ...] = opt.keep_float()
    evaluate: bool | None = option(
        "--evaluate/--no-evaluate",
        default=None,
        help="Measure float and int8.  [default: where a split of the data is held out]",
    )
    batch_size: int = opt.batch_size(default=32)
    threads: int | None = opt.threads()
    as_json: bool = opt.as_json()


@command(QuantizeOptions)
def quantize(options: QuantizeOptions) -> None:
    """Quantize a float model to int8 after training (PTQ).

    MODEL is the name of a model, or a file or folder of float weights: of qzoo finetune, or a state
    dict that torch.save or safetensors wrote, also in a training checkpoint. DATA, to calibrate on,
    is digits, fractals, or a folder: with train/ and val/, with a folder per class, or of pictures.
    With train/ and val/, the first calibrates and the second measures; of a folder on part of
    which MODEL was trained, that part calibrates and the rest measures.

    \b
    Examples:
      qzoo quantize my_model.safetensors --data photos -o int8.safetensors
      qzoo quantize resnet50 --data imagenet/train --recipe best -o resnet50.safetensors
      qzoo quantize resnet18_state_dict.pth --data photos -o int8.safetensors
      qzoo quantize my_model.safetensors --data photos --keep-float fc -o int8.safetensors
    """
    from .._torch.threads import torch_threads
    from ..datasets.holdout import by_training
    from ..datasets.sources import open_data
    from ..datasets.unseen import preset_of
    from ..native.model import model_info
    from ..quantize import ptq
    from ._models import load_float_model

    out = options.out
    check_ending(out, ARTIFACT)
    check_folder(out)
    opened = open_data(options.data)
    loaded = load_float_model(options.model, options.weights, options.told)
    opened = by_training(opened, model_info(loaded).seen)
    held_out = "test" in opened.splits
    wanted = options.evaluate
    measured = (held_out and bool(opened.classes)) if wanted is None else wanted
    if measured:
        opened.labels_for(model_info(loaded))  # what does not fit shows now and not at the end
    with only_json(options.as_json), torch_threads(options.threads):
        calibration = opened.split("train" if held_out else "all", preset_of(loaded))
        int8 = ptq(loaded, calibration, flow=options.flow, **opt.of_quantizing(options))
        found = _measured(loaded, int8, opened, options.batch_size) if measured else {}
    _save(int8, out, opened, found)
    if options.as_json:
        print_json(_row(loaded, int8, out, opened, found))
    else:
        _report(loaded, int8, out, found)
    lost = found["float"].top1 - found["int8"].top1 if found else 0.0
    if lost > LARGE_LOSS:
        print_warning(
            f"int8 loses {lost:.2f} points of top-1: try --recipe best, another --backend "
            "with a scale per channel, or --keep-float."
        )


def _measured(model: nn.Module, int8: nn.Module, data: Data, batch: int) -> dict[str, Metrics]:
    from torch.utils.data import DataLoader

    from ..datasets.evaluate import evaluate as measure

    pictures, _ = pictures_to_measure(data, model, int8, labelled=True)
    loader = DataLoader(pictures, batch, num_workers=data.workers)
    return {"float": measure(model, loader), "int8": measure(int8, loader)}


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
