"""Latency of `quantize=True` beside torchvision's int8: PyTorch's own kernels on both sides.

    python benchmarks/native.py --models resnet18,resnet50

The model is as `quantize=True` builds it, on the engine of its backend; torchvision's is on fbgemm
and on x86. Every configuration gets models that never ran: oneDNN prepares a layer for the threads
and pictures of its first call, and anew in each call with others (inception_v3, first with one
thread: 137 ms a call with two instead of 14). Writes benchmarks/results/native.csv, which
docs/latency.md shows.
"""

from __future__ import annotations

import copy
import itertools
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from latency import (
    MODELS,
    configuration,
    environment,
    parser_of_configurations,
    quantized,
    read,
    side_of,
    take_turns,
    write,
)
from peers import Peers

from qzoo._core.threads import torch_threads

OWN = "qzoo"


def main() -> None:
    """Measures, and writes a CSV file."""
    parser = parser_of_configurations(__doc__)
    parser.add_argument("--seconds", type=float, default=5, help="of timing, per configuration")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/native.csv")
    args = parser.parse_args()
    rows = read(args.out)
    for name in args.models:
        side = side_of(name)
        peers = Peers(name, side, Path(tempfile.gettempdir()), {})
        model = quantized(name, peers.samples)
        for batch, threads in itertools.product(args.batch, args.threads):
            rows = [r for r in rows if configuration(r) != (name, str(batch), str(threads))]
            measured = measure(name, model, peers, side, batch, threads, args.seconds)
            rows = sorted([*rows, *measured], key=order)
            write(args.out, rows)
            print({k: measured[-1][k] for k in ("model", "batch", "threads", "ratio")}, flush=True)


def order(row: dict[str, Any]) -> tuple[int, int, int]:
    """Returns where a row stands in the file."""
    name, batch, threads = configuration(row)
    return MODELS.split(",").index(name), int(batch), int(threads)


def measure(
    name: str,
    model: torch.nn.Module,
    peers: Peers,
    side: int,
    batch: int,
    threads: int,
    seconds: float,
) -> list[dict[str, Any]]:
    """Times one configuration and returns a row for each candidate, qzoo's last."""
    x = torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch_threads(threads), torch.inference_mode():
        calls = {
            f"torchvision {engine}": peers.torchvision_int8(engine, x)
            for engine in ("fbgemm", "x86")
        }
        own = copy.deepcopy(model)
        calls[OWN] = lambda: own(x)
        times = take_turns(calls, 60, seconds, kept=tuple(calls))
    medians = {n: statistics.median(wall for wall, _ in pairs) for n, pairs in times.items()}
    best = min(value for candidate, value in medians.items() if candidate != OWN)
    return [
        {
            "model": name,
            "batch": batch,
            "threads": threads,
            "candidate": candidate,
            "median_ms": round(medians[candidate], 4),
            "rounds": len(pairs),
            "ratio": round(medians[candidate] / best, 4),
            **environment(),
        }
        for candidate, pairs in times.items()
    ]


if __name__ == "__main__":
    main()
