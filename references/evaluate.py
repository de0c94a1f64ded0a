"""Measures top-1 and top-5 of a float or int8 model on labelled pictures.

python references/evaluate.py --data digits --checkpoint runs/digits/int8.safetensors
torchrun --nproc_per_node 2 references/evaluate.py --data-path photos --checkpoint ...
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import torch

import qzoo
from qzoo import training
from qzoo._core.option_types import Whole
from qzoo.datasets.holdout import hold_out
from qzoo.datasets.sources import NAMED_DATA, Relabelled, open_data
from qzoo.datasets.unseen import Sighting, unseen
from qzoo.errors import ArgumentError
from qzoo.importers.checkpoint import is_float_checkpoint, load_float
from qzoo.native.model import load, model_info
from qzoo.registry import get_model
from qzoo.runtimes.api import RUNTIMES
from qzoo.transforms import ImageClassification


@click.command(cls=training.Command, context_settings={"show_default": True})
@click.option("--data", type=click.Choice(NAMED_DATA), help="Data that need no download.")
@click.option("--data-path", help="A folder with val/CLASS/* and train/CLASS/*, or CLASS/* alone.")
@click.option(
    "--held-out", is_flag=True, help="Of CLASS/*, only the fifth that training holds out."
)
@click.option(
    "--all-pictures", is_flag=True, help="Also those that the model was trained or calibrated on."
)
@click.option("--checkpoint", help="A float model.safetensors or an int8 artifact.")
@click.option("--model", help="A model of the zoo instead, with --weights.")
@click.option("--weights", help="Its weights: int8 or, with --float, torchvision's.")
@click.option("--float", "as_float", is_flag=True, help="The float weights of --model.")
@click.option("--backend", help="Run int8 on this backend's engine.")
@click.option(
    "--runtime", type=click.Choice(["auto", *RUNTIMES]), help="Executes int8; PyTorch by itself."
)
@click.option("-b", "--batch-size", type=training.POSITIVE, default=32)
@click.option("-j", "--workers", type=Whole(0), help="By the data.")
@click.option("--device", default="cpu", help="Of a float model: cpu, cuda, ...")
@click.option("--threads", type=training.POSITIVE, help="CPU threads; all cores.")
@click.option("--results", help="A CSV file that gets a row with the figures.")
def main(**options: Any) -> None:
    """Measures a model through its own transforms on the held-out split."""
    checkpoint, name, weights = (options[k] for k in ("checkpoint", "model", "weights"))
    if (checkpoint is None) == (name is None):
        raise ArgumentError("Give either --checkpoint FILE or --model NAME with --weights.")
    with training.joined(options["device"]) as ranks:
        if options["threads"]:
            torch.set_num_threads(options["threads"])
        if (options["data"] is None) == (options["data_path"] is None):
            raise ArgumentError(f"Give either --data {'|'.join(NAMED_DATA)} or --data-path FOLDER.")
        data = open_data(options["data_path"] or options["data"])
        if options["held_out"] and data.splits == ("all",):
            data = hold_out(data, training.sources.HELD_OUT)
        split = "test" if "test" in data.splits else "all"
        is_float = options["as_float"] or (checkpoint and is_float_checkpoint(checkpoint))
        if is_float and (options["runtime"] or options["backend"]):
            raise ArgumentError("--runtime and --backend are for int8 models; this one is float.")
        model: Any
        if checkpoint:
            model = load_float(checkpoint) if is_float else load(checkpoint, options["backend"])
        elif is_float:
            model = training.trained_model(name, weights or "DEFAULT", None)
        else:
            model = get_model(
                name, weights=weights or "DEFAULT", quantize=True, backend=options["backend"]
            )
        info = model_info(model)
        if info.transforms is None:
            raise ArgumentError("This model names no transforms to evaluate with.")
        shown = data.split(split, ImageClassification.from_dict(info.transforms))
        pictures, sighting = unseen(
            Relabelled(shown, data.labels_for(info)),
            [info.seen],
            everything=split == "test" or options["all_pictures"],
            progress=ranks.first,
        )
        if ranks.first:
            tell_seen(sighting, data.name if split == "all" and not info.seen else None)
        executed = qzoo.compile(model, options["runtime"]) if options["runtime"] else None
        metrics = training.evaluate_all(
            executed or model.to(ranks.device if is_float else "cpu"),
            pictures,
            ranks,
            batch_size=options["batch_size"],
            workers=data.workers if options["workers"] is None else options["workers"],
        )
        kind = "float" if is_float else "int8"
        where = executed.runtime if executed else "torch"
        training.say(f"{info.architecture}, {kind}, {where}, {data.name}: {metrics}")
        if options["results"] and ranks.first:
            low, high = metrics.interval()
            row = {
                "model": info.architecture,
                "data": data.name,
                "kind": kind,
                "backend": info.backend or "",
                "runtime": where,
                "top1": round(metrics.top1, 3),
                "top1_low": round(low, 3),
                "top1_high": round(high, 3),
                "top5": round(metrics.top5, 3),
                "n_test": metrics.n,
                **training.environment(),
                "command": training.command_line("evaluate.py"),
            }
            keys = ("model", "data", "kind", "backend", "runtime")
            training.put_row(Path(options["results"]), row, keys)


def tell_seen(sighting: Sighting, unknown: str | None) -> None:
    """Says which pictures the model has seen.

    Args:
        sighting: What was found out.
        unknown: The name of data without a held-out split of which nothing is known, or None.
    """
    words, serious = sighting.words()
    if words:
        training.tell(
            f"Warning: {words}" if serious else f"{words} --all-pictures measures on all."
        )
    elif unknown:
        training.tell(
            f"{unknown} has no val/ and the model does not note what it was trained on: measuring "
            "all pictures, also those that it may have seen (--held-out takes the fifth alone "
            "that the scripts do not train on)."
        )


if __name__ == "__main__":
    main()
