"""Reading a published-style file into a ready int8 model: time and peak memory beside torchvision.

    python benchmarks/read_published.py --model resnet50

The file is the int8 state dict that torchvision's own builder makes, as `torch.save` writes it.
qzoo reads it as its users do: through the weight enum, from the cache, hash verified. torchvision's
way is that of its builder: `torch.load`, the quantized model built from scratch, `load_state_dict`.
Time is taken in turns in one process; memory in a fresh process for each, as the growth of its peak
over what it held after the imports. About 10 MiB of it is what PyTorch itself sets up on the first
use. Exit code 1 if qzoo is slower or takes more than twice the file.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torchvision.models import quantization as tv

import qzoo
from qzoo._core.timing import interleave
from qzoo._torch.threads import torch_threads
from qzoo.backends import quantized_engine
from qzoo.hub.cache import entry_for

MAX_PEAK = 2.0  # times the file


def main() -> int:
    """Measures both ways and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--old", action="store_true", help="the serialization before PyTorch 1.6")
    parser.add_argument("--peak", choices=["qzoo", "torchvision"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    if args.peak is not None:
        print(peak_growth(readers(args.model)[args.peak]))
        return 0
    with tempfile.TemporaryDirectory() as home:
        os.environ["QZOO_HOME"] = home
        path = write_file(args.model, zipped=not args.old)
        os.environ["QZOO_BENCH_SHA256"] = hashlib.sha256(path.read_bytes()).hexdigest()
        calls = readers(args.model)
        with torch_threads(args.threads):
            times = interleave(calls, rounds=args.rounds, round_s=0, warmup=1)
        peaks = {}
        for name in calls:
            command = [sys.executable, __file__, "--model", args.model, "--peak", name]
            peaks[name] = float(subprocess.run(command, capture_output=True, check=True).stdout)
        size = path.stat().st_size
    print(f"{args.model}: {size / 2**20:.1f} MiB, {args.rounds} rounds, {args.threads} thread(s)")
    for name, timing in times.items():
        print(
            f"{name:<12} {timing.median_ms:8.0f} ms ({timing.low_ms:.0f} to {timing.high_ms:.0f})"
            f"   peak {peaks[name] / 2**20:6.1f} MiB = {peaks[name] / size:.2f} files"
        )
    ratio = times["qzoo"].median_ms / times["torchvision"].median_ms
    print(f"qzoo takes {ratio:.2f} of torchvision's time")
    return int(ratio > 1 or peaks["qzoo"] > MAX_PEAK * size)


def weights_of(model: str) -> Any:
    """Returns the default weights, expecting the benchmark's own file instead of the published."""
    member: Any = qzoo.get_model_weights(model)["DEFAULT"]
    if sha256 := os.environ.get("QZOO_BENCH_SHA256"):
        member.meta["sha256_prefix"] = sha256
    return member


def write_file(model: str, zipped: bool) -> Path:
    """Saves the state dict of torchvision's int8 model where the cache holds the weights' file."""
    member = weights_of(model)
    path = entry_for(member.url).final
    path.parent.mkdir(parents=True)
    with quantized_engine(member.meta["backend"]):
        state = getattr(tv, model)(quantize=True, **extra(model)).state_dict()
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    return path


def extra(model: str) -> dict[str, Any]:
    """Returns the keywords with which torchvision's builder makes no auxiliary classifiers."""
    return {"aux_logits": False} if model in ("googlenet", "inception_v3") else {}


def readers(model: str) -> dict[str, Callable[[], object]]:
    """Returns both ways from the file to a model that is ready to run."""
    member = weights_of(model)
    path = entry_for(member.url).final
    builder = getattr(tv, model)
    keywords = extra(model)

    def torchvision() -> object:
        with quantized_engine(member.meta["backend"]):
            state = torch.load(path, weights_only=False)
            built = builder(quantize=True, **keywords)
            built.load_state_dict(state)
        return built

    def own() -> object:
        return qzoo.get_model(model, weights=member, quantize=True, progress=False)

    return {"qzoo": own, "torchvision": torchvision}


def peak_growth(call: Callable[[], object]) -> int:
    """Returns by how many bytes the process grew at most during a call (Linux only)."""
    torch.set_num_threads(1)
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak of the imports
    before = status("VmRSS")
    call()
    return status("VmHWM") - before


def status(field: str) -> int:
    """Returns a size of this process in bytes, as the kernel reports it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field))


if __name__ == "__main__":
    sys.exit(main())
