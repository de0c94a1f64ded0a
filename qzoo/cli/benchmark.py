"""`qzoo benchmark`: how fast each runtime executes a model on this machine."""

from __future__ import annotations

import functools
import itertools
import platform
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .._core.option_types import MOST, MOST_THREADS, Whole
from ..errors import ArgumentError, QzooError, UncalibratedWarning
from . import _options as opt
from ._command import command, option
from ._output import print_csv, print_json, print_table, print_warning, progress

if TYPE_CHECKING:
    from .._core.timing import Timing
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


@dataclass(frozen=True)
class BenchmarkOptions:
    """What `qzoo benchmark` takes."""

    models: tuple[str, ...] = opt.models()
    runtimes: str | None = option(
        "--runtimes",
        "--runtime",
        help="What to measure: names separated by commas, or all.  "
        "[default: the installed ones that compile quickly]",
        shell_complete=opt.complete_from(["all", "auto", *opt.RUNTIMES]),
    )
    threads: list[int] = option(
        "--threads", default="1", callback=_numbers, help="Numbers of CPU threads, such as 1,2."
    )
    batch_size: list[int] = opt.batch_size(
        type=str,
        default="1",
        callback=_numbers,
        help="Numbers of pictures per call, such as 1,32.",
    )
    size: int | None = opt.size()
    weights: str | None = opt.weights()
    random: bool = option(
        "--random", is_flag=True, help="Random weights: as fast, and nothing to download."
    )
    rounds: int = option(
        "--rounds",
        type=Whole(1),
        default=15,
        help="How often each runtime has its turn; more give steadier medians.",
    )
    memory: bool = option(
        "--memory/--no-memory",
        default=True,
        help="Whether to measure memory too, each runtime in a process of its own.",
    )
    as_json: bool = opt.as_json()
    as_csv: bool = option("--csv", is_flag=True, help="Print CSV on stdout, with the environment.")


@command(BenchmarkOptions)
def benchmark(options: BenchmarkOptions) -> None:
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
    if options.as_json and options.as_csv:
        raise ArgumentError("--json and --csv exclude each other.")
    runtimes = _runtimes(options.runtimes)
    rows: list[dict[str, Any]] = []
    settings = list(itertools.product(options.threads, options.batch_size))
    turns = len(options.models) * len(settings) * len(runtimes) * (3 if options.memory else 2)
    with progress(total=turns, unit="turn") as bar:
        for name in options.models:
            artifact = _artifact(name, options.weights, options.random)
            for threads, batch in settings:
                one = _Measurement(name, artifact, threads, batch)
                rows += one.rows(runtimes, options, bar)
    if options.as_json:
        print_json(rows)
    elif options.as_csv:
        environment = _environment()
        print_csv([{**row, **environment} for row in rows])
    else:
        columns = ("model", "batch", "threads", "runtime", "ms", "quartiles", "images/s", "MiB", "")
        shown = {model: Path(model).name for model in options.models}
        if len(set(shown.values())) < len(shown):
            shown = {model: model for model in options.models}
        print_table(None, columns, [[shown[r["model"]], *_cells(r)] for r in rows], "lrrlrrrr")


def _runtimes(text: str | None) -> list[str]:
    from ..runtimes.api import RUNTIMES, available_runtimes

    here = available_runtimes()
    if text is None:
        return [name for name in here if not RUNTIMES[name].slow]
    names = [part.strip().lower() for part in text.split(",")]
    return here if names == ["all"] else list(dict.fromkeys(names))


def _artifact(name: str, weights: str | None, random: bool) -> Artifact:
    from ._models import find_int8

    if not random:
        return find_int8(name, weights)
    if weights is not None:
        raise ArgumentError("--random takes no --weights.")
    from ..native.model import as_artifact
    from ..registry import get_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UncalibratedWarning)
        return as_artifact(get_model(name, quantize=True))


@dataclass(frozen=True)
class _Measurement:
    """One model with one batch size and number of threads, to be measured on several runtimes."""

    name: str
    artifact: Artifact
    threads: int
    batch: int

    def rows(
        self, runtimes: Sequence[str], options: BenchmarkOptions, bar: Any
    ) -> list[dict[str, Any]]:
        """Measures it; returns a row for each runtime."""
        from .._core.timing import interleave
        from ..runtimes.api import compile
        from ..runtimes.measure import random_images

        label = Path(self.name).name[:20]  # a long path would leave no room for the bar
        compiled = {}
        for runtime in runtimes:
            bar.set_description(f"{label}: make {runtime} ready")
            compiled[runtime] = compile(
                self.artifact, runtime, self.threads, self.batch, options.size
            )
            bar.update()
        x = random_images(self.batch, next(iter(compiled.values())).size)
        bar.set_description(f"{label}: measure latency")
        calls = {name: functools.partial(model, x) for name, model in compiled.items()}
        timings = interleave(calls, options.rounds)
        bar.update(len(compiled))
        best = min(timing.median_ms for timing in timings.values())
        rows = []
        for runtime, timing in timings.items():
            row = self._row(compiled[runtime], timing, runtime)
            row["fastest"] = timing.median_ms == best
            if options.memory:
                bar.set_description(f"{label}: measure memory of {runtime}")
                row |= self._memory(compiled[runtime])
                bar.update()
            rows.append(row)
        return rows

    def _row(self, model: CompiledModel, timing: Timing, runtime: str) -> dict[str, Any]:
        return {
            "model": self.name,
            "batch": self.batch,
            "threads": self.threads,
            "height": model.size[0],
            "width": model.size[1],
            "runtime": runtime,
            "executes": _executes(model),
            "median_ms": round(timing.median_ms, 4),
            "low_ms": round(timing.low_ms, 4),
            "high_ms": round(timing.high_ms, 4),
            "rounds": timing.rounds,
            "images_per_s": round(self.batch * 1e3 / timing.median_ms, 1),
            "fastest": False,
            "float_layers": " ".join(model.float_layers),
            "peak_mib": None,
            "model_mib": None,
        }

    def _memory(self, model: CompiledModel) -> dict[str, float]:
        from ..runtimes.footprint import footprint

        try:
            return footprint(self.artifact, model.runtime, self.threads, self.batch, model.size)
        except QzooError as error:
            print_warning(error)
            return {}


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
