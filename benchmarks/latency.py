"""Latency of qzoo's runtimes beside peers that quantize the same float model their own way.

    python benchmarks/latency.py --models resnet18,resnet50 --batch 1,32 --threads 1,2

All candidates of a model, batch and number of threads take turns in one process, so that the ratios
hold where the absolute times do not. The float models have random weights, whose values change no
speed; each flow calibrates on the same random pictures, because zero points do change it. Needs the
extra "peers"; a peer that is not installed is left out with a word.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import os
import platform
import random
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

import qzoo
import qzoo.quantize
from qzoo._core.threads import torch_threads
from qzoo.backends import quantized_engine
from qzoo.metadata import read_metadata
from qzoo.runtimes.choice import machine, version

sys.path.insert(0, str(Path(__file__).parent))
from peers import AUX, Peers, float_model

MODELS = (
    "mobilenet_v2,mobilenet_v3_large,resnet18,resnet50,googlenet,inception_v3,shufflenet_v2_x0_5,"
    "shufflenet_v2_x1_0,shufflenet_v2_x1_5,shufflenet_v2_x2_0,resnext101_32x8d,resnext101_64x4d"
)
PACKAGES = ("qzoo", "torch", "torchvision", "onnxruntime", "openvino", "nncf")
#: A candidate this much slower than the fastest is timed once: it decides nothing.
HOPELESS = 3.0
MIN_ROUNDS = 3
#: Takes turns with the candidates, but decides nothing.
PEAK, PEAK_SIDE = "int8 product", 2048
#: Shorter calls are repeated until it is over, after one that is not timed: whoever ran before has
#: emptied the caches, and its threads may still spin and keep a core.
TURN_MS = 50

Call = Callable[[], object]


def main() -> None:
    """Measures, and writes a CSV file and a plot."""
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    folder = args.work or Path(tempfile.mkdtemp(prefix="qzoo-peers-"))
    folder.mkdir(parents=True, exist_ok=True)
    path = args.out / "latency.csv"
    rows = read(path) if args.append else []
    for name in args.models:
        side = side_of(name)
        skipped: dict[str, str] = {}
        peers = Peers(name, side, folder, skipped)
        model = quantized(name, peers.samples)
        for batch, threads in itertools.product(args.batch, args.threads):
            rows = [r for r in rows if configuration(r) != (name, str(batch), str(threads))]
            rows += measure(name, model, peers, side, batch, threads, args)
            write(path, rows)
            print(summary(rows[-1]), flush=True)
        for peer, why in skipped.items():
            print(f"{name}: left out {peer}: {why}", flush=True)
    if args.plot:
        from plot import plot_ratios

        plot_ratios(path, args.out / "latency.png")


def arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = parser_of_configurations(__doc__)
    parser.add_argument("--rounds", type=int, default=60, help="at most, per configuration")
    parser.add_argument("--seconds", type=float, default=20, help="of timing, per configuration")
    parser.add_argument("--runtimes", default="torch,onnxruntime,openvino", help="of qzoo")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--work", type=Path, help="keeps the peers' files for the next run")
    parser.add_argument("--append", action="store_true", help="keep the CSV's other rows")
    parser.add_argument("--plot", action="store_true", help="draw latency.png (extra: plot)")
    return parser.parse_args()


def parser_of_configurations(about: str | None) -> argparse.ArgumentParser:
    """Returns a parser with the options that say what is measured."""
    parser = argparse.ArgumentParser(description=(about or "").split("\n")[0])
    parser.add_argument("--models", type=lambda t: t.split(","), default=MODELS.split(","))
    parser.add_argument("--batch", type=_numbers, default=[1, 32])
    parser.add_argument("--threads", type=_numbers, default=[1, 2])
    return parser


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def side_of(name: str) -> int:
    """Returns height and width of a model's pictures, in pixels."""
    return 299 if name == "inception_v3" else 224


def quantized(name: str, samples: list[torch.Tensor]) -> torch.nn.Module:
    """Quantizes torchvision's float model with qzoo's PTQ, as users do."""
    kwargs = {"init_weights": False, "aux_logits": False} if name in AUX else {}
    model = qzoo.get_model(name, **kwargs)
    model.load_state_dict(float_model(name).state_dict())
    return qzoo.quantize.ptq(model.eval(), torch.cat(samples), recipe="fast", progress=False)


def measure(
    name: str,
    model: torch.nn.Module,
    peers: Peers,
    side: int,
    batch: int,
    threads: int,
    args: argparse.Namespace,
) -> list[dict[str, Any]]:
    """Times all candidates of one configuration and returns a row for each."""
    x = torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(0))
    kinds: dict[str, tuple[str, str]] = {}
    calls: dict[str, Call] = {}
    with torch_threads(threads), torch.inference_mode():
        for runtime in args.runtimes.split(","):
            compiled = qzoo.compile(model, runtime, threads, batch, side)
            calls[f"qzoo {runtime}"] = lambda compiled=compiled: compiled(x)
            kinds[f"qzoo {runtime}"] = ("qzoo", "int8")
        for peer, precision, call in peers.calls(batch, threads, x):
            calls[peer], kinds[peer] = call, ("peer", precision)
        calls[PEAK] = int8_product()
        times = take_turns(calls, args.rounds, args.seconds)
        chosen = qzoo.compile(model, "auto", threads, batch, side).runtime
    times["qzoo auto"], kinds["qzoo auto"] = times[f"qzoo {chosen}"], ("qzoo", "int8")
    walls = {n: [wall for wall, _ in pairs] for n, pairs in times.items()}
    medians = {n: statistics.median(v) for n, v in walls.items()}
    busy = {n: statistics.median(cpu for _, cpu in pairs) for n, pairs in times.items()}
    names = [n for n in kinds if kinds[n][0] == "peer"]
    best_peer, least_busy = min(names, key=medians.__getitem__), min(busy[n] for n in names)
    gmacs = read_metadata(name)["gmacs"] * batch
    peak = PEAK_SIDE**3 / medians[PEAK] / 1e6
    rows = []
    for candidate, values in walls.items():
        if candidate == PEAK:
            continue
        low, median, high = statistics.quantiles(values * 2, n=4, method="inclusive")
        rows.append(
            {
                "model": name,
                "batch": batch,
                "threads": threads,
                "candidate": candidate,
                "executes": chosen if candidate == "qzoo auto" else "",
                "group": kinds[candidate][0],
                "precision": kinds[candidate][1],
                "median_ms": round(median, 4),
                "low_ms": round(low, 4),
                "high_ms": round(high, 4),
                "rounds": len(values),
                "best_peer": best_peer,
                "ratio": round(median / medians[best_peer], 4),
                "cpu_ms": round(busy[candidate], 4),
                "cpu_ratio": round(busy[candidate] / least_busy, 4),
                "int8_peak_gmacs": round(peak, 1),
                "share_of_peak": round(gmacs / median * 1e3 / peak, 4),
                **environment(),
            }
        )
    return rows


def take_turns(
    calls: dict[str, Call], rounds: int, seconds: float, kept: tuple[str, ...] = (PEAK,)
) -> dict[str, list[tuple[float, float]]]:
    """Times the callables in turn until the rounds or the seconds are used up.

    Args:
        calls: The callables by name.
        rounds: At most so many turns each.
        seconds: When they are over, nobody gets another turn.
        kept: Those that are timed however slow they are.

    Returns:
        For each callable its rounds' times per call, on the clock and of the CPU, in milliseconds.
    """
    first = {name: timed(call, 1) for name, call in calls.items()}
    # A first call may compile; one that takes far longer than all others' is hopeless all the same.
    best = min(first[n] for n in calls if n != PEAK)[0]
    running = [n for n in calls if n in kept or first[n][0] <= 4 * HOPELESS * best]
    times = {name: [] if name in running else [first[name]] for name in calls}
    repeats, order = dict.fromkeys(calls, 1), random.Random(0)
    end = time.perf_counter() + seconds
    for done in range(rounds):
        order.shuffle(running)  # nobody always follows the one that empties the caches
        for name in running:
            times[name].append(timed(calls[name], repeats[name]))
        if done == 1:
            fastest = {n: min(times[n])[0] for n in running}
            best = min(fastest[n] for n in running if n != PEAK)
            running = [n for n in running if n in kept or fastest[n] <= HOPELESS * best]
            repeats = {n: max(1, int(TURN_MS / fastest[n])) for n in running}
            times |= {n: [] for n in running if repeats[n] > 1}  # single calls say less
        if done + 1 >= MIN_ROUNDS and time.perf_counter() > end:
            break
    return times


def timed(call: Call, repeats: int) -> tuple[float, float]:
    """Returns the milliseconds of a call, averaged over a few in a row: on the clock, of the CPU.

    Other work on the machine adds to the first much more than to the second, which in turn counts
    every thread of this process, also one that waits by spinning.
    """
    if repeats > 1:
        call()
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(repeats):
        call()
    end = time.perf_counter(), time.process_time()
    return (end[0] - wall) / repeats * 1e3, (end[1] - cpu) / repeats * 1e3


def int8_product() -> Call:
    """Returns a product of two square int8 matrices (u8 by s8, oneDNN), the machine's int8 peak."""
    with quantized_engine("onednn"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layer = torch.ao.nn.quantized.Linear(PEAK_SIDE, PEAK_SIDE)
        x = torch.quantize_per_tensor(torch.rand(PEAK_SIDE, PEAK_SIDE), 1 / 255, 0, torch.quint8)
    return lambda: layer(x)


def environment() -> dict[str, Any]:
    """Returns what the times depend on besides the candidates."""
    return {
        "cpu": machine(),
        "load": round(os.getloadavg()[0], 1),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
    }


def configuration(row: dict[str, Any]) -> tuple[str, str, str]:
    """Returns model, batch and number of threads of a row, as text."""
    return str(row["model"]), str(row["batch"]), str(row["threads"])


def read(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of an earlier run."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Writes the rows measured so far."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def summary(row: dict[str, Any]) -> str:
    """Returns one line on the row of `auto`."""
    return (
        f"{row['model']} batch {row['batch']} threads {row['threads']}: auto ({row['executes']}) "
        f"{row['median_ms']} ms, {row['ratio']} of {row['best_peer']} "
        f"({row['cpu_ratio']} by CPU time), "
        f"{row['share_of_peak']:.0%} of the int8 peak, load {row['load']}"
    )


if __name__ == "__main__":
    main()
