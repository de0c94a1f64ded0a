"""`qzoo evaluate`: how often a model is right, float or int8, on any runtime."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import ArgumentError
from . import _options as opt
from ._command import command, option
from ._names import is_name
from ._output import only_json, print_json, print_line
from ._pictures import figures, pictures_to_measure, sentence

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class EvaluateOptions:
    """What `qzoo evaluate` takes."""

    model: str = opt.model()
    data: str = opt.data()
    weights: str | None = opt.weights(
        help="Which weights of MODEL, where that is a name (see: qzoo info MODEL).  "
        "[default: DEFAULT]"
    )
    told: dict[str, Any] = opt.state_dict()
    as_float: bool = option(
        "--float",
        is_flag=True,
        help="Measure the float model: torchvision's float weights of a model of the zoo.",
    )
    runtime: str | None = opt.runtime(
        help="What executes an int8 model; auto takes the fastest that is installed.  "
        "[default: torch]",
    )
    backend: str | None = opt.engine()
    batch_size: int = opt.batch_size(default=64)
    all_pictures: bool = opt.all_pictures()
    threads: int | None = opt.threads()
    as_json: bool = opt.as_json()


@command(EvaluateOptions)
def evaluate(options: EvaluateOptions) -> None:
    """Measure accuracy on labelled pictures.

    Prints top-1 and top-5 with 95 % intervals. MODEL is a file or folder of qzoo, int8 or float,
    or the name of a model. DATA is digits, fractals, or a folder: with train/ and val/, or with a
    folder per class. Pictures go through the model's own transforms. With val/, its pictures
    count. Otherwise, pictures that the model was trained or calibrated on (it notes their hashes)
    are left out, as long as there are others.

    \b
    Examples:
      qzoo evaluate shufflenet_v2_x0_5 -w DIGITS_X86_V1 --data digits
      qzoo evaluate resnet50 --data imagenet/val --runtime openvino
      qzoo evaluate resnet50 --float --weights IMAGENET1K_V2 --data imagenet/val
      qzoo evaluate my_model.safetensors --data photos --json
    """
    from torch.utils.data import DataLoader

    from .._torch.threads import torch_threads
    from ..datasets.evaluate import evaluate as measure
    from ..datasets.sources import open_data
    from ..native.model import model_info
    from ..runtimes.api import compile

    opened = open_data(options.data)
    loaded, kind = _load(options)
    info = model_info(loaded)
    pictures, sighting = pictures_to_measure(
        opened, loaded, everything=options.all_pictures, labelled=True
    )
    if not info.seen and opened.splits == ("all",) and not is_name(options.model):
        print_line(
            "The model does not note which pictures it was trained on: where these are among them, "
            "the figures say little.",
            err=True,
        )
    runtime, kept = "torch", []
    with only_json(options.as_json), torch_threads(options.threads):
        runs: Any = loaded
        if options.runtime is not None:
            runs = compile(loaded, options.runtime, options.threads)
            runtime, kept = runs.runtime, list(runs.float_layers)
        loader = DataLoader(pictures, options.batch_size, num_workers=opened.workers)
        metrics = measure(runs, loader)
    if options.as_json:
        row = {
            "model": info.name,
            "kind": kind,
            "backend": info.backend,
            "runtime": runtime,
            "float_layers": kept,
            "data": opened.name,
            **figures(metrics),
            **sighting.to_dict(),
        }
        print_json(row)
        return
    note = f", {len(kept)} layers in float" if kept else ""
    what = f"{info.name}, {kind}, {runtime}{note}, {opened.name}"
    print_line(f"{what}: {sentence(metrics)}")


def _load(options: EvaluateOptions) -> tuple[nn.Module, str]:
    """Loads the model to measure, and says whether it is float or int8.

    Raises:
        ArgumentError: Options of int8 models with a float one, or such as exclude each other.
    """
    from ._models import is_float_file, load_float_model, load_model

    runtime, backend, told = options.runtime, options.backend, options.told
    if options.as_float or is_float_file(options.model, told.get("part")):
        for flag, value in (("--runtime", runtime), ("--backend", backend)):
            if value is not None:
                raise ArgumentError(f"{flag} is for int8 models; this one is float.")
        return load_float_model(options.model, options.weights, told), "float"
    if runtime is not None and backend is not None:
        raise ArgumentError("--backend chooses PyTorch's engine: leave it or --runtime out.")
    return load_model(options.model, options.weights, backend, told), "int8"
