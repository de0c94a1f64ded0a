"""Trains a float model on with quantization in the loop (QAT), and writes the int8 model.

python references/qat.py --data digits --checkpoint runs/digits/model.safetensors \\
    --output-dir runs/digits_qat
torchrun --nproc_per_node 2 references/qat.py --data digits ...
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from torch import nn

from qzoo import training
from qzoo.datasets.evaluate import Metrics
from qzoo.datasets.sources import Data
from qzoo.errors import ArgumentError
from qzoo.native.model import model_info
from qzoo.training import Prepared, Start, Trainer

#: The options that say what to start from.
MODEL = ("model", "weights", "checkpoint")
#: Points of top-1 that training may end below PTQ without a word.
LARGE_LOSS = 0.5


@click.command(cls=training.Command, context_settings={"show_default": True})
@click.option("--model", help="A model of the zoo; the checkpoint's, where there is one.")
@click.option("--checkpoint", help="The model.safetensors of train.py or transfer.py.")
@click.option("--weights", help="torchvision's float weights instead, such as DEFAULT; or none.")
@training.qat_options()
@training.training_options(epochs=10, lr=1e-4, lr_scheduler="cosine")
def main(**options: Any) -> None:
    """Trains with quantization in the loop and writes int8.safetensors, checkpoint.pth and log.csv.

    Training starts from a PTQ result (ptq.safetensors) with its ranges and its accuracy. The last
    epoch's weights are kept: the held-out split is measured for the log, never chosen by.
    `--teacher self` learns from the float model's answers as well.
    """
    with training.joined(options["device"]) as ranks:
        training.set_up(options, ranks)
        opened = training.sources.open_data(options["data"], options["data_path"])
        model = float_model(options, opened)
        name = model_info(model).architecture
        data = training.prepare_data(options, ranks, name, data=opened)
        training.open_run(options, ranks)
        training.note_split(model, data, options, ranks)
        start = training.start_qat(model, data, options, ranks)
        trainer = Trainer(
            start.model,
            data,
            options,
            ranks,
            script="qat.py",
            hooks=training.Freezing(options),
            loss=training.make_loss(options, data, model),
            optimizer=training.qat_optimizer(start.model, options),
            settings={**start.settings, **{n: options[n] for n in MODEL}},
        )
        metrics = trainer.evaluate() if options["test_only"] else trainer.fit()
        if options["test_only"]:
            training.say(f"{name}, fake quantized: {metrics}")
        elif ranks.first:
            finish(model, start, data, trainer, metrics, options)


def float_model(options: dict[str, Any], data: Data) -> nn.Module:
    """Returns the model to start from: a checkpoint, or one of the zoo with a fitting head."""
    name, weights, checkpoint = (options[option] for option in MODEL)
    if checkpoint is not None:
        model = training.trained_model(name, weights, checkpoint)
        training.check_classes(model, data, own=True)
        return model
    if name is None or weights is None:
        raise ArgumentError("Give either --checkpoint FILE or --model NAME --weights NAME.")
    model = training.starting_model(options, data.classes).eval()
    if model_info(model).classes is None:
        training.tell(
            f"The head of {name} has random weights (the other layers {weights}): better train it "
            "in float first (transfer.py), and start QAT from there."
        )
    return model


def finish(
    model: nn.Module,
    start: Start,
    data: Prepared,
    trainer: Trainer,
    trained: Metrics,
    options: dict[str, Any],
) -> None:
    """Measures float, PTQ and QAT, writes the artifact and the row of results."""
    info, command = model_info(model), training.command_line("qat.py")
    figures = {"float": training.measure(model, data)}
    if start.ptq is not None:
        figures["PTQ"] = training.measure(start.ptq, data)
    how = {"train": info.recipe.get("train"), "qat": command, "seed": options["seed"]}
    how["float_metrics"] = {data.data.held_out: figures["float"].to_dict()}
    done = training.finish_qat(start.model, trained, data, trainer.output, recipe=how, info=info)
    figures["QAT"] = done.metrics
    for kind, metrics in figures.items():
        training.say(f"{info.architecture} {kind:>5}: {metrics}")
    lost = figures["PTQ"].top1 - done.metrics.top1 if "PTQ" in figures else 0.0
    if lost > LARGE_LOSS:
        training.tell(
            f"Training ended {lost:.2f} points below PTQ, whose model is {trainer.output}/"
            f"{training.START}: try a lower --lr, or --batch-norm keep."
        )
    training.say(f"wrote {done.file} ({training.mib(done.file):.3f} MiB)")
    if not options["results"]:
        return
    low, high = done.metrics.interval()
    row = {
        "model": info.architecture,
        "data": data.data.name,
        "backend": start.settings["backend"],
        "float_top1": round(figures["float"].top1, 3),
        "ptq_recipe": options["recipe"],
        "ptq_top1": round(figures["PTQ"].top1, 3) if "PTQ" in figures else "",
        "fake_quantized_top1": round(trained.top1, 3),
        "qat_top1": round(done.metrics.top1, 3),
        "qat_top1_low": round(low, 3),
        "qat_top1_high": round(high, 3),
        "n_test": done.metrics.n,
        "input_size": data.size,
        "epochs": options["epochs"],
        "seed": options["seed"],
        "seconds": round(sum(float(line["seconds"]) for line in trainer.log)),
        **training.environment(),
        "train_command": info.recipe.get("train"),
        "command": command,
    }
    training.put_row(Path(options["results"]), row, ("model", "data", "backend", "seed"))


if __name__ == "__main__":
    main()
