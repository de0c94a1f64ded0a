"""Quantizes a float model after training (PTQ): calibrate ranges, convert, measure, save.

python references/ptq.py --data digits --checkpoint runs/digits/model.safetensors \\
    --output runs/digits/int8.safetensors

Without --recipe, PyTorch's own observers choose the ranges, as they did for the bundled weights.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click
import torch
from torch import nn

from qzoo import training
from qzoo._core.option_types import MOST_SEED, Whole
from qzoo.artifact.seen import CALIBRATION, hashes, noted
from qzoo.backends import BACKENDS, get_backend
from qzoo.datasets.evaluate import evaluate
from qzoo.errors import ArgumentError
from qzoo.native.model import model_info, save, to_native
from qzoo.quantize import RECIPES, ptq
from qzoo.quantize.data import open_calibration
from qzoo.quantize.flows import FLOWS, torch_artifact
from qzoo.training import sources
from qzoo.transforms import ImageClassification

POSITIVE = Whole(1)
#: Points of top-1 that int8 may lose without a word.
LARGE_LOSS = 1.0
#: The recipe that is PyTorch's own, on images of every class.
PYTORCH = "pytorch"


@click.command(cls=training.Command, context_settings={"show_default": True})
@click.option(
    "--data", type=click.Choice(sources.NAMED_DATA), help="A data set that needs no download."
)
@click.option("--data-path", help="A folder with train/CLASS/* and val/CLASS/*.")
@click.option("--model", help="A model of the zoo; the checkpoint's, where there is one.")
@click.option("--checkpoint", help="The model.safetensors of references/train.py.")
@click.option("--weights", help="torchvision's float weights instead, such as DEFAULT.")
@click.option("--backend", type=click.Choice(list(BACKENDS)), default="x86")
@click.option(
    "--recipe",
    type=click.Choice([PYTORCH, *RECIPES]),
    default=PYTORCH,
    help="qzoo's steps, or PyTorch's observers.",
)
@click.option("--flow", type=click.Choice(list(FLOWS)), default="eager")
@click.option("-b", "--batch-size", type=POSITIVE, default=32, help="Images per calibration batch.")
@click.option("--num-calibration-batches", type=POSITIVE, default=32)
@click.option("--seed", type=Whole(0, MOST_SEED), default=0, help="Picks calibration images.")
@click.option("--threads", type=POSITIVE, help="CPU threads; all cores.")
@click.option("--output", required=True, help="The int8 artifact to write (.safetensors).")
@click.option("--results", help="A CSV file that gets or replaces this model's row.")
def main(**options: Any) -> None:
    """Quantizes a float model to int8 and measures both on the held-out split.

    Calibration images come from the training split, an equal share of every class, through the
    evaluation transforms.
    """
    if options["threads"]:
        torch.set_num_threads(options["threads"])
    backend = get_backend(options["backend"])
    data = sources.open_data(options["data"], options["data_path"])
    float_model = training.trained_model(*(options[k] for k in ("model", "weights", "checkpoint")))
    info = model_info(float_model)
    if info.transforms is None:
        raise ArgumentError("These float weights name no transforms to evaluate with.")
    training.check_classes(float_model, data, own=bool(options["checkpoint"]))
    preset = ImageClassification.from_dict(info.transforms)
    test_set = data.split("test", preset)
    output = Path(options["output"])
    output.parent.mkdir(parents=True, exist_ok=True)

    train_set = data.split("train", preset)
    wanted = options["batch_size"] * options["num_calibration_batches"]
    if len(train_set) < wanted:
        click.echo(f"Calibrating on all {len(train_set)} training images ({wanted} asked for).")
    int8_model, how = quantize(float_model, train_set, wanted, options)

    float_metrics, metrics = evaluate(float_model, test_set), evaluate(int8_model, test_set)
    command = training.command_line("ptq.py")
    recipe = {
        **info.recipe,
        "quantize": command,
        **how,
        "float_metrics": {data.held_out: float_metrics.to_dict()},
        "float_file_size_mib": training.mib(Path(options["checkpoint"]))
        if options["checkpoint"]
        else None,
    }
    save(
        int8_model,
        output,
        backend=backend.name,
        recipe=recipe,
        metrics={data.held_out: metrics.to_dict()},
    )
    click.echo(f"float: {float_metrics}")
    click.echo(f"int8:  {metrics}; wrote {output} ({training.mib(output):.3f} MiB)")
    if (lost := float_metrics.top1 - metrics.top1) > LARGE_LOSS:
        hint = "" if backend.per_channel else ", for example one with a scale per output channel"
        click.echo(f"int8 loses {lost:.2f} points: try another --backend{hint}.", err=True)
    if options["results"]:
        low, high = metrics.interval()
        row = {
            "model": info.architecture,
            "data": data.name,
            "backend": backend.name,
            "method": _method(options),
            "float_top1": round(float_metrics.top1, 3),
            "int8_top1": round(metrics.top1, 3),
            "int8_top1_low": round(low, 3),
            "int8_top1_high": round(high, 3),
            "n_test": metrics.n,
            "input_size": preset.crop_size[0],
            "float_mib": recipe["float_file_size_mib"],
            "int8_mib": training.mib(output),
            "seed": info.recipe.get("seed"),
            "calibration_images": how["calibration_images"],
            **training.environment(),
            "train_command": info.recipe.get("train"),
            "quantize_command": command,
        }
        training.put_row(Path(options["results"]), row, ("model", "data", "backend", "method"))


def quantize(
    model: nn.Module, train_set: Any, images: int, options: dict[str, Any]
) -> tuple[nn.Module, dict[str, Any]]:
    """Returns a native int8 copy of a float model, and how it was made.

    Without a recipe or flow, the steps are those that PyTorch's users know: `fuse_model`,
    `torch.ao.quantization.prepare`, forward passes, `torch.ao.quantization.convert`.
    """
    choice = {"images": images, "batch_size": options["batch_size"], "seed": options["seed"]}
    if options["recipe"] != PYTORCH or options["flow"] != "eager":
        # The other flows' own observers are what "default" means to them.
        recipe = "default" if options["recipe"] == PYTORCH else options["recipe"]
        backend = options["backend"]
        flow = options["flow"]
        int8 = ptq(model, train_set, backend=backend, recipe=recipe, flow=flow, **choice)
        return int8, model_info(int8).recipe
    calibration = open_calibration(train_set, transform=None, **choice)
    artifact = torch_artifact(model, calibration, get_backend(options["backend"]), "eager", True)
    seen = noted(artifact.info.seen, CALIBRATION, hashes(calibration.files))
    how = {
        "method": _method(options),
        "calibration_seed": options["seed"],
        "calibration_images": calibration.count,
        "calibration_sha256": calibration.sha256,
    }
    artifact = dataclasses.replace(artifact, info=dataclasses.replace(artifact.info, seen=seen))
    return to_native(artifact), {**artifact.info.recipe, **how}


def _method(options: dict[str, Any]) -> str:
    recipe = "" if options["recipe"] == PYTORCH else f", {options['recipe']}"
    return f"PTQ ({options['flow']}{recipe})"


if __name__ == "__main__":
    main()
