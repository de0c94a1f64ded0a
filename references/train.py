"""Trains a float model of the zoo, ready for quantization.

python references/train.py --data digits --model shufflenet_v2_x0_5 --output-dir runs/digits
torchrun --nproc_per_node 2 references/train.py --data digits ...
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import click
import torch
from torch import nn

from qzoo import training
from qzoo.datasets.evaluate import Metrics
from qzoo.errors import ArgumentError
from qzoo.native.model import model_info
from qzoo.registry import get_entry


@click.command(cls=training.Command, context_settings={"show_default": True})
@click.option("--model", required=True, help="A model of the zoo; `qzoo list` shows them.")
@click.option("--weights", help="Float weights to start from: torchvision's, such as DEFAULT.")
@training.training_options()
def main(**values: Any) -> None:
    """Trains a float model and writes model.safetensors, checkpoint.pth and log.csv.

    The same options, seed and thread count give the same weights on the same machine, whether or
    not the run was interrupted and resumed. The last epoch's weights are kept: the held-out split
    is measured for the log, never chosen by.
    """
    options = training.TrainOptions.of(values)
    start = training.StartOptions.of(values)
    name = get_entry(values["model"]).name
    only_test = options.output.test_only
    if only_test and not (start.weights or options.output.resume):
        raise ArgumentError("--test-only needs --weights or --resume, to know what to measure.")
    with training.joined(options.compute.device, options.compute.threads) as ranks:
        training.set_up(options, ranks)
        data = training.prepare_data(options, ranks, name)
        model = training.float_model(name, start.weights, len(data.classes))
        training.open_run(options.output, ranks)
        training.note_split(model, data, options, ranks)
        parts = training.Parts(
            loss=training.make_loss(options.loss, data), settings=start.settings()
        )
        trainer = training.Trainer(model, data, options, ranks, script="train.py", parts=parts)
        metrics = trainer.evaluate() if only_test else trainer.fit()
        if ranks.first:
            finish(model, data, trainer, metrics, options)


def finish(
    model: nn.Module,
    data: training.Prepared,
    trainer: training.Trainer,
    metrics: Metrics,
    options: training.TrainOptions,
) -> None:
    """Writes the weights and the row of results, and says what came out."""
    name = model_info(model).architecture
    if options.output.test_only:
        training.say(f"{name}: {metrics}")
        return
    command, path = training.command_line("train.py"), trainer.output / "model.safetensors"
    training.save_float(
        model,
        path,
        classes=data.classes,
        transforms=data.preset.to_dict(),
        recipe={"train": command, "seed": options.compute.seed, "threads": torch.get_num_threads()},
        metrics={data.data.held_out: metrics.to_dict()},
    )
    training.say(f"{name}: {metrics}; wrote {path}")
    if options.output.results:
        low, high = metrics.interval()
        row = {
            "model": name,
            "data": data.data.name,
            "float_top1": round(metrics.top1, 3),
            "float_top1_low": round(low, 3),
            "float_top1_high": round(high, 3),
            "n_test": metrics.n,
            "input_size": data.size,
            "epochs": options.schedule.epochs,
            "seed": options.compute.seed,
            "seconds": round(sum(float(line["seconds"]) for line in trainer.log)),
            **training.environment(),
            "command": command,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        training.put_row(Path(options.output.results), row, ("model", "data", "seed"))


if __name__ == "__main__":
    main()
