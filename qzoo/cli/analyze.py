"""`qzoo analyze`: where an int8 model loses accuracy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._core.option_types import Whole
from . import _options as opt
from ._command import command, option, place
from ._endings import check_folder
from ._output import only_json, print_json, print_line, print_table
from ._pictures import pictures_to_measure

if TYPE_CHECKING:
    from ..analysis import Diagnosis


@dataclass(frozen=True)
class AnalyzeOptions:
    """What `qzoo analyze` takes."""

    float_model: str = place("FLOAT", complete=opt.complete_models)
    int8_model: str = place("INT8", complete=opt.complete_models)
    data: str = opt.data()
    weights: str | None = opt.weights(
        help="Which of torchvision's float weights of FLOAT, where that is a name.  "
        "[default: DEFAULT]"
    )
    told: dict[str, Any] = opt.state_dict("--model", "-m")
    images: int = option(
        "--images", type=Whole(1), default=256, help="Pictures to compare the two models on."
    )
    sensitivity_images: int = option(
        "--sensitivity-images",
        type=Whole(1),
        default=64,
        help="Pictures that every layer is tried alone on, which takes longest.",
    )
    seed: int = opt.seed()
    top: int = option(
        "--top",
        type=Whole(1),
        default=15,
        help="How many layers to list, the most harmful first.",
    )
    all_pictures: bool = opt.all_pictures()
    threads: int | None = opt.threads()
    as_json: bool = opt.as_json()
    html: Path | None = opt.html()


@command(AnalyzeOptions, "analyze")
def analyze_command(options: AnalyzeOptions) -> None:
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
    from .._torch.threads import torch_threads
    from ..analysis import analyze
    from ..datasets.sources import open_data
    from ._models import load_float_model, load_model

    check_folder(options.html)
    opened = open_data(options.data)
    loaded = load_float_model(options.float_model, options.weights, options.told)
    int8 = load_model(options.int8_model, None)
    pictures, sighting = pictures_to_measure(opened, loaded, int8, everything=options.all_pictures)
    with only_json(options.as_json), torch_threads(options.threads):
        diagnosis = analyze(
            loaded,
            int8,
            pictures,
            images=options.images,
            sensitivity_images=options.sensitivity_images,
            seed=options.seed,
        )
    if options.html is not None:
        write_atomically(options.html, diagnosis.to_html().encode())
    if options.as_json:
        print_json({**diagnosis.to_dict(), "pictures": sighting.to_dict()})
        return
    report(diagnosis, options.top)
    if options.html is not None:
        print_line()
        print_line(f"wrote {options.html}")


def report(diagnosis: Diagnosis, top: int) -> None:
    """Prints a diagnosis: accuracy, the layers to look at first, and what to try next."""
    print_line(_accuracy(diagnosis))
    rows = []
    for number, suspect in enumerate(diagnosis.ranking[:top], 1):
        layer = diagnosis.comparison.layer(suspect.name)
        notes = ["range does not fit"] if suspect.wrong_range else []
        notes += ["weights do not fit"] if suspect.wrong_weights else []
        rows.append(
            (
                number,
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
