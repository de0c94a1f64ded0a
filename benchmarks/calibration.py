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
import csv
import datetime
import gc
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import qzoo
from qzoo.backends import default_backend, get_backend
from qzoo.quantize import ptq
from qzoo.quantize.data import open_calibration
from qzoo.quantize.recipes import get_recipe
from qzoo.quantize.state import Quantization, fused_copy
from qzoo.quantize.steps.calibrate import calibrate, choose_weight_scales
from qzoo.runtimes.choice import machine, version

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
        options = {"images": len(images), "batch_size": batch, "progress": False}
        ptq(model, images, recipe="fast", **options)

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


def measure(
    passes: dict[str, Pass], images: Tensor, options: argparse.Namespace
) -> dict[str, list[tuple[float, float]]]:
    """Returns milliseconds per image on the clock and of the processor, of each way and round."""
    for run in passes.values():
        run(images[: options.batch], options.batch)  # warms caches up
    times: dict[str, list[tuple[float, float]]] = {way: [] for way in passes}
    for number in range(options.rounds):
        for way, run in passes.items():
            if way == TORCH_AO and number >= options.torch_ao_rounds:
                continue
            given = images[: options.torch_ao_images] if way == TORCH_AO else images
            gc.collect()
            wall, cpu = time.perf_counter(), time.process_time()
            run(given, options.batch)
            taken = time.perf_counter() - wall, time.process_time() - cpu
            times[way].append((1e3 * taken[0] / len(given), 1e3 * taken[1] / len(given)))
    return times


def rows_of(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures one model and returns a row per way."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(options.images, 3, options.size, options.size, generator=generator)
    model = make_model(name, images)
    times = measure({way: WAYS[way](model) for way in options.ways}, images, options)
    walls = {way: [wall for wall, _ in taken] for way, taken in times.items()}
    cpus = {way: [cpu for _, cpu in taken] for way, taken in times.items()}

    def ratio(of: dict[str, list[float]], way: str) -> float:
        # Round by round, because a slow stretch of the machine slows both; a way of fewer rounds
        # took part in the first ones.
        pairs = zip(of[way], of["float"], strict=False)
        return round(statistics.median(a / b for a, b in pairs), 4)

    return [
        {
            "model": name,
            "batch": options.batch,
            "size": options.size,
            "threads": torch.get_num_threads(),
            "way": way,
            "images": options.torch_ao_images if way == TORCH_AO else options.images,
            "rounds": len(times[way]),
            "ms_per_image": round(statistics.median(walls[way]), 3),
            "low_ms": round(min(walls[way]), 3),
            "high_ms": round(max(walls[way]), 3),
            "ratio": ratio(walls, way),
            "cpu_ms_per_image": round(statistics.median(cpus[way]), 3),
            "cpu_low_ms": round(min(cpus[way]), 3),
            "cpu_high_ms": round(max(cpus[way]), 3),
            "cpu_ratio": ratio(cpus, way),
            "cpu": machine(),
            "load": round(os.getloadavg()[0], 1),
            "date": datetime.date.today().isoformat(),
            "python": platform.python_version(),
            **{package: version(package) for package in PACKAGES},
        }
        for way in options.ways
    ]


def main() -> None:
    """Runs the comparison and prints it as a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS), help="default: %(default)s")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--images", type=int, default=512, help="default: %(default)s")
    parser.add_argument("--batch", type=int, default=32, help="images a pass; default: %(default)s")
    parser.add_argument("--size", type=int, default=224, help="pixels; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--torch-ao-images", type=int, help="PyTorch's; default: all")
    parser.add_argument("--torch-ao-rounds", type=int, help="PyTorch's; default: all")
    parser.add_argument("--csv", type=Path, help="also write the figures to this file")
    parser.add_argument("--append", action="store_true", help="keep the file's other models")
    options = parser.parse_args()
    if options.rounds < 1 or min(options.images, options.batch, options.size) < 2:
        parser.error("--rounds should be above 0, --images, --batch and --size above 1")
    if "float" not in options.ways:
        options.ways.insert(0, "float")
    if options.torch_ao_images is None:
        options.torch_ao_images = options.images
    if options.torch_ao_rounds is None:
        options.torch_ao_rounds = options.rounds
    if not (1 < options.torch_ao_images <= options.images and options.torch_ao_rounds > 0):
        parser.error("--torch-ao-images should be 2 to --images, --torch-ao-rounds above 0")
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    rows: list[dict[str, Any]] = []
    print(f"{'model':<14}{'way':<30}{'images':>7}{'ms':>9}{'ratio':>7}{'CPU ms':>9}{'ratio':>7}")
    for name in options.models:
        for row in rows_of(name, options):
            rows.append(row)
            print(
                f"{name:<14}{row['way']:<30}{row['images']:>7}{row['ms_per_image']:>9.2f}"
                f"{row['ratio']:>7.2f}{row['cpu_ms_per_image']:>9.2f}{row['cpu_ratio']:>7.2f}",
                flush=True,
            )
        if options.csv:
            write(options.csv, rows, options.append)


def write(path: Path, rows: list[dict[str, Any]], append: bool) -> None:
    """Writes rows to a CSV file, in place of those of the same configuration where it appends."""
    key = ("model", "batch", "size", "threads")
    kept: list[dict[str, Any]] = []
    if append and path.is_file():
        new = {tuple(str(row[k]) for k in key) for row in rows}
        with path.open(newline="", encoding="utf-8") as file:
            kept = [r for r in csv.DictReader(file) if tuple(r[k] for k in key) not in new]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows([*kept, *rows])


if __name__ == "__main__":
    main()
