"""`qzoo evaluate`: how often a model is right, float or int8, on any runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ..errors import ArgumentError
from ._options import (
    RUNTIMES,
    all_pictures_option,
    batch_size_option,
    choice,
    data_place,
    engine_option,
    json_option,
    model_place,
    state_dict_options,
    takes,
    threads_option,
    weights_option,
)
from ._output import only_json, print_json, print_line
from ._pictures import pictures_to_measure

if TYPE_CHECKING:
    from ..datasets.evaluate import Metrics


def figures(metrics: Metrics) -> dict[str, Any]:
    """Returns accuracies and their 95 % intervals in percent, as JSON values."""
    found: dict[str, Any] = {"n": metrics.n}
    for k in metrics.correct:
        low, high = metrics.interval(k)
        found[f"top{k}"] = round(metrics.accuracy(k), 3)
        found[f"top{k}_low"], found[f"top{k}_high"] = round(low, 3), round(high, 3)
    return found


def sentence(metrics: Metrics) -> str:
    """Returns accuracies and their 95 % intervals in one line."""
    parts = []
    for k in metrics.correct:
        low, high = metrics.interval(k)
        parts.append(f"top-{k} {metrics.accuracy(k):.2f} % ({low:.2f} to {high:.2f})")
    return f"{', '.join(parts)} on {metrics.n} images"


@click.command()
@takes(model_place(), data_place())
@weights_option("Which weights of MODEL, where that is a name (see: qzoo info MODEL).")
@state_dict_options()
@click.option(
    "--float",
    "as_float",
    is_flag=True,
    help="Measure the float model: torchvision's float weights of a model of the zoo.",
)
@click.option(
    "--runtime",
    "--runtimes",
    "runtime",
    type=choice(["auto", *RUNTIMES]),
    help="What executes an int8 model; auto takes the fastest that is installed.  [default: torch]",
)
@engine_option
@batch_size_option(64, "Pictures that go through the model at once.")
@all_pictures_option
@threads_option
@json_option
def evaluate(
    model: str,
    data: str,
    weights: str | None,
    told: dict[str, Any],
    as_float: bool,
    runtime: str | None,
    backend: str | None,
    batch_size: int,
    all_pictures: bool,
    threads: int | None,
    as_json: bool,
) -> None:
    """Measure accuracy on labelled pictures.

    Prints top-1 and top-5 with 95 % intervals. MODEL is a file or folder of qzoo, int8 or float, or
    the name of a model. DATA is digits, fractals, or a folder: with train/ and val/, or with a
    folder per class. Pictures go through the model's own transforms; of data with a val split, that
    one counts. Of others, pictures that the model was trained or calibrated on, which it notes by
    their content, are left out as long as there are others.

    \b
    Examples:
      qzoo evaluate shufflenet_v2_x0_5 -w DIGITS_X86_V1 --data digits
      qzoo evaluate resnet50 --data imagenet/val --runtime openvino
      qzoo evaluate resnet50 --float --weights IMAGENET1K_V2 --data imagenet/val
      qzoo evaluate my_model.safetensors --data photos --json
    """
    from torch.utils.data import DataLoader

    from .._core.timing import torch_threads
    from ..datasets.evaluate import evaluate as measure
    from ..datasets.sources import open_data
    from ..native.model import model_info
    from ..runtimes.api import compile
    from ._models import is_float_file, load_float_model, load_model
    from ._names import is_name

    opened = open_data(data)
    is_float = as_float or is_float_file(model, told.get("part"))
    if is_float:
        for option, value in (("--runtime", runtime), ("--backend", backend)):
            if value is not None:
                raise ArgumentError(f"{option} is for int8 models; this one is float.")
        loaded = load_float_model(model, weights, told)
    else:
        if runtime is not None and backend is not None:
            raise ArgumentError("--backend chooses PyTorch's engine: leave it or --runtime out.")
        loaded = load_model(model, weights, backend, told)
    info = model_info(loaded)
    pictures, sighting = pictures_to_measure(opened, loaded, everything=all_pictures, labelled=True)
    if not info.seen and opened.splits == ("all",) and not is_name(model):
        print_line(
            "The model does not note which pictures it was trained on: where these are among them, "
            "the figures say little.",
            err=True,
        )
    with only_json(as_json), torch_threads(threads):
        compiled = None if runtime is None else compile(loaded, runtime, threads)
        loader = DataLoader(pictures, batch_size, num_workers=opened.workers)
        metrics = measure(compiled or loaded, loader)
    where = "torch" if compiled is None else compiled.runtime
    kind = "float" if is_float else "int8"
    kept = [] if compiled is None else list(compiled.float_layers)
    if as_json:
        row = {
            "model": info.architecture,
            "kind": kind,
            "backend": info.backend,
            "runtime": where,
            "float_layers": kept,
            "data": opened.name,
            **figures(metrics),
            **sighting.to_dict(),
        }
        print_json(row)
        return
    note = f", {len(kept)} layers in float" if kept else ""
    print_line(f"{info.architecture}, {kind}, {where}{note}, {opened.name}: {sentence(metrics)}")
