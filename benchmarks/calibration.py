"""Measures what calibrating costs beside the plain float forward pass over the same images.

Images are noise, the weights random, the batch norms' statistics those of the noise. The ways take
turns in every round, so that whatever else the machine does slows all of them down; where it does
much, compare `cpu_ratio`. PyTorch's own way may be given fewer images and rounds, because it takes
several times as long: `images` and `rounds` say how many each row had, and all ratios are of times
per image.

    python benchmarks/calibration.py --csv benchmarks/results/calibration.csv
"""

from __future__ import annotations

import argparse
import copy
import statistics
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from common import Row, environment, in_turn, parser_of_ways, ratios, report
from torch import Tensor, nn

import qzoo
from qzoo.backends import default_backend, get_backend
from qzoo.quantize import ptq
from qzoo.quantize.data import open_calibration
from qzoo.quantize.recipes import get_recipe
from qzoo.quantize.state import Quantization, fused_copy
from qzoo.quantize.steps.calibrate import calibrate, choose_weight_scales

MODELS = ("resnet50", "mobilenet_v2")
PACKAGES = ("qzoo", "torch", "torchvision")
#: What is timed; gets all images and the batch size.
Pass = Callable[[Tensor, int], None]


def plain(model: nn.Module) -> Pass:
    """Returns the float model's forward pass."""

    def run(images: Tensor, batch: int) -> None:
        with torch.inference_mode():
            for part in images.split(batch):
                model(part)

    return run


def observing(model: nn.Module) -> Pass:
    """Returns the step of the recipe "fast" that runs the model: forward pass, observers, ranges.

    The model is copied and fused before the clock starts.
    """
    row, recipe = get_backend(default_backend()), get_recipe("fast")
    few = open_calibration(torch.zeros(2, 3, 8, 8), images=2, batch_size=2, seed=0, transform=None)
    state = Quantization(model, row, few, progress=False)
    choose_weight_scales(state, recipe.weight_observer)

    def run(images: Tensor, batch: int) -> None:
        state.calibration = open_calibration(
            images, images=len(images), batch_size=batch, seed=0, transform=None
        )
        state.ranges.clear()
        calibrate(state, recipe.observer)

    return run


def whole(model: nn.Module) -> Pass:
    """Returns the whole call, from the float model to the packed int8 one."""

    def run(images: Tensor, batch: int) -> None:
        ptq(model, images, recipe="fast", images=len(images), batch_size=batch, progress=False)

    return run


def torch_ao(model: Any) -> Pass:
    """Returns PyTorch's eager flow without its last step: copy, fuse, prepare, forward pass."""
    from torch.ao.quantization import get_default_qconfig, prepare

    def run(images: Tensor, batch: int) -> None:
        prepared = copy.deepcopy(model)
        prepared.fuse_model(is_qat=False)
        prepared.qconfig = get_default_qconfig("x86")  # histogram observers of activations
        prepare(prepared, inplace=True)
        plain(prepared)(images, batch)

    return run


TORCH_AO = "torch.ao histogram observers"
WAYS: dict[str, Callable[[nn.Module], Pass]] = {
    "float": plain,
    "float, batch norm folded": lambda model: plain(fused_copy(model)),
    "qzoo fast, calibrating": observing,
    "qzoo fast, whole call": whole,
    TORCH_AO: torch_ao,
}


def make_model(name: str, images: Tensor) -> nn.Module:
    """Returns a float model of random weights whose batch norms have seen a few of the images."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = qzoo.get_model(name).train()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
        with torch.no_grad():
            model(images[:8])
    return model.eval()


def rows_of(name: str, options: argparse.Namespace) -> list[Row]:
    """Measures one model and returns a row per way."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(options.images, 3, options.size, options.size, generator=generator)
    model, batch = make_model(name, images), options.batch
    passes = {way: WAYS[way](model) for way in options.ways}
    counts = dict.fromkeys(passes, options.images) | {TORCH_AO: options.torch_ao_images}
    for run in passes.values():
        run(images[:batch], batch)  # warms caches up
    calls = {way: partial(run, images[: counts[way]], batch) for way, run in passes.items()}
    rounds = dict.fromkeys(passes, options.rounds) | {TORCH_AO: options.torch_ao_rounds}
    times = {
        way: [(wall / counts[way], cpu / counts[way]) for wall, cpu in taken]
        for way, taken in in_turn(calls, rounds).items()
    }
    rows = []
    for way, taken in times.items():
        walls, cpus = zip(*taken, strict=True)
        ratio = ratios(times, way)
        rows.append(
            {
                "model": name,
                "batch": batch,
                "size": options.size,
                "threads": torch.get_num_threads(),
                "way": way,
                "images": counts[way],
                "rounds": len(taken),
                "ms_per_image": round(statistics.median(walls), 3),
                "low_ms": round(min(walls), 3),
                "high_ms": round(max(walls), 3),
                "ratio": ratio["ratio"],
                "cpu_ms_per_image": round(statistics.median(cpus), 3),
                "cpu_low_ms": round(min(cpus), 3),
                "cpu_high_ms": round(max(cpus), 3),
                "cpu_ratio": ratio["cpu_ratio"],
                **environment(PACKAGES),
            }
        )
    return rows


COLUMNS = {
    "model": "<14", "way": "<30", "images": ">7", "ms_per_image": ">13.2f", "ratio": ">7.2f",
    "cpu_ms_per_image": ">17.2f", "cpu_ratio": ">10.2f",
}  # fmt: skip


def main() -> None:
    """Runs the comparison and prints it as a table."""
    parser = parser_of_ways(__doc__, MODELS, WAYS, rounds=3, threads=1)
    parser.add_argument("--images", type=int, default=512, help="default: %(default)s")
    parser.add_argument("--batch", type=int, default=32, help="images a pass; default: %(default)s")
    parser.add_argument("--torch-ao-images", type=int, help="PyTorch's; default: all")
    parser.add_argument("--torch-ao-rounds", type=int, help="PyTorch's; default: all")
    options = parser.parse_args()
    if options.rounds < 1 or min(options.images, options.batch, options.size) < 2:
        parser.error("--rounds should be above 0, --images, --batch and --size above 1")
    if options.torch_ao_images is None:
        options.torch_ao_images = options.images
    if options.torch_ao_rounds is None:
        options.torch_ao_rounds = options.rounds
    if not (1 < options.torch_ao_images <= options.images and options.torch_ao_rounds > 0):
        parser.error("--torch-ao-images should be 2 to --images, --torch-ao-rounds above 0")
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    report(options, rows_of, COLUMNS, ("model", "batch", "size", "threads"))


if __name__ == "__main__":
    main()
