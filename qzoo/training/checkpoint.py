"""Checkpoints: everything that a run needs to go on as if it had never stopped."""

from __future__ import annotations

import io
import math
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from .._core.files import write_atomically
from ..errors import ArtifactError

#: The name of the checkpoint in --output-dir.
CHECKPOINT = "checkpoint.pth"


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Writes all that a resumed run needs, whole or not at all.

    Args:
        path: The file; one that is there stays as it is until the new one is complete.
        state: Tensors, and plain values, lists and dictionaries of them.

    Raises:
        ArtifactError: The file cannot be written; an earlier one is still there.
    """
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    write_atomically(path, cast("bytes", buffer.getbuffer()))


def load_checkpoint(path: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Reads what `save_checkpoint` wrote; tensors and plain values only, no code.

    Args:
        path: The file.
        settings: What must be as in the interrupted run.

    Raises:
        ArtifactError: The file is missing, damaged, or of a run with other settings.
    """
    state = read_checkpoint(path)
    stored = state["settings"]
    for name, value in settings.items():
        if not same(stored.get(name), value):
            raise ArtifactError(
                f"{path} belongs to a run with {name}={_shown(stored.get(name))}, not "
                f"{_shown(value)}: resume with the same options, or start anew without --resume."
            )
    return state


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Reads what `save_checkpoint` wrote in any run.

    Raises:
        ArtifactError: The file is missing or damaged, or names no settings.
    """
    if not path.is_file():
        raise ArtifactError(f"There is no checkpoint {path} to resume from.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load fails in many ways on a file that is none of its own
        reason = str(error).partition("\n")[0][:120]
        raise ArtifactError(
            f"{path} is not a checkpoint of the reference scripts, or is damaged ({reason})."
        ) from None
    if not isinstance(state, dict) or not isinstance(state.get("settings"), dict):
        raise ArtifactError(
            f"{path} is not a checkpoint of the reference scripts: it names no settings."
        )
    return state


def check_state(path: Path, state: Mapping[str, Any]) -> None:
    """Checks that a checkpoint has every field that a run writes, with a possible value.

    Raises:
        ArtifactError: One is missing, of another type, or has an impossible value.
    """
    for name, good in _FIELDS.items():
        if name not in state or not good(state[name]):
            what = "is not what a run writes" if name in state else "is missing"
            raise ArtifactError(
                f"{path} is a damaged checkpoint: its field {name!r} {what}. Resume from another "
                "one, or start anew."
            )


def _count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _MOST


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _texts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)


def _tensors(value: Any) -> bool:
    return _texts(value) and all(isinstance(v, torch.Tensor) for v in value.values())


def _log(value: Any) -> bool:
    plain = (int, float, str)
    return isinstance(value, list) and all(
        _texts(row)
        and _count(row.get("epoch"))
        and row.keys() == value[0].keys()
        and all(type(v) in plain for v in row.values())
        for row in value
    )


#: No run comes near so many epochs, steps or threads.
_MOST = 10**9
#: What every field of a checkpoint must be, whatever the run.
_FIELDS: dict[str, Callable[[Any], bool]] = {
    "settings": _texts,
    "threads": lambda v: _count(v) and v > 0,
    "data_sha256": lambda v: isinstance(v, str),
    "epoch": _count,
    "step": _count,
    "sums": lambda v: isinstance(v, list) and len(v) == 3 and all(map(_number, v)),
    "seconds": lambda v: _number(v) and v >= 0,
    "random": lambda v: isinstance(v, list) and len(v) > 0 and all(map(_texts, v)),
    "log": _log,
    "model": _tensors,
    "optimizer": lambda v: (
        _texts(v) and isinstance(v.get("state"), dict) and isinstance(v.get("param_groups"), list)
    ),
    "schedule": _texts,
    "scaler": _texts,
    "ema": lambda v: v is None or _tensors(v),
}


def same(stored: Any, value: Any) -> bool:
    """Returns whether a setting from a file, which may be anything, is the one that is wanted."""
    if isinstance(value, (list, tuple)):
        return (
            isinstance(stored, (list, tuple))
            and len(stored) == len(value)
            and all(map(same, stored, value))
        )
    return isinstance(stored, (type(None), bool, int, float, str)) and stored == value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def resume_path(resume: str | None, output: Path) -> Path | None:
    """Returns the checkpoint that --resume means.

    Args:
        resume: A file; "auto" for the output folder's own, if there is one; None for none.
        output: The output folder.
    """
    if resume != "auto":
        return Path(resume) if resume else None
    own = output / CHECKPOINT
    return own if own.exists() else None


def remove_leftovers(folder: Path) -> None:
    """Removes the unfinished files of a run that was killed while it wrote."""
    for name in (CHECKPOINT, "log.csv", "*.safetensors"):
        for path in folder.glob(f".{name}.*"):
            path.unlink(missing_ok=True)


def random_state(device: torch.device) -> dict[str, Any]:
    """Returns the state of every random number generator of this process.

    Returns:
        "torch" and, with a CUDA device, "cuda": uint8 tensors; "python" and "numpy": numbers and
        int64 tensors.
    """
    _, internal, gauss = random.getstate()
    mersenne: Any = np.random.get_state()
    _, keys, place, has_gauss, cached = mersenne
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": [torch.tensor(internal, dtype=torch.int64, device="cpu"), gauss],
        "numpy": [torch.from_numpy(keys.astype(np.int64)), place, has_gauss, cached],
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Sets every random number generator of this process to what `random_state` returned.

    Raises:
        ArtifactError: It is no such state.
    """
    try:
        torch.set_rng_state(state["torch"])
        internal, gauss = state["python"]
        random.setstate((3, tuple(internal.tolist()), gauss))
        keys, place, has_gauss, cached = state["numpy"]
        np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), place, has_gauss, cached))
        if device.type == "cuda" and "cuda" in state:
            torch.cuda.set_rng_state(state["cuda"], device)
    except Exception as error:  # each generator has its own way to refuse what is not its own
        raise ArtifactError(
            f"The checkpoint's state of random numbers cannot be restored ({str(error)[:120]})."
        ) from None
