"""Checkpoints: everything that a run needs to go on as if it had never stopped."""

from __future__ import annotations

import io
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from ..artifact.format import write_atomically
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
    try:
        write_atomically(path, cast("bytes", buffer.getbuffer()))
    except ArtifactError as error:
        earlier = f" The one before it is whole: make room, then --resume {path}."
        raise ArtifactError(f"{error}{earlier if path.exists() else ''}") from None


def load_checkpoint(path: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Reads what `save_checkpoint` wrote; tensors and plain values only, no code.

    Args:
        path: The file.
        settings: What must be as in the interrupted run.

    Raises:
        ArtifactError: The file is missing, damaged, or of a run with other settings.
    """
    if not path.is_file():
        raise ArtifactError(f"There is no checkpoint {path} to resume from.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        stored = state["settings"]
    except Exception as error:  # torch.load fails in many ways on a file that is none of its own
        reason = str(error).partition("\n")[0][:120]
        raise ArtifactError(
            f"{path} is not a checkpoint of the reference scripts, or is damaged ({reason})."
        ) from None
    for name, value in settings.items():
        if stored.get(name) != value:
            raise ArtifactError(
                f"{path} belongs to a run with {name}={stored.get(name)!r}, not {value!r}: resume "
                "with the same options, or start anew without --resume."
            )
    return state


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
        "python": [torch.tensor(internal), gauss],
        "numpy": [torch.from_numpy(keys.astype(np.int64)), place, has_gauss, cached],
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Sets every random number generator of this process to what `random_state` returned."""
    torch.set_rng_state(state["torch"])
    internal, gauss = state["python"]
    random.setstate((3, tuple(internal.tolist()), gauss))
    keys, place, has_gauss, cached = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), place, has_gauss, cached))
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
