"""`qzoo analyze`: where an int8 model loses accuracy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from torch import nn

from ..analysis import Diagnosis, analyze
from ..artifact.native import model_info
from ..benchmark import torch_threads
from ..datasets.sources import Data, Relabelled, open_data
from ..errors import ArgumentError
from ..files import write_atomically
from ._models import labels_for, load_float_model, load_model, preset_of
from ._output import print_json, print_line, print_table
from .evaluate import DATA_HELP


def pictures_to_measure(data: Data, model: nn.Module) -> Any:
    """Returns the pictures that figures are taken on: the test split, or all where there is none.

    Args:
        data: Where they come from.
        model: Whose transforms and classes count.

    Returns:
        A data set of pictures and labels; of pictures alone where the data has no labels.

    Raises:
        ArgumentError: The data and the model do not belong together.
    """
    split = data.split("test" if "test" in data.splits else data.splits[0], preset_of(model))
    return Relabelled(split, labels_for(data, model_info(model))) if data.classes else split


@click.command("analyze")
@click.argument("float_model", metavar="FLOAT")
@click.argument("int8_model", metavar="INT8")
@click.option("--data", required=True, help=DATA_HELP)
@click.option("--weights", "-w", help="FLOAT's weights, if it is a name.  [default: DEFAULT]")
@click.option("--images", default=256, show_default=True, type=click.IntRange(1))
@click.option(
    "--sensitivity-images",
    default=64,
    show_default=True,
    type=click.IntRange(1),
    help="Pictures that every layer is tried alone on, which takes longest.",
)
@click.option("--seed", type=click.IntRange(0), default=0, help="Picks images.", show_default=True)
@click.option("--top", default=15, show_default=True, type=click.IntRange(1), help="Table rows.")
@click.option("--threads", type=click.IntRange(1), help="[default: all cores]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
@click.option("--html", type=click.Path(path_type=Path), help="Write a report, one page.")
def analyze_command(
    float_model: str,
    int8_model: str,
    data: str,
    weights: str | None,
    images: int,
    sensitivity_images: int,
    seed: int,
    top: int,
    threads: int | None,
    as_json: bool,
    html: Path | None,
) -> None:
    """Find out where an int8 model loses accuracy, and what to try next.

    FLOAT is the checkpoint (or name) of the float model that INT8, an artifact, was made of.

    \b
    Examples:
      qzoo analyze my_model.safetensors int8.safetensors --data photos --html report.html
      qzoo analyze resnet50 int8.safetensors --data imagenet/val --json
    """
    check_folder(html)
    opened = open_data(data)
    loaded = load_float_model(float_model, weights)
    int8 = load_model(int8_model, None)
    pictures = pictures_to_measure(opened, loaded)
    with torch_threads(threads):
        diagnosis = analyze(
            loaded, int8, pictures, images=images, sensitivity_images=sensitivity_images, seed=seed
        )
    if html is not None:
        write_atomically(html, diagnosis.to_html().encode())
    if as_json:
        print_json(diagnosis.to_dict())
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
