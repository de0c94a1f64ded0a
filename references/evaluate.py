"""Measures top-1 and top-5 of a float or int8 model on labelled pictures.

python references/evaluate.py --data digits --checkpoint runs/digits/int8.safetensors
torchrun --nproc_per_node 2 references/evaluate.py --data-path photos --checkpoint ...
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from torch import nn

import qzoo
from qzoo import training
from qzoo._core.option_types import Whole
from qzoo.datasets.evaluate import Metrics
from qzoo.datasets.holdout import hold_out
from qzoo.datasets.sources import NAMED_DATA, Data, open_data
from qzoo.datasets.unseen import Sighting, measured_part
from qzoo.errors import ArgumentError
from qzoo.importers.checkpoint import is_float_checkpoint, load_float
from qzoo.native.model import load, model_info
from qzoo.registry import get_model
from qzoo.runtimes.api import RUNTIMES
from qzoo.training import option


@dataclass(frozen=True)
class Options(training.Options):
    """The options of this script."""

    data: str | None = option(
        None, type=click.Choice(NAMED_DATA), help="Data that need no download."
    )
    data_path: str | None = option(
        None, help="A folder with val/CLASS/* and train/CLASS/*, or CLASS/* alone."
    )
    held_out: bool = option(False, help="Of CLASS/*, only the fifth that training holds out.")
    all_pictures: bool = option(
        False, help="Also those that the model was trained or calibrated on."
    )
    checkpoint: str | None = option(None, help="A float model.safetensors or an int8 artifact.")
    model: str | None = option(None, help="A model of the zoo instead, with --weights.")
    weights: str | None = option(None, help="Its weights: int8 or, with --float, torchvision's.")
    float: bool = option(False, help="The float weights of --model.")
    backend: str | None = option(None, help="Run int8 on this backend's engine.")
    runtime: str | None = option(
        None, type=click.Choice(["auto", *RUNTIMES]), help="Executes int8; PyTorch by itself."
    )
    batch_size: int = option(32, "-b", type=training.POSITIVE)
    workers: int | None = option(None, "-j", type=Whole(0), help="By the data.")
    device: str = option("cpu", help="Of a float model: cpu, cuda, ...")
    threads: int | None = option(None, type=training.POSITIVE, help="CPU threads; all cores.")
    results: str | None = option(None, help="A CSV file that gets a row with the figures.")


@click.command(cls=training.Command, context_settings={"show_default": True})
@training.click_options(Options)
def main(**values: Any) -> None:
    """Measures a model through its own transforms on the held-out split."""
    options = Options.of(values)
    with training.joined(options.device, options.threads) as ranks:
        data = opened(options)
        model, kind = loaded(options)
        info = model_info(model)
        pictures, sighting = measured_part(
            data, [model], everything=options.all_pictures, labelled=True, progress=ranks.first
        )
        if ranks.first:
            tell_seen(sighting, data.name if data.splits == ("all",) and not info.seen else None)
        runs: Any = model.to(ranks.device if kind == "float" else "cpu")
        runtime = "torch"
        if options.runtime:
            runs = qzoo.compile(model, options.runtime)
            runtime = runs.runtime
        workers = data.workers if options.workers is None else options.workers
        metrics = training.evaluate_all(
            runs, pictures, ranks, batch_size=options.batch_size, workers=workers
        )
        training.say(f"{info.architecture}, {kind}, {runtime}, {data.name}: {metrics}")
        if options.results and ranks.first:
            what = {
                "model": info.architecture,
                "data": data.name,
                "kind": kind,
                "backend": info.backend or "",
                "runtime": runtime,
            }
            put_result(Path(options.results), what, metrics)


def opened(options: Options) -> Data:
    """Opens the data that the options name."""
    if (options.data is None) == (options.data_path is None):
        raise ArgumentError(f"Give either --data {'|'.join(NAMED_DATA)} or --data-path FOLDER.")
    data = open_data(str(options.data_path or options.data))
    if options.held_out and data.splits == ("all",):
        return hold_out(data, training.sources.HELD_OUT)
    return data


def loaded(options: Options) -> tuple[nn.Module, str]:
    """Loads the model that the options name; returns it and "float" or "int8"."""
    checkpoint, name, weights = options.checkpoint, options.model, options.weights or "DEFAULT"
    if (checkpoint is None) == (name is None):
        raise ArgumentError("Give either --checkpoint FILE or --model NAME with --weights.")
    if options.float or (checkpoint and is_float_checkpoint(checkpoint)):
        if options.runtime or options.backend:
            raise ArgumentError("--runtime and --backend are for int8 models; this one is float.")
        if checkpoint:
            return load_float(checkpoint), "float"
        return training.trained_model(name, weights, None), "float"
    if checkpoint:
        return load(checkpoint, options.backend), "int8"
    return get_model(str(name), weights=weights, quantize=True, backend=options.backend), "int8"


def put_result(path: Path, what: dict[str, Any], metrics: Metrics) -> None:
    """Writes the row of results."""
    low, high = metrics.interval()
    row = {
        **what,
        "top1": round(metrics.top1, 3),
        "top1_low": round(low, 3),
        "top1_high": round(high, 3),
        "top5": round(metrics.top5, 3),
        "n_test": metrics.n,
        **training.environment(),
        "command": training.command_line("evaluate.py"),
    }
    training.put_row(path, row, tuple(what))


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
