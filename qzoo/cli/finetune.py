"""`qzoo finetune`: a folder of pictures becomes a model of one's own, float and int8."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from .._core.option_types import Number, Whole
from . import _options as opt
from ._command import command, complete_files, option, place
from ._endings import WEIGHTS_ENDINGS
from ._output import only_json, print_json, print_line
from ._pictures import figures

if TYPE_CHECKING:
    from ..training import Outcome, TransferOptions


#: What training takes under the same names.
_AS_THEY_ARE = (
    *("epochs", "lr", "lr_warmup_epochs", "clip_grad_norm", "qat_lr", "batch_size", "augment"),
    *("seed", "threads", "device", "overwrite", "recipe", "backend"),
)


@dataclass(frozen=True)
class FinetuneOptions:
    """What `qzoo finetune` takes."""

    data: str = place(
        "PHOTOS",
        "--data",
        help="The pictures, if they do not stand first.",
        complete=opt.complete_data,
        missing="option '--data' (or PHOTOS in its place)",
    )
    model: str = opt.model_option(
        default="mobilenet_v2",
        help="The model of the zoo to start from; beside --checkpoint, which model its "
        "weights are of.",
    )
    weights: str | None = opt.weights(
        help="Which of torchvision's float weights to start from, or none for random ones.  "
        "[default: DEFAULT]"
    )
    checkpoint: str | None = option(
        "--checkpoint",
        help="A file of float weights to start from instead of --model.",
        shell_complete=complete_files,
    )
    part: str | None = opt.part()
    transform_input: bool | None = opt.transform_input()
    int8: bool = option(
        "--int8/--float", default=True, help="Whether to quantize the fine-tuned model."
    )
    qat: bool = option("--qat", is_flag=True, help="Quantize by training, also where PTQ would do.")
    recipe: str = opt.recipe()
    backend: str | None = opt.backend()
    out: Path | None = opt.out(
        help="Folder to write.  "
        "[default: PHOTOS-MODEL or, where that is taken, PHOTOS-MODEL-2, ...]"
    )
    epochs: int = option(
        "--epochs", type=Whole(1), default=10, help="How often training goes through all pictures."
    )
    lr: float = option(
        "--lr",
        type=Number(0, min_open=True),
        default=0.0003,
        help="Learning rate at the start; it falls to 0 along a cosine.",
    )
    lr_warmup_epochs: int = option(
        "--lr-warmup-epochs",
        type=Whole(0),
        default=0,
        help="Epochs in which the learning rate rises.",
    )
    clip_grad_norm: float | None = option(
        "--clip-grad-norm",
        type=Number(0, min_open=True),
        help="Largest norm of the gradients in a training step.  [default: no limit]",
    )
    qat_lr: float | None = option(
        "--qat-lr",
        type=Number(0, min_open=True),
        help="Learning rate of training with quantization.  [default: a tenth of --lr]",
    )
    batch_size: int | None = opt.batch_size(
        help="Pictures per step of training.  [default: 32, or all there are]"
    )
    size: int | None = opt.size(help="Height and width in pixels to train on.  [default: 224]")
    augment: str | None = option(
        "--augment",
        type=click.Choice(["none", "affine", "turn", "crop"]),
        help="How training pictures are varied: small shifts and turns (affine), quarter turns and "
        "mirroring (turn), random crops and mirroring (crop), or not at all.  "
        "[default: crop; digits: affine; fractals: turn]",
    )
    seed: int = opt.seed(help="Seed of everything random; the same seed gives the same model.")
    threads: int | None = opt.threads()
    device: str | None = option(
        "--device", help="cpu, cuda, ...  [default: a GPU where there is one]"
    )
    resume: bool = option(
        "--resume",
        is_flag=True,
        help="Go on with the interrupted run that has the same options, in its folder.",
    )
    overwrite: bool = option(
        "--overwrite", is_flag=True, help="Replace the run that the folder holds."
    )
    as_json: bool = opt.as_json()


@command(FinetuneOptions)
def finetune(options: FinetuneOptions) -> None:
    """Fine-tune a model on your own pictures and quantize it to int8.

    PHOTOS is a folder with a folder of pictures per class, or with train/ and val/, each of which
    has a folder per class; or the name of a data set (digits, fractals). Without val/, a fifth of
    each class is held out to measure on. The model's head is replaced and trained first, then
    everything.

    \b
    Examples:
      qzoo finetune photos/ --model mobilenet_v2 --int8
      qzoo finetune photos/ --model resnet50 --epochs 20 --qat -o runs/photos
      qzoo finetune photos/ --checkpoint earlier/model.safetensors
      qzoo finetune photos/ --checkpoint resnet18_state_dict.pth
      qzoo finetune digits --model shufflenet_v2_x0_5 --weights none --epochs 30 --lr 0.002
    """
    with only_json(options.as_json):
        row, lines = _finetune(options)
    if options.as_json and row:
        print_json(row)
    elif not options.as_json:
        for line in lines:
            print_line(line)


def _finetune(chosen: FinetuneOptions) -> tuple[dict[str, Any], list[str]]:
    """Runs the training; returns its figures as JSON values and as lines, for the first process."""
    from .. import training

    model, checkpoint = _start(chosen.model, chosen.checkpoint)
    source = {"data": chosen.data}
    name = chosen.data
    if name not in opt.NAMED_DATA:
        source, name = {"data_path": str(Path(name))}, Path(name).resolve().name
    weights = chosen.weights or "DEFAULT"
    scratch = not checkpoint and weights.lower() == "none"  # there is nothing to keep from harm
    options = training.TransferOptions().changed(
        **training.TRANSFER_DEFAULTS
        | source
        | {key: getattr(chosen, key) for key in _AS_THEY_ARE}
        | ({"head_epochs": 0, "head_lr_factor": 1.0} if scratch else {})
        | {
            "model": model,
            "weights": weights,
            "checkpoint": checkpoint,
            "told": {"part": chosen.part, "transform_input": chosen.transform_input},
            "quantize": ("qat" if chosen.qat else "auto") if chosen.int8 else "none",
            "resume": "auto" if chosen.resume else None,
            "train_crop_size": chosen.size,
            "output_dir": chosen.out,
        }
    )
    compute = options.train.compute
    with training.joined(compute.device, compute.threads) as ranks:
        if not chosen.out:
            base = Path(f"{name}-{'own' if checkpoint else model}")
            folder = ranks.gather(_folder(base, options) if ranks.first else "")[0]
            options = options.changed(output_dir=folder)
        training.set_up(options.train, ranks)
        done = training.transfer(options, ranks, "finetune", training.command_line("qzoo"))
        if not ranks.first:
            return {}, []
        training.measure_latency(done, compute.threads or 1)
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
