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
import dataclasses
import itertools
import tempfile
from pathlib import Path

import torch
from common import Row, environment, put
from latency import (
    KEY,
    PACKAGES,
    Configuration,
    parser_of_configurations,
    quantized,
    side_of,
    take_turns,
)
from peers import Peers

from qzoo._core.timing import Timing
from qzoo._torch.threads import torch_threads

OWN = "qzoo"


def main() -> None:
    """Measures, and writes a CSV file."""
    parser = parser_of_configurations(__doc__)
    parser.add_argument("--seconds", type=float, default=5, help="of timing, per configuration")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/native.csv")
    args = parser.parse_args()
    for name in args.models:
        peers = Peers(name, side_of(name), Path(tempfile.gettempdir()), {})
        model = quantized(name, peers.samples)
        for batch, threads in itertools.product(args.batch, args.threads):
            rows = measure(Configuration(name, batch, threads), model, peers, args.seconds)
            put(args.out, rows, KEY)
            print({k: rows[-1][k] for k in ("model", "batch", "threads", "ratio")}, flush=True)


def measure(
    setting: Configuration, model: torch.nn.Module, peers: Peers, seconds: float
) -> list[Row]:
    """Times one configuration and returns a row for each candidate, qzoo's last."""
    x, own = setting.images(), copy.deepcopy(model)
    with torch_threads(setting.threads), torch.inference_mode():
        calls = {
            f"torchvision {engine}": peers.torchvision_int8(engine, x)
            for engine in ("fbgemm", "x86")
        }
        calls[OWN] = lambda: own(x)
        times = take_turns(calls, 60, seconds, kept=tuple(calls))
    timings = [Timing.of(name, taken) for name, taken in times.items()]
    best = min(t.median_ms for t in timings if t.name != OWN)
    return [
        {
            **dataclasses.asdict(setting),
            "candidate": timing.name,
            "median_ms": round(timing.median_ms, 4),
            "rounds": timing.rounds,
            "ratio": round(timing.median_ms / best, 4),
            **environment(PACKAGES),
        }
        for timing in timings
    ]


if __name__ == "__main__":
    main()
