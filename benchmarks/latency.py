"""Latency of qzoo's runtimes beside peers that quantize the same float model their own way.

    python benchmarks/latency.py --models resnet18,resnet50 --batch 1,32 --threads 1,2

Besides qzoo's models there is EfficientNet-Lite0, which no builder makes. All candidates of a
model, batch and number of threads take turns in one process, so that the ratios hold where the
absolute times do not; what `auto` chose takes turns twice, under two names, which shows how far
apart two readings of one thing are. The float models have random weights, whose values change no
speed; each flow calibrates on the same random pictures, because zero points do change it. Needs the
extra "peers"; a peer that is not installed is left out with a word.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
import random
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import efficientnet
import torch
from common import Row, environment, put
from cycles import Counter
from peers import AUX, Peers, float_model
from torch import Tensor

import qzoo
import qzoo.quantize
from qzoo._core.timing import Timing, time_once
from qzoo._torch.threads import torch_threads
from qzoo.backends import quantized_engine
from qzoo.runtimes.profile import products

MODELS = (
    "mobilenet_v2,mobilenet_v3_large,resnet18,resnet50,googlenet,inception_v3,shufflenet_v2_x0_5,"
    "shufflenet_v2_x1_0,shufflenet_v2_x1_5,shufflenet_v2_x2_0,resnext101_32x8d,resnext101_64x4d,"
    "efficientnet_lite0"
)
PACKAGES = ("qzoo", "torch", "torchvision", "onnxruntime", "openvino", "nncf")
#: A candidate this much slower than the fastest is timed once: it decides nothing.
HOPELESS = 3.0
MIN_ROUNDS = 3
AUTO = "qzoo auto"
#: Takes turns with the candidates, but decides nothing.
PEAK, PEAK_SIDE = "int8 product", 2048
#: Shorter calls are repeated until it is over, after one that is not timed: the candidate before
#: has emptied the caches, and its threads may still spin and keep a core. The CPU time counts all
#: threads of the process, also one that waits by spinning.
TURN_MS = 50
#: The columns that say which measurement a row is.
KEY = ("model", "batch", "threads")

Call = Callable[[], object]


def main() -> None:
    """Measures, and writes a CSV file and a plot."""
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    folder = args.work or Path(tempfile.mkdtemp(prefix="qzoo-peers-"))
    folder.mkdir(parents=True, exist_ok=True)
    path = args.out / "latency.csv"
    if not args.append:
        path.unlink(missing_ok=True)
    # What `auto` chose in earlier runs, perhaps with other kernels, is none of this one's.
    os.environ["QZOO_HOME"] = tempfile.mkdtemp(prefix="qzoo-home-")
    counter = Counter()  # before all threads that it is to count
    if counter.missing:
        print(f"The column mega_cycles stays empty: {counter.missing}.", flush=True)
    for name in args.models:
        skipped: dict[str, str] = {}
        peers = Peers(name, side_of(name), folder, skipped)
        model = int8_artifact(name, peers)
        for batch, threads in itertools.product(args.batch, args.threads):
            rows = measure(Configuration(name, batch, threads), model, peers, counter, args)
            put(path, rows, KEY)
            print(summary(rows), flush=True)
        for candidate, why in skipped.items():
            print(f"{name}: left out {candidate}: {why}", flush=True)
    if args.plot:
        from plot import plot_ratios, plot_shares

        plot_ratios(path, args.out / "latency.png")
        plot_shares(path, args.out / "latency_peak.png")


def arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = parser_of_configurations(__doc__)
    parser.add_argument("--rounds", type=int, default=60, help="at most, per configuration")
    parser.add_argument("--seconds", type=float, default=20, help="of timing, per configuration")
    parser.add_argument("--runtimes", default="libqzoo,torch,onnxruntime,openvino", help="of qzoo")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--work", type=Path, help="keeps what was quantized for the next run")
    parser.add_argument("--append", action="store_true", help="keep the CSV's other rows")
    parser.add_argument("--plot", action="store_true", help="draw charts (extra: plot)")
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


def int8_artifact(name: str, peers: Peers) -> qzoo.Artifact:
    """Returns qzoo's int8 model, which the peers' folder keeps."""
    path = peers.folder / f"{name}.safetensors"
    if not path.exists():
        if name == efficientnet.NAME:
            model = float_model(name)
            assert isinstance(model, efficientnet.EfficientNetLite0)
            efficientnet.quantized(model, peers.samples).write(path)
        else:
            qzoo.as_artifact(quantized(name, peers.samples)).write(path)
    return qzoo.Artifact.read(path)


@dataclass(frozen=True)
class Configuration:
    """What is timed: a model with batches of some size, on some threads."""

    model: str
    batch: int
    threads: int

    def images(self) -> Tensor:
        """Returns a batch of noise, float32 [batch, 3, side, side]."""
        side = side_of(self.model)
        return torch.randn(self.batch, 3, side, side, generator=torch.Generator().manual_seed(0))


def measure(
    setting: Configuration,
    model: qzoo.Artifact,
    peers: Peers,
    counter: Counter,
    args: argparse.Namespace,
) -> list[Row]:
    """Times all candidates of one configuration and returns a row for each, that of `auto` last."""
    x, side = setting.images(), peers.side
    options = setting.threads, setting.batch, side
    calls: dict[str, Call] = {}
    kinds: dict[str, tuple[str, str]] = {}
    with torch_threads(setting.threads), torch.inference_mode():
        for runtime in args.runtimes.split(","):
            try:
                calls[f"qzoo {runtime}"] = partial(qzoo.compile(model, runtime, *options), x)
            except qzoo.QzooError as error:
                peers.skipped[f"qzoo {runtime}"] = str(error)
        auto = qzoo.compile(model, "auto", *options)
        chosen = f"qzoo {auto.runtime}"
        again = f"{chosen} again"
        calls[again] = calls.setdefault(chosen, partial(auto, x))
        kinds |= {name: ("again" if name == again else "qzoo", "int8") for name in calls}
        for peer, precision, call in peers.calls(setting.batch, setting.threads, x):
            calls[peer], kinds[peer] = call, ("peer", precision)
        calls[PEAK] = int8_product()
        times = take_turns(calls, args.rounds, args.seconds, (PEAK, chosen, again))
        cycles = {name: counter.per_call(calls[name]) for name in kinds}
    timings = {name: Timing.of(name, taken) for name, taken in times.items()}
    noise = abs(timings[again].median_ms / timings[chosen].median_ms - 1)
    timings[AUTO], kinds[AUTO], cycles[AUTO] = timings[chosen], ("qzoo", "int8"), cycles[chosen]
    of_peers = [timings[n] for n in kinds if kinds[n][0] == "peer"]
    best_peer = min(of_peers, key=lambda t: t.median_ms)
    least_busy = min(t.cpu_ms for t in of_peers)
    peak = PEAK_SIDE**3 / timings.pop(PEAK).median_ms / 1e6
    share = setting.batch * gmacs(model, side) * 1e3 / peak
    return [
        {
            **dataclasses.asdict(setting),
            "candidate": candidate,
            "executes": auto.runtime if candidate == AUTO else "",
            "group": kinds[candidate][0],
            "precision": kinds[candidate][1],
            "median_ms": round(timing.median_ms, 4),
            "low_ms": round(timing.low_ms, 4),
            "high_ms": round(timing.high_ms, 4),
            "rounds": timing.rounds,
            "best_peer": best_peer.name,
            "ratio": round(timing.median_ms / best_peer.median_ms, 4),
            "noise": round(noise, 4),
            "cpu_ms": round(timing.cpu_ms, 4),
            "cpu_ratio": round(timing.cpu_ms / least_busy, 4),
            "mega_cycles": "" if (count := cycles[candidate]) is None else round(count / 1e6, 3),
            "int8_peak_gmacs": round(peak, 1),
            "share_of_peak": round(share / timing.median_ms, 4),
            **environment(PACKAGES),
        }
        for candidate, timing in timings.items()
    ]


def gmacs(model: qzoo.Artifact, side: int) -> float:
    """Returns the multiply-adds for one square image, in billions."""
    graph = model.graph
    shapes = graph.sized(side, side)
    return sum(products(node, shapes[node.name], graph) for node in graph.nodes) / 1e9


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
    first = {name: time_once(call) for name, call in calls.items()}
    # A first call may compile; one that takes far longer than all others' is hopeless all the same.
    best = min(first[n] for n in calls if n != PEAK)[0]
    running = [n for n in calls if n in kept or first[n][0] <= 4 * HOPELESS * best]
    times = {name: [] if name in running else [first[name]] for name in calls}
    repeats, order = dict.fromkeys(calls, 1), random.Random(0)
    end = time.perf_counter() + seconds
    for done in range(rounds):
        order.shuffle(running)  # nobody always follows the one that empties the caches
        for name in running:
            if repeats[name] > 1:
                calls[name]()
            times[name].append(time_once(calls[name], repeats[name]))
        if done == 1:
            fastest = {n: min(times[n])[0] for n in running}
            best = min(fastest[n] for n in running if n != PEAK)
            running = [n for n in running if n in kept or fastest[n] <= HOPELESS * best]
            repeats = {n: max(1, int(TURN_MS / fastest[n])) for n in running}
            times |= {n: [] for n in running if repeats[n] > 1}  # single calls say less
        if done + 1 >= MIN_ROUNDS and time.perf_counter() > end:
            break
    return times


def int8_product() -> Call:
    """Returns a product of two square int8 matrices (u8 by s8, oneDNN), the machine's int8 peak."""
    with quantized_engine("onednn"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layer = torch.ao.nn.quantized.Linear(PEAK_SIDE, PEAK_SIDE)
        x = torch.quantize_per_tensor(torch.rand(PEAK_SIDE, PEAK_SIDE), 1 / 255, 0, torch.quint8)
    return lambda: layer(x)


def summary(rows: list[Row]) -> str:
    """Returns one line on the row of `auto`, and on that of libqzoo."""
    row = rows[-1]
    own = [r["ratio"] for r in rows if r["candidate"] == "qzoo libqzoo"]
    return (
        f"{row['model']} batch {row['batch']} threads {row['threads']}: auto ({row['executes']}) "
        f"{row['median_ms']} ms, {row['ratio']} of {row['best_peer']} "
        f"({row['cpu_ratio']} by CPU time; the same twice: {row['noise']:.1%} apart); "
        f"libqzoo {own[0] if own else 'left out'}, "
        f"{row['share_of_peak']:.0%} of the int8 peak, load {row['load']}"
    )


if __name__ == "__main__":
    main()
