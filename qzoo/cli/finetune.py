"""`qzoo finetune`: a folder of pictures becomes a model of one's own, float and int8."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from .._core.option_types import MOST_SEED, MOST_SIZE, Number, Whole
from ._options import (
    NAMED_DATA,
    WEIGHTS_ENDINGS,
    backend_option,
    batch_size_option,
    complete_files,
    data_place,
    json_option,
    model_option,
    part_option,
    recipe_option,
    takes,
    threads_option,
    transform_input_option,
    weights_option,
)
from ._output import only_json, print_json, print_line
from .evaluate import figures

if TYPE_CHECKING:
    from ..training import Outcome, TransferOptions


@click.command()
@takes(data_place("The pictures, if they do not stand first.", metavar="PHOTOS"))
@model_option(
    "mobilenet_v2",
    "The model of the zoo to start from; beside --checkpoint, which model its weights are of.",
)
@weights_option("Which of torchvision's float weights to start from, or none for random ones.")
@click.option(
    "--checkpoint",
    help="A file of float weights to start from instead of --model.",
    shell_complete=complete_files,
)
@part_option
@transform_input_option
@click.option(
    "--int8/--float",
    "int8",
    default=True,
    show_default=True,
    help="Whether to quantize the fine-tuned model.",
)
@click.option("--qat", is_flag=True, help="Quantize by training, also where PTQ would do.")
@recipe_option
@backend_option
@click.option(
    "--out",
    "-o",
    type=click.Path(path_type=Path),
    help="Folder to write.  [default: PHOTOS-MODEL or, where that is taken, PHOTOS-MODEL-2, ...]",
)
@click.option(
    "--epochs",
    default=10,
    show_default=True,
    type=Whole(1),
    help="How often training goes through all pictures.",
)
@click.option(
    "--lr",
    default=0.0003,
    show_default=True,
    type=Number(0, min_open=True),
    help="Learning rate at the start; it falls to 0 along a cosine.",
)
@click.option(
    "--lr-warmup-epochs",
    default=0,
    show_default=True,
    type=Whole(0),
    help="Epochs in which the learning rate rises.",
)
@click.option(
    "--clip-grad-norm",
    type=Number(0, min_open=True),
    help="Longest gradient of a step.  [default: no limit]",
)
@click.option(
    "--qat-lr",
    type=Number(0, min_open=True),
    help="Learning rate of training with quantization.  [default: a tenth of --lr]",
)
@batch_size_option(None, "Pictures per step of training.  [default: 32, or all there are]")
@click.option(
    "--size",
    type=Whole(1, MOST_SIZE),
    help="Height and width in pixels to train on.  [default: 224]",
)
@click.option(
    "--augment",
    type=click.Choice(["none", "affine", "turn", "crop"]),
    help="How training pictures are varied: small shifts and turns (affine), quarter turns and "
    "mirroring (turn), random crops and mirroring (crop), or not at all.  "
    "[default: crop; digits: affine; fractals: turn]",
)
@click.option(
    "--seed",
    type=Whole(0, MOST_SEED),
    default=0,
    show_default=True,
    help="Of everything random; the same seed gives the same model.",
)
@threads_option
@click.option("--device", help="cpu, cuda, ...  [default: a GPU where there is one]")
@click.option(
    "--resume",
    is_flag=True,
    help="Go on with the interrupted run that has the same options, in its folder.",
)
@click.option("--overwrite", is_flag=True, help="Replace the run that the folder holds.")
@json_option
def finetune(
    data: str,
    int8: bool,
    qat: bool,
    out: Path | None,
    size: int | None,
    as_json: bool,
    **chosen: Any,
) -> None:
    """Fine-tune a model on your own pictures and quantize it to int8.

    PHOTOS is a folder with a folder of pictures per class, or with train/ and val/ of such; or the
    name of a data set (digits, fractals). Without val/, a fifth of each class is held out to
    measure on. The model's head is replaced and trained first, then everything.

    \b
    Examples:
      qzoo finetune photos/ --model mobilenet_v2 --int8
      qzoo finetune photos/ --model resnet50 --epochs 20 --qat -o runs/photos
      qzoo finetune photos/ --checkpoint earlier/model.safetensors
      qzoo finetune photos/ --checkpoint resnet18_state_dict.pth
      qzoo finetune digits --model shufflenet_v2_x0_5 --weights none --epochs 30 --lr 0.002
    """
    with only_json(as_json):
        row, lines = _finetune(data, int8, qat, out, size, **chosen)
    if as_json and row:
        print_json(row)
    elif not as_json:
        for line in lines:
            print_line(line)


def _finetune(
    data: str, int8: bool, qat: bool, out: Path | None, size: int | None, **chosen: Any
) -> tuple[dict[str, Any], list[str]]:
    """Runs the training; returns its figures as JSON values and as lines, for the first process."""
    from .. import training

    checkpoint = chosen.pop("checkpoint")
    told = {key: chosen.pop(key) for key in ("part", "transform_input")}
    chosen["model"], checkpoint = _start(chosen["model"], checkpoint)
    chosen["resume"] = "auto" if chosen["resume"] else None
    chosen["weights"] = chosen["weights"] or "DEFAULT"
    source = {"data": data} if data in NAMED_DATA else {"data_path": str(Path(data))}
    name = Path(data).resolve().name if "data_path" in source else data
    started = "own" if checkpoint else chosen["model"]
    if not checkpoint and str(chosen["weights"]).lower() == "none":
        chosen |= {"head_epochs": 0, "head_lr_factor": 1.0}  # there is nothing to keep from harm
    options = training.TransferOptions().changed(
        **training.TRANSFER_DEFAULTS
        | source
        | chosen
        | {
            "checkpoint": checkpoint,
            "told": told,
            "quantize": ("qat" if qat else "auto") if int8 else "none",
            "train_crop_size": size,
            "output_dir": out,
        }
    )
    with training.joined(options.train.compute.device) as ranks:
        if not out:
            base = Path(f"{name}-{started}")
            folder = ranks.gather(_folder(base, options) if ranks.first else "")[0]
            options = options.changed(output_dir=folder)
        training.set_up(options.train, ranks)
        done = training.transfer(options, ranks, "finetune", training.command_line("qzoo"))
        if not ranks.first:
            return {}, []
        training.measure_latency(done, options.train.compute.threads or 1)
    return _row(done, name), training.summary(done)


def _start(model: str, checkpoint: str | None) -> tuple[str | None, str | None]:
    """Returns the model and the file to start from; a file may be named by --model, too."""
    if checkpoint is None:
        path = Path(model)
        is_weights = path.suffix in WEIGHTS_ENDINGS or path.is_file()
        return (None, model) if is_weights else (model, None)
    source = click.get_current_context().get_parameter_source("model")
    return (None if source is ParameterSource.DEFAULT else model), checkpoint


def _folder(base: Path, options: TransferOptions) -> str:
    """Returns the folder of a new run, or of the one to go on with."""
    from .. import training

    output = options.train.output
    if output.overwrite and not output.resume:
        return str(base)
    if output.resume:
        last = training.FLOAT if options.int8.quantize == "none" else training.INT8
        if found := training.find_run(base, options.settings(), last):
            return str(found)
        training.tell("There is no interrupted run to go on with: this one starts anew.")
    folder = training.new_folder(base)
    if folder != base:
        training.tell(f"{base} is taken, by an earlier run perhaps: this one goes to {folder}.")
    return str(folder)


def _row(done: Outcome, name: str) -> dict[str, Any]:
    from ..native.model import model_info

    row: dict[str, Any] = {"model": model_info(done.model).architecture, "data": name}
    row["method"] = done.method
    for kind, metrics in done.metrics.items():
        milliseconds, runtime = done.latency_ms[kind]
        row[kind] = {
            "file": str(done.files[kind]),
            "bytes": done.files[kind].stat().st_size,
            **figures(metrics),
            "latency_ms": round(milliseconds, 4),
            "runtime": runtime,
        }
    return row
