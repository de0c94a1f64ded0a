"""`qzoo tune`: as few layers in float as meet a target."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .._core.option_types import Number
from ._endings import ARTIFACT, check_ending
from ._options import (
    backend_option,
    batch_size_option,
    data_place,
    html_option,
    images_option,
    json_option,
    keep_float_option,
    model_place,
    out_option,
    recipe_option,
    seed_option,
    state_dict_options,
    takes,
    threads_option,
    weights_option,
)
from ._output import only_json, print_json, print_line, print_table, print_warning
from ._pictures import pictures_to_measure
from .analyze import check_folder

if TYPE_CHECKING:
    from ..quantize import Tuned


@click.command("tune")
@takes(model_place(), data_place())
@out_option(required=True)
@click.option(
    "--max-drop",
    default=0.3,
    show_default=True,
    type=Number(0, 100),
    help="Points of top-1 that int8 may lose.",
)
@click.option(
    "--time-budget",
    type=Number(0),
    help="Seconds for reading, calibrating, measuring and searching together; then the best so far "
    "is written. Little time means fewer pictures. The start of PyTorch and --html come on top; 0 "
    "quantizes and measures once, on all pictures.",
)
@weights_option("Which of torchvision's float weights of MODEL, where that is a name.")
@state_dict_options()
@backend_option
@recipe_option
@images_option
@seed_option
@keep_float_option(" in any case")
@batch_size_option(32, "Pictures that go through the model at once.")
@threads_option
@json_option
@html_option
def tune_command(
    model: str,
    data: str,
    out: Path,
    weights: str | None,
    told: dict[str, Any],
    threads: int | None,
    as_json: bool,
    html: Path | None,
    **options: Any,
) -> None:
    """Quantize with as few layers in float as a target needs.

    The target is --max-drop. MODEL is the file, folder or name of a float model. DATA is digits,
    fractals, or a folder: with train/ and val/, or with a folder per class. Of data with a train
    and a val split, the first calibrates and the second judges. Of others, what MODEL was not
    trained on judges, where it notes that, else a fifth of each class. Ends with exit code 1, the
    best found written, where the target is missed.

    \b
    Examples:
      qzoo tune my_model.safetensors --data photos --max-drop 0.3 -o tuned.safetensors
      qzoo tune mobilenet_v3_large --data imagenet --time-budget 3600 -o m.safetensors
    """
    from .._core.files import write_atomically
    from .._core.timing import torch_threads
    from ..analysis import analyze
    from ..datasets.holdout import divide
    from ..datasets.sources import open_data
    from ..native.model import model_info
    from ..quantize import tune
    from ._models import load_float_model, preset_of

    start = time.monotonic()
    check_ending(out, ARTIFACT)
    for path in (out, html):
        check_folder(path)
    opened = open_data(data)
    loaded = load_float_model(model, weights, told)
    opened = divide(opened, model_info(loaded).seen)
    calibration = opened.split("train", preset_of(loaded))
    pictures, _ = pictures_to_measure(opened, loaded)
    if options["time_budget"]:
        left = options["time_budget"] - (time.monotonic() - start)
        options["time_budget"] = max(left, 0.001)  # 0 would mean something else
    with only_json(as_json), torch_threads(threads):
        tuned = tune(loaded, calibration, test_data=pictures, **options)
        tuned = dataclasses.replace(tuned, judged_on=opened.held_out)
        tuned.artifact.write(out)
        if html is not None:
            page = analyze(loaded, tuned.artifact, pictures, seed=options["seed"]).to_html()
            write_atomically(html, page.encode())
    if as_json:
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
            step.action,
            len(step.float_layers),
            "" if step.top1 is None else f"{step.top1:.2f} %",
            points(step.drop, tuned.max_drop),
            "yes" if step.met else "no",
            f"{step.seconds:.0f} s",
        )
        for step in tuned.trace
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
