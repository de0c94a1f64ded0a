"""Measures a step of quantization-aware training beside the float step and PyTorch's own QAT.

A step is forward, backward and SGD on one batch of noise, for the same model in the same memory
format and precision. The ways take turns in every round, so that whatever else the machine does
slows all of them down; where it does much, compare `cpu_ratio`.

    python benchmarks/qat_step.py --threads 2 --rounds 9 --csv benchmarks/results/qat_step.csv
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
from torch import nn

import qzoo
from qzoo.quantize import qat
from qzoo.runtimes.choice import machine, version

#: Models and the batch sizes that they are measured with.
MODELS = {"resnet18": 16, "resnet50": 8, "mobilenet_v2": 16, "mobilenet_v3_large": 16}
PACKAGES = ("qzoo", "torch", "torchvision", "torchao")
Step = Callable[[], None]


def qzoo_qat(**options: Any) -> Callable[[nn.Module], nn.Module]:
    """Returns what makes qzoo's model in training of a float one."""
    return lambda model: qat.prepare(model, **options)


def frozen(model: nn.Module) -> nn.Module:
    """Returns qzoo's model with the observers frozen, as in the last epochs."""
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    prepared = qat.prepare(model, data=images, progress=False)
    prepared.freeze_observers()
    return prepared


def torch_ao(model: Any) -> nn.Module:
    """Returns PyTorch's eager model in training, as torchvision's references/train_quantization."""
    from torch.ao.quantization import get_default_qat_qconfig, prepare_qat

    model.fuse_model(is_qat=True)
    model.qconfig = get_default_qat_qconfig("x86")
    prepared: nn.Module = prepare_qat(model.train(), inplace=True)
    return prepared


WAYS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "float": lambda model: model,
    "qzoo fold": qzoo_qat(),
    "qzoo fold, frozen": frozen,
    "qzoo keep": qzoo_qat(batch_norm="keep"),
    "qzoo learned": qzoo_qat(learn_ranges=True),
    "torch.ao eager": torch_ao,
}


def make_step(name: str, way: str, batch: int, size: int, bf16: bool, device: str) -> Step:
    """Returns one training step of a model.

    Args:
        name: The model.
        way: One of `WAYS`.
        batch: Images per step.
        size: Side of the images in pixels.
        bf16: Whether to compute in bfloat16 where `torch.autocast` finds it safe.
        device: "cpu" or "cuda".
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = qzoo.get_model(name).to(device, memory_format=torch.channels_last).train()
    model = WAYS[way](copy.deepcopy(model)).to(device)
    optimizer = torch.optim.SGD(model.parameters(), 1e-4, momentum=0.9)
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(batch, 3, size, size, generator=generator).to(device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(1000, (batch,), generator=generator).to(device)

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            logits = model(images)
        loss = nn.functional.cross_entropy(logits.float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return step


def measure(steps: dict[str, Step], rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Returns milliseconds on the clock and of the processor, of each step in each round."""
    times: dict[str, list[tuple[float, float]]] = {way: [] for way in steps}
    for _ in range(rounds + 1):
        for way, step in steps.items():
            gc.collect()
            wall, cpu = time.perf_counter(), time.process_time()
            step()
            taken = time.perf_counter() - wall, time.process_time() - cpu
            times[way].append((1e3 * taken[0], 1e3 * taken[1]))
    return {way: taken[1:] for way, taken in times.items()}  # the first round warms caches up


def rows_of(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures one model and returns a row per way."""
    batch = options.batch or MODELS.get(name, 16)
    steps = {
        way: make_step(name, way, batch, options.size, options.bf16, options.device)
        for way in options.ways
    }
    times = measure(steps, options.rounds)
    walls = {way: [wall for wall, _ in taken] for way, taken in times.items()}
    cpus = {way: [cpu for _, cpu in taken] for way, taken in times.items()}

    def ratio(of: dict[str, list[float]], way: str) -> float:
        # Round by round, because a slow stretch of the machine slows both.
        pairs = zip(of[way], of["float"], strict=True)
        return round(statistics.median(a / b for a, b in pairs), 4)

    rows = []
    for way in steps:
        low, _, high = statistics.quantiles(walls[way], n=4)
        rows.append(
            {
                "model": name,
                "batch": batch,
                "size": options.size,
                "threads": torch.get_num_threads(),
                "device": options.device,
                "precision": "bf16" if options.bf16 else "fp32",
                "way": way,
                "median_ms": round(statistics.median(walls[way]), 1),
                "low_ms": round(low, 1),
                "high_ms": round(high, 1),
                "ratio": ratio(walls, way),
                "cpu_ms": round(statistics.median(cpus[way]), 1),
                "cpu_ratio": ratio(cpus, way),
                "rounds": options.rounds,
                "cpu": machine(),
                "load": round(os.getloadavg()[0], 1),
                "date": datetime.date.today().isoformat(),
                "python": platform.python_version(),
                **{package: version(package) for package in PACKAGES},
            }
        )
    return rows


def main() -> None:
    """Runs the comparison and prints it as a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS), help="default: %(default)s")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--batch", type=int, help="images per step; by the model")
    parser.add_argument("--size", type=int, default=224, help="pixels; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=9, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--bf16", action="store_true", help="bfloat16 by torch.autocast")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--csv", type=Path, help="also write the figures to this file")
    parser.add_argument("--append", action="store_true", help="keep the file's other rows")
    options = parser.parse_args()
    if "float" not in options.ways:
        options.ways.insert(0, "float")
    if options.rounds < 2:
        parser.error("--rounds should be 2 or more, to have a spread")
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    rows: list[dict[str, Any]] = []
    print(f"{'model':<20}{'way':<20}{'ms':>9}{'ratio':>8}{'CPU ms':>10}{'CPU ratio':>11}")
    for name in options.models:
        for row in rows_of(name, options):
            rows.append(row)
            print(
                f"{name:<20}{row['way']:<20}{row['median_ms']:>9.1f}{row['ratio']:>8.2f}"
                f"{row['cpu_ms']:>10.1f}{row['cpu_ratio']:>11.2f}",
                flush=True,
            )
        if options.csv:
            write(options.csv, rows, options.append)


def write(path: Path, rows: list[dict[str, Any]], append: bool) -> None:
    """Writes rows to a CSV file, in place of those of the same configuration where it appends."""
    key = ("model", "batch", "size", "threads", "device", "precision", "way")
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
