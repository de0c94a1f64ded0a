"""What was measured on this machine, and the file that remembers it.

The file `auto.json` in qzoo's cache directory (`QZOO_HOME`) maps a key to a choice. The key covers
everything that a speed depends on: the model's structure, batch, image size, threads, CPU and
package versions, so that nothing has to be forgotten when one of them changes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import threading
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from .._core import strict_json
from .._core.cpu import cpu_name
from .._core.threads import usable_cores
from .._core.timing import Timing
from .._version import __version__
from ..artifact.format import Artifact
from ..hub import cache_dir, disk

_VERSION = 2
#: One entry takes about 500 bytes; the oldest make room.
_MAX_ENTRIES = 500
_MAX_BYTES = 1 << 22
_PACKAGES = ("qzoo", "torch", "torchao", "onnxruntime", "openvino", "executorch")
_lock = threading.Lock()
# For machines where the file cannot be written.
_in_process: dict[str, dict[str, Any]] = {}


@dataclass(frozen=True)
class Choice:
    """Which candidate was chosen, and why; `print` it to see the table.

    Attributes:
        name: The fastest candidate.
        measured: All candidates that were timed, fastest first: by CPU time with one thread, by
            the 25th percentile of the clock with several. Empty where only one can run here.
        batch_size: Images per call while measuring.
        input_size: Their height and width, in pixels.
        threads: Threads that the calls computed with.
        skipped: Candidates that were not timed, and why not.
        remembered: Whether the times were measured by an earlier call.
    """

    name: str
    measured: tuple[Timing, ...]
    batch_size: int
    input_size: tuple[int, int]
    threads: int
    skipped: Mapping[str, str] = field(default_factory=dict)
    remembered: bool = False

    def __str__(self) -> str:
        height, width = self.input_size
        what = f"batch {self.batch_size}, {height}x{width} pixels, {self.threads} threads"
        lines = [f"{self.name}: fastest at {what}{' (remembered)' if self.remembered else ''}"]
        if not self.measured:
            lines = [f"{self.name}: the only runtime to choose from, so nothing was measured"]
        lines += [
            f"  {m.name:<12} {m.median_ms:9.3f} ms  ({m.low_ms:.3f} to {m.high_ms:.3f} in "
            f"{m.rounds} calls; CPU {m.cpu_ms:.3f} ms)"
            for m in self.measured
        ]
        lines += [f"  {name:<12} not measured: {why}" for name, why in self.skipped.items()]
        return "\n".join(lines)


def choice_key(
    purpose: str,
    artifact: Artifact,
    candidates: Iterable[str],
    batch_size: int,
    input_size: tuple[int, int],
    threads: int,
) -> str:
    """Returns the key under which a choice is remembered."""
    parts = [
        purpose,
        artifact.info.architecture,
        _structure(artifact),
        sorted(candidates),
        batch_size,
        list(input_size),
        threads,
        machine(),
        {name: version(name) for name in _PACKAGES},
    ]
    text = json.dumps(parts, sort_keys=True)
    return f"{purpose}:{artifact.info.architecture}:{hashlib.sha256(text.encode()).hexdigest()}"


#: What does not decide how fast a node runs.
_NUMBERS = ("scale", "zero_point", "low", "high")


def _structure(artifact: Artifact) -> str:
    """Returns a digest of what decides a model's speed; the weights' values do not."""
    # Runtimes skip a rescaling between equal ranges, and treat a zero point of 0 apart.
    ranges: dict[tuple[float, int], int] = {}
    rows = []
    for node in artifact.graph.nodes:
        row = {k: v for k, v in node.to_json().items() if k not in _NUMBERS}
        if (grid := node.grid) is not None:
            row["range"] = ranges.setdefault((grid.scale, grid.zero_point), len(ranges))
            row["ends"] = grid.zero_point == 0, grid.low == grid.zero_point
        rows.append(row)
    shapes = [[name, list(array.shape)] for name, array in sorted(artifact.graph.tensors.items())]
    return hashlib.sha256(json.dumps([rows, shapes]).encode()).hexdigest()


def machine() -> str:
    """Returns the CPU's name and the number of cores that this process may use."""
    return f"{cpu_name()}, {usable_cores()} cores"


def version(package: str) -> str | None:
    """Returns the version of an installed package, or None."""
    if package == "qzoo":
        return __version__
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def recall(key: str) -> Choice | None:
    """Returns the choice remembered under `key`, or None."""
    with _lock:
        stored = _in_process.get(key) or _read().get(key)
    if stored is None:
        return None
    try:
        return Choice(
            name=str(stored["name"]),
            measured=tuple(_measured(**m) for m in stored["measured"]),
            batch_size=int(stored["batch_size"]),
            input_size=(int(stored["input_size"][0]), int(stored["input_size"][1])),
            threads=int(stored["threads"]),
            skipped={str(k): str(v) for k, v in stored["skipped"].items()},
            remembered=True,
        )
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError):
        return None  # measured anew and overwritten


def _measured(name: str, rounds: int, **times: float) -> Timing:
    return Timing(str(name), rounds=int(rounds), **{k: float(ms) for k, ms in times.items()})


def remember(key: str, choice: Choice) -> None:
    """Remembers a choice in this process and, where the cache can be written, on this machine."""
    stored = dataclasses.asdict(choice)
    del stored["remembered"]
    with _lock:
        _in_process[key] = stored
        entries = _read()
        entries.pop(key, None)
        entries[key] = stored
        kept = dict(list(entries.items())[-_MAX_ENTRIES:])
        path = store_path()
        try:
            disk.make_folder(path.parent, cache_dir())
            text = json.dumps({"version": _VERSION, "choices": kept}, indent=1)
            disk.write_file(path, text.encode())
        except OSError:
            pass  # a read-only cache costs a measurement in every process, nothing else


def store_path() -> Path:
    """Returns the file that remembers choices."""
    return cache_dir() / "auto.json"


def _read() -> dict[str, dict[str, Any]]:
    path = store_path()
    try:
        if disk.plain(path) is None:
            return {}
        content = disk.read_note(path, _MAX_BYTES)
        if content is None:
            raise ValueError("it is far larger than qzoo writes it")
        data = strict_json.parse(content)
        if data["version"] != _VERSION:
            return {}
        choices = data["choices"]
        if not all(isinstance(value, dict) for value in choices.values()):
            raise ValueError("a choice is not an object")
        return dict(choices)
    except OSError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        warnings.warn(
            f"{path}, which remembers the fastest runtimes, is damaged ({error}); it is written "
            "anew after the next measurement.",
            stacklevel=2,
        )
        return {}
