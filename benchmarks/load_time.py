"""Measures how long it takes to build an int8 model from its file, beside torchvision's builder.

Both sides do what a user's first line does: `<model>(weights=..., quantize=True)`, with the file
already on the disk. torchvision's builder reads the state dict that it publishes (a .pth file),
qzoo's an artifact; both files hold the same numbers. The rounds alternate between the two, so that
whatever else the machine does slows both down.

    python benchmarks/load_time.py --models resnet18 resnet50 --rounds 7 --csv load_time.csv
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchvision
from common import environment, in_turn
from torchvision.models import WeightsEnum

import qzoo
from qzoo._core.timing import Timing
from qzoo.native.model import from_native
from qzoo.training.files import write_csv

MODELS = ("resnet18", "resnet50", "resnext101_32x8d")


def prepare(name: str, folder: Path) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Stores one int8 model in both formats.

    Args:
        name: A model that torchvision quantizes too.
        folder: Where the two files go.

    Returns:
        torchvision's way and qzoo's way to build the model from its file.
    """
    builder = getattr(torchvision.models.quantization, name)
    member = qzoo.get_model_weights(name)["DEFAULT"]
    theirs = builder(quantize=True)
    twin = qzoo.get_model(name, quantize=True, backend=member.meta["backend"])
    twin.load_state_dict(theirs.state_dict())
    checkpoint, artifact = folder / f"{name}.pth", folder / f"{name}.safetensors"
    torch.save(theirs.state_dict(), checkpoint)
    from_native(twin).write(artifact)
    weights = getattr(torchvision.models.quantization, f"{type(member).__name__}")["DEFAULT"]
    Stored.files[type(weights)], Stored.files[type(member)] = checkpoint, artifact
    return (
        lambda: builder(weights=weights, quantize=True, progress=False),
        lambda: qzoo.get_model(name, weights=member, quantize=True, progress=False),
    )


class Stored:
    """Stands for the two download caches, so that the benchmark needs no network."""

    files: dict[type, Path] = {}  # noqa: RUF012  (one table for the process)

    @classmethod
    def install(cls) -> None:
        """Lets both libraries find the stored files; everything after the download is theirs."""

        def get_state_dict(self: WeightsEnum, *args: Any, **kwargs: Any) -> dict[str, Any]:
            return torch.load(cls.files[type(self)], map_location="cpu", weights_only=False)

        WeightsEnum.get_state_dict = get_state_dict
        qzoo.weights.QuantizedWeightsEnum.file = lambda self, *_, **__: cls.files[type(self)]  # type: ignore[method-assign]


def check(name: str, ways: tuple[Callable[[], Any], ...]) -> None:
    """Ends the run where the two ways do not give the same model."""
    images = torch.randn(1, 3, 64, 64)
    theirs, ours = (way()(images) for way in ways)
    if not torch.equal(theirs, ours):
        raise SystemExit(f"{name}: the two models do not agree, so their times mean nothing.")


def main() -> None:
    """Runs the comparison and prints it as a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=MODELS, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--csv", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    Stored.install()
    rows = []
    print(f"{'model':<20}{'torchvision s':>15}{'qzoo s':>10}{'ratio':>8}{'lowest and highest':>20}")
    for name in options.models:
        with tempfile.TemporaryDirectory() as folder:
            ways = prepare(name, Path(folder))
            check(name, ways)
            calls = dict(zip(("torchvision", "qzoo"), ways, strict=True))
            in_turn(calls, 1)  # warms caches up
            times = in_turn(calls, options.rounds)
        theirs, ours = (Timing.of(way, taken).median_ms / 1e3 for way, taken in times.items())
        ratios = [b / a for (a, _), (b, _) in zip(*times.values(), strict=True)]
        row = {
            "model": name,
            "torchvision_s": round(theirs, 4),
            "qzoo_s": round(ours, 4),
            "ratio": round(ours / theirs, 3),
            "ratio_min": round(min(ratios), 3),
            "ratio_max": round(max(ratios), 3),
            "rounds": options.rounds,
            "threads": options.threads,
            "engine": "fbgemm",
            **environment(("qzoo", "torch", "torchvision")),
        }
        rows.append(row)
        print(
            f"{name:<20}{row['torchvision_s']:>15.3f}{row['qzoo_s']:>10.3f}{row['ratio']:>8.2f}"
            f"{row['ratio_min']:>12.2f} .. {row['ratio_max']:.2f}",
            flush=True,
        )
    if options.csv:
        write_csv(options.csv, rows)


if __name__ == "__main__":
    main()
