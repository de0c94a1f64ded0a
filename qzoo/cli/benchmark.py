"""`qzoo benchmark`: how fast each runtime executes a model on this machine."""

from __future__ import annotations

import itertools
import platform
import warnings
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .._core.option_types import MOST, MOST_THREADS, Whole
from ..errors import ArgumentError, QzooError, UncalibratedWarning
from ._options import (
    RUNTIMES,
    Place,
    batch_size_option,
    complete_from,
    complete_models,
    json_option,
    size_option,
    takes,
    weights_option,
)
from ._output import print_csv, print_json, print_table, print_warning, progress

if TYPE_CHECKING:
    import torch

    from ..artifact.format import Artifact
    from ..runtimes.base import CompiledModel

_PACKAGES = ("qzoo", "torch", "onnxruntime", "openvino", "executorch")


def _numbers(context: click.Context, option: click.Parameter, text: str) -> list[int]:
    number = Whole(1, MOST_THREADS if option.name == "threads" else MOST)
    try:
        return [number.convert(part, option, context) for part in text.split(",")]
    except click.BadParameter:
        raise click.BadParameter(
            f"expected whole numbers above 0 and up to {number.max}, separated by commas"
        ) from None


@click.command()
@takes(
    Place(
        "models",
        "MODEL",
        ("--model", "-m"),
        "A model, if it does not stand first; may be repeated.",
        complete_models,
        many=True,
    )
)
@click.option(
    "--runtimes",
    "--runtime",
    "runtimes",
    help="What to measure: names separated by commas, or all.  "
    "[default: the installed ones that compile quickly]",
    shell_complete=complete_from(["all", "auto", *RUNTIMES]),
)
@click.option(
    "--threads",
    default="1",
    show_default=True,
    callback=_numbers,
    help="Numbers of CPU threads, such as 1,2.",
)
@batch_size_option("1", "Numbers of pictures per call, such as 1,32.", callback=_numbers, type=str)
@size_option
@weights_option()
@click.option("--random", is_flag=True, help="Random weights: as fast, and nothing to download.")
@click.option(
    "--rounds",
    default=15,
    show_default=True,
    type=Whole(1),
    help="How often each runtime has its turn; more give steadier medians.",
)
@click.option(
    "--memory/--no-memory",
    default=True,
    show_default=True,
    help="Whether to measure memory too, each runtime in a process of its own.",
)
@json_option
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV on stdout, with the environment.")
def benchmark(
    models: tuple[str, ...],
    runtimes: str | None,
    threads: list[int],
    batch_size: list[int],
    size: int | None,
    weights: str | None,
    random: bool,
    rounds: int,
    memory: bool,
    as_json: bool,
    as_csv: bool,
) -> None:
    """Measure the latency and memory of int8 models on each runtime.

    MODEL is the name of a model, or the file or folder of an int8 model. The runtimes take turns,
    so that other work on the machine disturbs all of them alike; medians and quartiles are over
    these rounds.

    \b
    Examples:
      qzoo benchmark resnet50 mobilenet_v2 --threads 1,2 --batch 1,32
      qzoo benchmark my_model.safetensors --runtimes torch,openvino --csv
      qzoo benchmark inception_v3 --random --runtimes all
    """
    if as_json and as_csv:
        raise ArgumentError("--json and --csv exclude each other.")
    names = _runtimes(runtimes)
    rows: list[dict[str, Any]] = []
    settings = list(itertools.product(threads, batch_size))
    steps = len(models) * len(settings) * len(names) * (3 if memory else 2)
    with progress(total=steps, unit="step") as bar:
        for name in models:
            artifact = _artifact(name, weights, random)
            for count, pictures in settings:
                rows += _measure(name, artifact, names, count, pictures, size, rounds, memory, bar)
    if as_json:
        print_json(rows)
    elif as_csv:
        environment = _environment()
        print_csv([{**row, **environment} for row in rows])
    else:
        columns = ("model", "batch", "threads", "runtime", "ms", "quartiles", "images/s", "MiB", "")
        shown = {model: Path(model).name for model in models}
        if len(set(shown.values())) < len(shown):
            shown = {model: model for model in models}
        print_table(None, columns, [[shown[r["model"]], *_cells(r)] for r in rows], "lrrlrrrr")


def _runtimes(text: str | None) -> list[str]:
    from ..runtimes.api import RUNTIMES, available_runtimes

    here = available_runtimes()
    if text is None:
        return [name for name in here if not RUNTIMES[name].slow]
    names = [part.strip().lower() for part in text.split(",")]
    return here if names == ["all"] else list(dict.fromkeys(names))


def _artifact(name: str, weights: str | None, random: bool) -> Artifact:
    from ..native.model import as_artifact
    from ..registry import get_model
    from ._models import load_model

    if not random:
        return as_artifact(load_model(name, weights))
    if weights is not None:
        raise ArgumentError("--random takes no --weights.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UncalibratedWarning)
        return as_artifact(get_model(name, quantize=True))


def _measure(
    name: str,
    artifact: Artifact,
    runtimes: Sequence[str],
    threads: int,
    batch: int,
    size: int | None,
    rounds: int,
    memory: bool,
    bar: Any,
) -> list[dict[str, Any]]:
    import torch

    from .._core.timing import interleave
    from ..runtimes.api import compile
    from ..runtimes.footprint import footprint

    label = Path(name).name[:20]  # a long path would leave no room for the bar
    compiled = {}
    for runtime in runtimes:
        bar.set_description(f"{label}: make {runtime} ready")
        compiled[runtime] = compile(artifact, runtime, threads, batch, size)
        bar.update()
    height, width = next(iter(compiled.values())).size
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, 3, height, width, generator=generator, dtype=torch.float32, device="cpu")
    bar.set_description(f"{label}: measure latency")
    timings = interleave({r: _call(m, x) for r, m in compiled.items()}, rounds)
    bar.update(len(compiled))
    best = min(timing.median_ms for timing in timings.values())
    rows = []
    for runtime, timing in timings.items():
        row: dict[str, Any] = {
            "model": name,
            "batch": batch,
            "threads": threads,
            "height": height,
            "width": width,
            "runtime": runtime,
            "executes": _executes(compiled[runtime]),
            "median_ms": round(timing.median_ms, 4),
            "low_ms": round(timing.low_ms, 4),
            "high_ms": round(timing.high_ms, 4),
            "rounds": timing.rounds,
            "images_per_s": round(batch * 1e3 / timing.median_ms, 1),
            "fastest": timing.median_ms == best,
            "float_layers": " ".join(compiled[runtime].float_layers),
            "peak_mib": None,
            "model_mib": None,
        }
        if memory:
            bar.set_description(f"{label}: measure memory of {runtime}")
            try:
                row |= footprint(
                    artifact, compiled[runtime].runtime, threads, batch, (height, width)
                )
            except QzooError as error:
                print_warning(error)
            bar.update()
        rows.append(row)
    return rows


def _call(model: CompiledModel, x: torch.Tensor) -> Callable[[], object]:
    return lambda: model(x)


def _executes(model: CompiledModel) -> str:
    """Returns the runtime, and how it was come by or which of PyTorch's engines executes."""
    if model.why is not None:
        return f"auto: {model.runtime}"
    engine = getattr(model, "engine", None)
    return model.runtime if engine is None else f"{model.runtime} ({engine})"


def _cells(row: dict[str, Any]) -> list[object]:
    notes = ["fastest"] if row["fastest"] else []
    if row["float_layers"]:
        notes.append(f"{len(row['float_layers'].split())} layers in float")
    return [
        row["batch"],
        row["threads"],
        row["executes"],
        f"{row['median_ms']:.2f}",
        f"{row['low_ms']:.2f} to {row['high_ms']:.2f}",
        f"{row['images_per_s']:.0f}",
        "" if row["model_mib"] is None else f"{row['model_mib']:.0f}",
        ", ".join(notes),
    ]


def _environment() -> dict[str, Any]:
    from ..runtimes.choice import machine, version

    return {
        "cpu": machine(),
        "python": platform.python_version(),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        **{package: version(package) for package in _PACKAGES},
    }
