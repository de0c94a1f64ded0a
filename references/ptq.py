"""Quantizes a float model after training (PTQ): calibrate ranges, convert, measure, save.

python references/ptq.py --data digits --checkpoint runs/digits/model.safetensors \\
    --output runs/digits/int8.safetensors

Without --recipe, PyTorch's own observers choose the ranges, as they did for the bundled weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from torch import nn

from qzoo import training
from qzoo._core.option_types import MOST_SEED, Whole
from qzoo._torch.threads import torch_threads
from qzoo.backends import BACKENDS, get_backend
from qzoo.datasets.evaluate import Metrics, evaluate
from qzoo.datasets.unseen import preset_of
from qzoo.native.model import model_info, save
from qzoo.quantize import RECIPES, Recipe, ptq
from qzoo.quantize.flows import FLOWS
from qzoo.training import option, sources

#: Points of top-1 that int8 may lose without a word.
LARGE_LOSS = 1.0
#: PyTorch's own observers, on images of every class.
PYTORCH = Recipe("pytorch", (), "histogram")


@dataclass(frozen=True)
class Options(training.Options):
    """The options of this script."""

    data: str | None = option(
        None, type=click.Choice(sources.NAMED_DATA), help="A data set that needs no download."
    )
    data_path: str | None = option(None, help="A folder with train/CLASS/* and val/CLASS/*.")
    model: str | None = option(
        None, help="A model of the zoo; the checkpoint's, where there is one."
    )
    checkpoint: str | None = option(None, help="The model.safetensors of references/train.py.")
    weights: str | None = option(None, help="torchvision's float weights instead, such as DEFAULT.")
    backend: str = option("x86", type=click.Choice(list(BACKENDS)))
    recipe: str = option(
        PYTORCH.name,
        type=click.Choice([PYTORCH.name, *RECIPES]),
        help="qzoo's steps, or PyTorch's observers.",
    )
    flow: str = option("eager", type=click.Choice(list(FLOWS)))
    batch_size: int = option(32, "-b", type=training.POSITIVE, help="Images per calibration batch.")
    num_calibration_batches: int = option(32, type=training.POSITIVE)
    seed: int = option(0, type=Whole(0, MOST_SEED), help="Picks calibration images.")
    threads: int | None = option(None, type=training.POSITIVE, help="CPU threads; all cores.")
    output: str = option("", required=True, help="The int8 artifact to write (.safetensors).")
    results: str | None = option(None, help="A CSV file that gets or replaces this model's row.")

    @property
    def method(self) -> str:
        """What this is called in results files."""
        return (
            f"PTQ ({self.flow})"
            if self.recipe == PYTORCH.name
            else f"PTQ ({self.flow}, {self.recipe})"
        )


@click.command(cls=training.Command, context_settings={"show_default": True})
@training.click_options(Options)
def main(**values: Any) -> None:
    """Quantizes a float model to int8 and measures both on the held-out split.

    Calibration images come from the training split, an equal share of every class, through the
    evaluation transforms.
    """
    options = Options.of(values)
    click.get_current_context().with_resource(torch_threads(options.threads))
    data = sources.open_data(options.data, options.data_path)
    model = training.trained_model(options.model, options.weights, options.checkpoint)
    info = model_info(model)
    training.check_classes(model, data, own=bool(options.checkpoint))
    preset = preset_of(model)
    test_set = data.split("test", preset)
    output = Path(options.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    int8 = quantize(model, data.split("train", preset), options)
    found = {"float": evaluate(model, test_set), "int8": evaluate(int8, test_set)}
    recipe = {
        **info.recipe,
        "quantize": training.command_line("ptq.py"),
        **model_info(int8).recipe,
        "float_metrics": {data.held_out: found["float"].to_dict()},
        "float_file_size_mib": training.mib(Path(options.checkpoint))
        if options.checkpoint
        else None,
    }
    save(int8, output, recipe=recipe, metrics={data.held_out: found["int8"].to_dict()})
    click.echo(f"float: {found['float']}")
    click.echo(f"int8:  {found['int8']}; wrote {output} ({training.mib(output):.3f} MiB)")
    if (lost := found["float"].top1 - found["int8"].top1) > LARGE_LOSS:
        per_channel = get_backend(options.backend).per_channel
        hint = "" if per_channel else ", for example one with a scale per output channel"
        click.echo(f"int8 loses {lost:.2f} points: try another --backend{hint}.", err=True)
    if options.results:
        put_result(model, data, found, recipe, options)


def quantize(model: nn.Module, train_set: Any, options: Options) -> nn.Module:
    """Returns a native int8 copy of a float model."""
    wanted = options.batch_size * options.num_calibration_batches
    if len(train_set) < wanted:
        click.echo(f"Calibrating on all {len(train_set)} training images ({wanted} asked for).")
    return ptq(
        model,
        train_set,
        backend=options.backend,
        recipe=PYTORCH if options.recipe == PYTORCH.name else options.recipe,
        flow=options.flow,
        images=wanted,
        batch_size=options.batch_size,
        seed=options.seed,
    )


def put_result(
    model: nn.Module,
    data: sources.Data,
    found: dict[str, Metrics],
    recipe: dict[str, Any],
    options: Options,
) -> None:
    """Writes the row of results."""
    info, metrics = model_info(model), found["int8"]
    low, high = metrics.interval()
    row = {
        "model": info.architecture,
        "data": data.name,
        "backend": options.backend,
        "method": options.method,
        "float_top1": round(found["float"].top1, 3),
        "int8_top1": round(metrics.top1, 3),
        "int8_top1_low": round(low, 3),
        "int8_top1_high": round(high, 3),
        "n_test": metrics.n,
        "input_size": preset_of(model).crop_size[0],
        "float_mib": recipe["float_file_size_mib"],
        "int8_mib": training.mib(Path(options.output)),
        "seed": info.recipe.get("seed"),
        "calibration_images": recipe["calibration_images"],
        **training.environment(),
        "train_command": info.recipe.get("train"),
        "quantize_command": recipe["quantize"],
    }
    training.put_row(Path(str(options.results)), row, ("model", "data", "backend", "method"))


if __name__ == "__main__":
    main()
