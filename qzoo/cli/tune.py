"""`qzoo tune`: as few layers in float as meet a target."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .._core.option_types import Number
from . import _options as opt
from ._command import command, option
from ._endings import ARTIFACT, check_ending, check_folder
from ._output import only_json, print_json, print_line, print_table, print_warning
from ._pictures import pictures_to_measure

if TYPE_CHECKING:
    from ..quantize import Tuned


@dataclass(frozen=True)
class TuneOptions:
    """What `qzoo tune` takes."""

    model: str = opt.model()
    data: str = opt.data()
    out: Path = opt.out(required=True)
    max_drop: float = option(
        "--max-drop",
        type=Number(0, 100),
        default=0.3,
        help="Points of top-1 that int8 may lose.",
    )
    time_budget: float | None = option(
        "--time-budget",
        type=Number(0),
        help="Seconds for reading, calibrating, measuring and searching together; then the best so "
        "far is written. Little time means fewer pictures. The start of PyTorch and --html come on "
        "top; 0 quantizes and measures once, on all pictures.",
    )
    weights: str | None = opt.float_weights()
    told: dict[str, Any] = opt.state_dict()
    backend: str | None = opt.backend()
    recipe: str = opt.recipe()
    images: int | None = opt.images()
    seed: int = opt.seed()
    keep_float: tuple[str, ...] = opt.keep_float(
        help="Layers whose weights stay float in any case, such as fc or 'layer4.*'; may be "
        "repeated."
    )
    batch_size: int = opt.batch_size(default=32)
    threads: int | None = opt.threads()
    as_json: bool = opt.as_json()
    html: Path | None = opt.html()


@command(TuneOptions, "tune")
def tune_command(options: TuneOptions) -> None:
    """Quantize with as few layers in float as a target needs.

    The target is --max-drop. MODEL is the file, folder or name of a float model. DATA is digits,
    fractals, or a folder: with train/ and val/, or with a folder per class. With train/ and val/,
    the first calibrates and the second judges. Other data is divided: the pictures that MODEL was
    not trained on judge, where it notes which those are, else a fifth of each class does. If the
    target is missed, the best model found is written and the exit code is 1.

    \b
    Examples:
      qzoo tune my_model.safetensors --data photos --max-drop 0.3 -o tuned.safetensors
      qzoo tune mobilenet_v3_large --data imagenet --time-budget 3600 -o m.safetensors
    """
    from .._core.files import write_atomically
    from .._torch.threads import torch_threads
    from ..analysis import analyze
    from ..datasets.holdout import divide
    from ..datasets.sources import open_data
    from ..datasets.unseen import preset_of
    from ..native.model import model_info
    from ..quantize import tune
    from ._models import load_float_model

    start = time.monotonic()
    out, html = options.out, options.html
    check_ending(out, ARTIFACT)
    for path in (out, html):
        check_folder(path)
    opened = open_data(options.data)
    loaded = load_float_model(options.model, options.weights, options.told)
    opened = divide(opened, model_info(loaded).seen)
    calibration = opened.split("train", preset_of(loaded))
    pictures, _ = pictures_to_measure(opened, loaded)
    budget = options.time_budget
    if budget:  # 0 means something else
        budget = max(budget - (time.monotonic() - start), 0.001)
    with only_json(options.as_json), torch_threads(options.threads):
        tuned = tune(
            loaded,
            calibration,
            test_data=pictures,
            max_drop=options.max_drop,
            time_budget=budget,
            **opt.of_quantizing(options),
        )
        tuned = dataclasses.replace(tuned, judged_on=opened.held_out)
        tuned.artifact.write(out)
        if html is not None:
            page = analyze(loaded, tuned.artifact, pictures, seed=options.seed).to_html()
            write_atomically(html, page.encode())
    if options.as_json:
        print_json({"file": str(out), **tuned.to_dict()})
    else:
        _report(tuned, out)
    if not tuned.met:
        print_warning(
            f"{missed(tuned.drop, tuned.max_drop)} ({tuned.stopped}); the best found was written."
        )
        raise click.exceptions.Exit(1)


def missed(drop: float, max_drop: float) -> str:
    """Returns by how much a target was missed, in words."""
    from ..datasets.evaluate import points

    return (
        f"the target was missed by {points(drop - max_drop, 0)} points: "
        f"{points(drop, max_drop)} instead of {max_drop:g}"
    )


def _report(tuned: Tuned, out: Path) -> None:
    from ..datasets.evaluate import points

    rows = [
        (
            trial.action,
            len(trial.float_layers),
            "" if trial.top1 is None else f"{trial.top1:.2f} %",
            points(trial.drop, tuned.max_drop),
            "yes" if trial.met else "no",
            f"{trial.seconds:.0f} s",
        )
        for trial in tuned.trace
    ]
    lost = "changed" if tuned.top1 is None else "lost"
    print_table(None, ("tried", "in float", "top-1", lost, "met", "after"), rows, "lrrrlr")
    print_line()
    print_line(tuned.stopped)
    print_line(
        f"calibrated on {tuned.calibration_images} pictures, judged on {tuned.images} others "
        f"({tuned.judged_on}), of which one is {100 / tuned.images:.2g} points"
    )
    if tuned.float_top1 is not None:
        print_line(f"float: top-1 {tuned.float_top1:.2f} %")
        print_line(f"int8:  top-1 {tuned.top1:.2f} %")
    print_line(f"{out}: {len(tuned.float_layers)} layers in float")
    for name in tuned.float_layers:
        print_line(f"  {name}")
