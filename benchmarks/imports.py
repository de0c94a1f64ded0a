"""Measures how long qzoo takes to start, in fresh processes, beside PyTorch, torchvision and timm.

Every command runs in a process of its own, from its start to its end, Python's own start included.
The commands take turns in every round, so that whatever else the machine does slows all of them
down; the CPU time of a process feels that least.

    python benchmarks/imports.py --rounds 15

writes benchmarks/results/imports.csv. Exit code 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

from common import Row, environment
from pages import RESULTS

import qzoo
from qzoo.training.files import write_csv

PACKAGES = ("qzoo", "torch", "torchvision", "timm", "numpy", "click")
#: What the others are compared with.
BASE = "import torch, torchvision"
EMBEDDED = Path(qzoo.__file__).parent / "embedded"
#: A command that classifies a picture on the runtime that stands last.
CLASSIFY = ["-m", "qzoo", "classify", str(EMBEDDED / "digits" / "digit-3-0045.png")]
CLASSIFY += ["--model", str(EMBEDDED / "shufflenet_v2_x0_5_digits_x86.safetensors"), "--runtime"]
#: What runs, as arguments of Python, by its name.
COMMANDS = {
    "python": ["-c", "pass"],
    "import qzoo": ["-c", "import qzoo"],
    "qzoo --help": ["-m", "qzoo", "--help"],
    "qzoo list": ["-m", "qzoo", "list"],
    "qzoo info resnet50": ["-m", "qzoo", "info", "resnet50"],
    "qzoo classify (onnxruntime)": [*CLASSIFY, "onnxruntime"],
    "qzoo classify (openvino)": [*CLASSIFY, "openvino"],
    "qzoo classify (torch)": [*CLASSIFY, "torch"],
    "from qzoo import resnet50": ["-c", "from qzoo import resnet50"],
    "import torch": ["-c", "import torch"],
    BASE: ["-c", BASE],
    "import timm": ["-c", "import timm"],
}
#: The seconds that a command may take at most.
BARS = {"import qzoo": 0.15, "qzoo --help": 0.4, "qzoo list": 0.4, "qzoo info resnet50": 0.4,
        "qzoo classify (onnxruntime)": 1.2}  # fmt: skip
#: The multiple of `BASE` that a command may take at most.
RATIO_BARS = {"from qzoo import resnet50": 1.05}


def run(arguments: list[str]) -> tuple[float, float]:
    """Returns the seconds of a process, on the clock and of the CPU."""
    before, start = _cpu(), time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    wall, cpu = time.perf_counter() - start, _cpu() - before
    if done.returncode:
        raise SystemExit(f"python {' '.join(arguments)} failed: {done.stderr.strip()[-500:]}")
    return wall, cpu


def _cpu() -> float:
    """Returns the CPU seconds of all processes that have run so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def rows_of(times: dict[str, list[tuple[float, float]]]) -> list[Row]:
    """Returns a row per command of the seconds that it took in each round."""
    rows = []
    for command, taken in times.items():
        walls = [wall for wall, _ in taken]
        pairs = list(zip(taken, times[BASE], strict=True))
        rows.append(
            {
                "command": command,
                "median_s": round(statistics.median(walls), 4),
                "low_s": round(min(walls), 4),
                "high_s": round(max(walls), 4),
                "cpu_s": round(statistics.median(cpu for _, cpu in taken), 4),
                "ratio": round(statistics.median(a[0] / b[0] for a, b in pairs), 4),
                "cpu_ratio": round(statistics.median(a[1] / b[1] for a, b in pairs), 4),
                "rounds": len(taken),
                **environment(PACKAGES),
            }
        )
    return rows


def verdict(row: Row) -> str:
    """Returns whether a row meets its bar, in words; "" where it has none."""
    command = row["command"]
    if command in BARS:
        kept = row["median_s"] <= BARS[command]
        return f"{'meets' if kept else 'MISSES'} at most {BARS[command]} s"
    if command in RATIO_BARS:
        kept = row["ratio"] <= RATIO_BARS[command]
        return f"{'meets' if kept else 'MISSES'} at most {RATIO_BARS[command]} of {BASE}"
    return ""


def main() -> int:
    """Measures, prints a table, and writes the CSV file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=15, help="default: %(default)s")
    parser.add_argument("--csv", type=Path, default=RESULTS / "imports.csv")
    options = parser.parse_args()
    commands = dict(COMMANDS)
    if importlib.util.find_spec("timm") is None:
        del commands["import timm"]
        print("left out import timm, which is not installed")
    # Where the package lies, so that every process finds the one that is measured.
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path[1:])
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for number in range(options.rounds + 1):
        for name, arguments in commands.items():
            taken = run(arguments)
            if number:  # the first round fills the caches of the disk
                times[name].append(taken)
    rows = rows_of(times)
    print(f"{'command':<28}{'s':>8}{'ratio':>8}{'CPU s':>8}{'ratio':>8}")
    for row in rows:
        figures = "".join(f"{row[k]:8.3f}" for k in ("median_s", "ratio", "cpu_s", "cpu_ratio"))
        print(f"{row['command']:<28}{figures}  {verdict(row)}")
    write_csv(options.csv, rows)
    return int(any("MISSES" in verdict(row) for row in rows))


if __name__ == "__main__":
    sys.exit(main())
