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
from qzoo.training import Start, Trainer

#: Points of top-1 that training may end below PTQ without a word.
LARGE_LOSS = 0.5


@click.command(cls=training.Command, context_settings={"show_default": True})
@training.click_options(training.StartOptions)
@training.click_options(training.QatOptions)
@training.training_options(epochs=10, lr=1e-4, lr_scheduler="cosine")
def main(**values: Any) -> None:
    """Trains with quantization in the loop and writes int8.safetensors, checkpoint.pth and log.csv.

    Training starts from a PTQ result (ptq.safetensors) with its ranges and its accuracy. The last
    epoch's weights are kept: the held-out split is measured for the log, never chosen by.
    `--teacher self` learns from the float model's answers as well.
    """
    options = training.TrainOptions.of(values)
    source, how = training.StartOptions.of(values), training.QatOptions.of(values)
    with training.joined(options.compute.device, options.compute.threads) as ranks:
        training.set_up(options, ranks)
        opened = training.sources.open_data(options.data.data, options.data.data_path)
        model = float_model(source, opened)
        name = model_info(model).name
        data = training.prepare_data(options, ranks, name, data=opened)
        training.open_run(options.output, ranks)
        training.note_split(model, data, options, ranks)
        start = training.start_qat(model, data, options, how, ranks, source.settings())
        trainer = Trainer(start.model, data, options, ranks, script="qat.py", parts=start.parts)
        if options.output.test_only:
            training.say(f"{name}, fake quantized: {trainer.evaluate()}")
            return
        metrics = trainer.fit()
        if ranks.first:
            finish(model, start, trainer, metrics)


def float_model(options: training.StartOptions, data: Data) -> nn.Module:
    """Returns the model to start from: a checkpoint, or one of the zoo with a fitting head."""
    name, weights = options.model, options.weights
    if options.checkpoint is not None:
        model = training.trained_model(name, weights, options.checkpoint)
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


def finish(model: nn.Module, start: Start, trainer: Trainer, trained: Metrics) -> None:
    """Measures float, PTQ and QAT, writes the artifact and the row of results."""
    data, options, seed = trainer.data, trainer.options, trainer.options.compute.seed
    info, command = model_info(model), training.command_line("qat.py")
    figures = {"float": training.measure(model, data)}
    if start.ptq is not None:
        figures["PTQ"] = training.measure(start.ptq, data)
    how = {"train": info.recipe.get("train"), "qat": command, "seed": seed}
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
    if not options.output.results:
        return
    low, high = done.metrics.interval()
    row = {
        "model": info.architecture,
        "data": data.data.name,
        "backend": start.parts.settings["backend"],
        "float_top1": round(figures["float"].top1, 3),
        "ptq_recipe": start.parts.settings["recipe"],
        "ptq_top1": round(figures["PTQ"].top1, 3) if "PTQ" in figures else "",
        "fake_quantized_top1": round(trained.top1, 3),
        "qat_top1": round(done.metrics.top1, 3),
        "qat_top1_low": round(low, 3),
        "qat_top1_high": round(high, 3),
        "n_test": done.metrics.n,
        "input_size": data.size,
        "epochs": options.schedule.epochs,
        "seed": seed,
        "seconds": round(sum(float(line["seconds"]) for line in trainer.log)),
        **training.environment(),
        "train_command": info.recipe.get("train"),
        "command": command,
    }
    training.put_row(Path(options.output.results), row, ("model", "data", "backend", "seed"))


if __name__ == "__main__":
    main()
