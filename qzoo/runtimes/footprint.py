"""How much memory a runtime takes for a model, measured in a process of its own.

Run as `python -m qzoo.runtimes.footprint ARTIFACT RUNTIME THREADS BATCH HEIGHT WIDTH`; a 0 stands
for None. Prints JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from ..artifact.format import Artifact
from ..errors import QzooError
from .api import compile, runtime_class


def footprint(
    artifact: Artifact, runtime: str, threads: int | None, batch_size: int, size: tuple[int, int]
) -> dict[str, float]:
    """Measures the memory of a fresh process that makes a model ready and calls it three times.

    Returns:
        "peak_mib", the most memory that the process had resident, and "model_mib", how much of it
        came on top of Python, qzoo and, for runtimes that stand on it, PyTorch; MiB.

    Raises:
        QzooError: The process failed; the message is its last line.
    """
    with tempfile.TemporaryDirectory(prefix="qzoo-") as folder:
        path = Path(folder) / "model.safetensors"
        artifact.write(path)
        numbers = [str(n) for n in (threads or 0, batch_size, *size)]
        command = [sys.executable, "-m", "qzoo.runtimes.footprint", str(path), runtime, *numbers]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise QzooError(f"Measuring the memory of {runtime} failed: {last}")
    result: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def peak_mib() -> float:
    """Returns the most memory that this process has had resident, in MiB.

    Raises:
        QzooError: This system does not say.
    """
    try:
        # Not getrusage: its figure starts at that of the process which started this one.
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    raise QzooError("The peak of memory can only be read on Linux (/proc/self/status).")


def _main(path: str, runtime: str, *numbers: str) -> None:
    threads, batch, height, width = (int(n) for n in numbers)
    x = np.zeros((batch, 3, height, width), np.float32)
    artifact = Artifact.read(path)
    runtime_class(runtime)  # imports what it stands on
    before = peak_mib()
    model = compile(artifact, runtime, threads or None, batch, (height, width))
    for _ in range(3):
        model(x)
    peak = peak_mib()
    figures = {"peak_mib": round(peak, 1), "model_mib": round(peak - before, 1)}
    print(json.dumps(figures))


if __name__ == "__main__":
    _main(*sys.argv[1:])
