"""Fine-tunes a model on your own pictures and writes it as float and as int8.

python references/transfer.py --data-path photos --model mobilenet_v2 --output-dir runs/photos
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from qzoo import training
from qzoo.native.model import model_info


@click.command(cls=training.Command, context_settings={"show_default": True})
@training.training_options(training.TransferOptions, **training.TRANSFER_DEFAULTS)
def main(**values: Any) -> None:
    """Replaces the head of a model, fine-tunes it, quantizes it, and measures both.

    Writes model.safetensors (float), int8.safetensors, checkpoint.pth and log.csv. Data may be a
    folder with train/CLASS/* and val/CLASS/*, or with CLASS/* alone, of which a fifth is held out.
    """
    options = training.TransferOptions.of(values)
    train = options.train
    with training.joined(train.compute.device, train.compute.threads) as ranks:
        training.set_up(train, ranks)
        command = training.command_line("transfer.py")
        done = training.transfer(options, ranks, "transfer.py", command)
        if not ranks.first:
            return
        training.measure_latency(done, train.compute.threads or 1)
        for line in training.summary(done):
            training.say(line)
        if train.output.results:
            put_result(Path(train.output.results), done, train, command)


def put_result(
    path: Path, done: training.Outcome, options: training.TrainOptions, command: str
) -> None:
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
        "epochs": options.schedule.epochs,
        "seed": options.compute.seed,
        **training.environment(),
        "command": command,
    }
    training.put_row(path, row, ("model", "data", "seed"))


if __name__ == "__main__":
    main()
