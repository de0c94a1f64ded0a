"""`qzoo analyze`: where an int8 model loses accuracy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .._core.option_types import Whole
from ..errors import ArgumentError
from ._options import (
    Place,
    all_pictures_option,
    complete_models,
    data_place,
    html_option,
    json_option,
    seed_option,
    state_dict_options,
    takes,
    threads_option,
    weights_option,
)
from ._output import only_json, print_json, print_line, print_table
from ._pictures import pictures_to_measure

if TYPE_CHECKING:
    from ..analysis import Diagnosis


@click.command("analyze")
@takes(
    Place("float_model", "FLOAT", complete=complete_models),
    Place("int8_model", "INT8", complete=complete_models),
    data_place(),
)
@weights_option("Which of torchvision's float weights of FLOAT, where that is a name.")
@state_dict_options("--model", "-m")
@click.option(
    "--images",
    default=256,
    show_default=True,
    type=Whole(1),
    help="Pictures to compare the two models on.",
)
@click.option(
    "--sensitivity-images",
    default=64,
    show_default=True,
    type=Whole(1),
    help="Pictures that every layer is tried alone on, which takes longest.",
)
@seed_option
@click.option(
    "--top",
    default=15,
    show_default=True,
    type=Whole(1),
    help="How many layers to list, the most harmful first.",
)
@all_pictures_option
@threads_option
@json_option
@html_option
def analyze_command(
    float_model: str,
    int8_model: str,
    data: str,
    weights: str | None,
    told: dict[str, Any],
    images: int,
    sensitivity_images: int,
    seed: int,
    top: int,
    all_pictures: bool,
    threads: int | None,
    as_json: bool,
    html: Path | None,
) -> None:
    """Find out where an int8 model loses accuracy.

    Also says what to try next. FLOAT is the file, folder or name of the float model that INT8, an
    artifact, was made of. DATA is digits, fractals, or a folder: with train/ and val/, with a
    folder per class, or of pictures; those that one of the models was trained or calibrated on are
    left out as long as there are others.

    \b
    Examples:
      qzoo analyze my_model.safetensors int8.safetensors --data photos --html report.html
      qzoo analyze resnet50 int8.safetensors --data imagenet/val --json
    """
    from .._core.files import write_atomically
    from .._core.timing import torch_threads
    from ..analysis import analyze
    from ..datasets.sources import open_data
    from ._models import load_float_model, load_model

    check_folder(html)
    opened = open_data(data)
    loaded = load_float_model(float_model, weights, told)
    int8 = load_model(int8_model, None)
    pictures, sighting = pictures_to_measure(opened, loaded, int8, everything=all_pictures)
    with only_json(as_json), torch_threads(threads):
        diagnosis = analyze(
            loaded, int8, pictures, images=images, sensitivity_images=sensitivity_images, seed=seed
        )
    if html is not None:
        write_atomically(html, diagnosis.to_html().encode())
    if as_json:
        print_json({**diagnosis.to_dict(), "pictures": sighting.to_dict()})
        return
    report(diagnosis, top)
    if html is not None:
        print_line()
        print_line(f"wrote {html}")


def check_folder(path: Path | None) -> None:
    """Checks, before long work, that a file can be written where it is to go.

    Raises:
        ArgumentError: There is no such folder.
    """
    if path is not None and not path.absolute().parent.is_dir():
        raise ArgumentError(f"There is no folder {path.parent} to write {path.name} to.")


def report(diagnosis: Diagnosis, top: int) -> None:
    """Prints a diagnosis: accuracy, the layers to look at first, and what to try next."""
    print_line(_accuracy(diagnosis))
    rows = []
    for place, suspect in enumerate(diagnosis.ranking[:top], 1):
        layer = diagnosis.comparison.layer(suspect.name)
        notes = ["range does not fit"] if suspect.wrong_range else []
        notes += ["weights do not fit"] if suspect.wrong_weights else []
        rows.append(
            (
                place,
                suspect.name,
                suspect.op,
                f"{suspect.damage.sqnr_db:.1f}",
                f"{layer.alone.sqnr_db:.1f}",
                "" if layer.weight is None else f"{layer.weight.error.sqnr_db:.1f}",
                f"{100 * layer.range.clipped:.2g} %",
                ", ".join(notes),
            )
        )
    columns = ("", "layer", "op", "logits dB", "outputs dB", "weights dB", "cut off", "")
    print_line()
    print_table(
        "Layers to look at first (signal-to-noise ratios with this layer alone in int8)",
        columns,
        rows,
        "rllrrrr",
    )
    print_line()
    print_line("What to try next")
    for finding in diagnosis.findings:
        print_line(f"- {finding.title}")
        for advice in finding.advice:
            gain = "" if advice.gain_db is None else f" ({advice.gain_db:+.1f} dB when tried)"
            print_line(f"    {advice.text}{gain}")
            if advice.command or advice.python:
                print_line(f"      {advice.command or advice.python}")


def _accuracy(diagnosis: Diagnosis) -> str:
    a = diagnosis.accuracy
    same = f"the same first answer on {a.agreement:.2f} % of {a.images} pictures"
    name = f"{diagnosis.architecture}, {diagnosis.backend}"
    if a.drop is None or a.drop_interval is None:
        return f"{name}: {same}"
    low, high = a.drop_interval
    return (
        f"{name}: top-1 {a.float_top1:.2f} % float, {a.int8_top1:.2f} % int8, "
        f"{a.drop:.2f} points lost (95 %: {low:.2f} to {high:.2f}); {same}"
    )
