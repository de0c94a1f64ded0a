"""Fine-tunes a model on your own pictures and writes it as float and as int8.

python references/transfer.py --data-path photos --model mobilenet_v2 --output-dir runs/photos
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from qzoo import training
from qzoo._core.option_types import Number, Whole
from qzoo.backends import BACKENDS
from qzoo.native.model import model_info
from qzoo.quantize import RECIPES


@click.command(cls=training.Command, context_settings={"show_default": True})
@click.option("--model", help="A model of the zoo; `qzoo list` shows them.")
@click.option("--weights", default="DEFAULT", help="torchvision's float weights, or none.")
@click.option("--checkpoint", help="A model.safetensors to start from instead of --model.")
@click.option(
    "--head-epochs",
    type=Whole(0),
    default=1,
    help="Epochs in which the new head alone is trained.",
)
@click.option(
    "--head-lr-factor",
    type=Number(0, min_open=True),
    default=10.0,
    help="Learning rate of the head over that of the rest.",
)
@click.option(
    "--quantize",
    type=click.Choice(training.QUANTIZE),
    default="auto",
    help="auto: PTQ, and QAT where that loses more than --max-drop.",
)
@click.option("--max-drop", type=Number(0), default=0.5, help="Points of top-1.")
@click.option("--recipe", type=click.Choice(list(RECIPES)), default="default", help="Of PTQ.")
@click.option("--backend", type=click.Choice(list(BACKENDS)), help="onednn; without VNNI, x86.")
@click.option("--qat-epochs", type=training.POSITIVE, default=3)
@click.option("--qat-lr", type=Number(0, min_open=True), help="A tenth of --lr.")
@training.training_options(
    epochs=10,
    batch_size=None,
    opt="adamw",
    lr=0.0003,
    weight_decay=0.01,
    lr_scheduler="cosine",
    label_smoothing=0.1,
)
def main(**options: Any) -> None:
    """Replaces the head of a model, fine-tunes it, quantizes it, and measures both.

    Writes model.safetensors (float), int8.safetensors, checkpoint.pth and log.csv. Data may be a
    folder with train/CLASS/* and val/CLASS/*, or with CLASS/* alone, of which a fifth is held out.
    """
    with training.joined(options["device"]) as ranks:
        training.set_up(options, ranks)
        command = training.command_line("transfer.py")
        done = training.transfer(options, ranks, "transfer.py", command)
        if not ranks.first:
            return
        training.measure_latency(done, options["threads"] or 1)
        for line in training.summary(done):
            training.say(line)
        if options["results"]:
            put_result(done, options, command)


def put_result(done: training.Outcome, options: dict[str, Any], command: str) -> None:
    """Writes the row of results."""
    info = model_info(done.model)
    row: dict[str, Any] = {"model": info.architecture, "data": next(iter(info.metrics))}
    row["method"] = done.method
    for kind in ("float", "int8"):
        metrics, file = done.metrics.get(kind), done.files.get(kind)
        row[f"{kind}_top1"] = round(metrics.top1, 3) if metrics else ""
        row[f"{kind}_mib"] = training.mib(file) if file else ""
        row[f"{kind}_ms"], row[f"{kind}_runtime"] = done.latency_ms.get(kind, ("", ""))
    row |= {
        "n_test": done.metrics["float"].n,
        "epochs": options["epochs"],
        "seed": options["seed"],
        **training.environment(),
        "command": command,
    }
    training.put_row(Path(options["results"]), row, ("model", "data", "seed"))


if __name__ == "__main__":
    main()
