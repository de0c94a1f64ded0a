"""Measures a step of quantization-aware training beside the float step and PyTorch's own QAT.

A step is forward, backward and SGD on one batch of noise, for the same model in the same memory
format and precision. The ways take turns in every round, so that whatever else the machine does
slows all of them down; where it does much, compare `cpu_ratio`.

    python benchmarks/qat_step.py --threads 2 --rounds 9 --csv benchmarks/results/qat_step.csv
"""

from __future__ import annotations

import argparse
import copy
import warnings
from collections.abc import Callable
from typing import Any

import torch
from common import Row, environment, in_turn, parser_of_ways, ratios, report
from torch import nn

import qzoo
from qzoo._core.timing import Timing
from qzoo.quantize import qat

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
        model = qzoo.get_model(name).to(device).to(memory_format=torch.channels_last).train()
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


def rows_of(name: str, options: argparse.Namespace) -> list[Row]:
    """Measures one model and returns a row per way."""
    batch = options.batch or MODELS.get(name, 16)
    steps = {
        way: make_step(name, way, batch, options.size, options.bf16, options.device)
        for way in options.ways
    }
    in_turn(steps, 1)  # warms caches up
    times = in_turn(steps, options.rounds)
    rows = []
    for way, taken in times.items():
        timing, ratio = Timing.of(way, taken), ratios(times, way)
        rows.append(
            {
                "model": name,
                "batch": batch,
                "size": options.size,
                "threads": torch.get_num_threads(),
                "device": options.device,
                "precision": "bf16" if options.bf16 else "fp32",
                "way": way,
                "median_ms": round(timing.median_ms, 1),
                "low_ms": round(timing.low_ms, 1),
                "high_ms": round(timing.high_ms, 1),
                "ratio": ratio["ratio"],
                "cpu_ms": round(timing.cpu_ms, 1),
                "cpu_ratio": ratio["cpu_ratio"],
                "rounds": timing.rounds,
                **environment(PACKAGES),
            }
        )
    return rows


COLUMNS = {
    "model": "<20", "way": "<20", "median_ms": ">10.1f", "ratio": ">8.2f", "cpu_ms": ">10.1f",
    "cpu_ratio": ">11.2f",
}  # fmt: skip


def main() -> None:
    """Runs the comparison and prints it as a table."""
    parser = parser_of_ways(__doc__, MODELS, WAYS, rounds=9, threads=2)
    parser.add_argument("--batch", type=int, help="images per step; by the model")
    parser.add_argument("--bf16", action="store_true", help="bfloat16 by torch.autocast")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error("--rounds should be 2 or more, to have a spread")
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    key = ("model", "batch", "size", "threads", "device", "precision", "way")
    report(options, rows_of, COLUMNS, key)


if __name__ == "__main__":
    main()
