"""Which file a path means: itself or, of a folder that qzoo wrote, the model in it."""

from __future__ import annotations

import os
from pathlib import Path

from .._core.files import File, RefusedError
from ..errors import ArtifactError
from .tensor_file import read_metadata

#: What an int8 model is called in a folder of `qzoo finetune` and in one of `save_pretrained`.
INT8_NAMES = ("int8.safetensors", "model.safetensors")
#: What a float model is called in a folder of `qzoo finetune` or references/train.py.
FLOAT_NAMES = ("model.safetensors",)
#: The keys of the texts by which qzoo's files say what they hold.
KINDS = {"qzoo": "int8", "qzoo-float": "float"}


def int8_file(path: str | os.PathLike[str]) -> Path:
    """Returns the file of the int8 model that a path means.

    Args:
        path: A file, which is returned as it is, or a folder of `save_pretrained` or
            `qzoo finetune`.

    Raises:
        ArtifactError: A folder without an int8 model.
    """
    return _in_folder(Path(path), "int8")


def float_file(path: str | os.PathLike[str]) -> Path:
    """Returns the file of the float model that a path means.

    Args:
        path: A file, which is returned as it is, or a folder of `qzoo finetune` or
            references/train.py.

    Raises:
        ArtifactError: A folder without a float model.
    """
    return _in_folder(Path(path), "float")


def _in_folder(path: Path, kind: str) -> Path:
    if not path.is_dir():
        return path
    names = FLOAT_NAMES if kind == "float" else INT8_NAMES
    files = [path / name for name in names if (path / name).is_file()]
    kinds = [_kind(file) for file in files]
    # Without one that says to be of this kind, whoever reads the file finds out what it is.
    for wanted in (kind, None):
        if wanted in kinds:
            return files[kinds.index(wanted)]
    if files:
        other, advice = (
            ("int8", "name the float model it was made of")
            if kind == "float"
            else ("float", "quantize it first (qzoo quantize)")
        )
        raise ArtifactError(f"{path} is a folder that holds only a model in {other}: {advice}.")
    raise ArtifactError(
        f"{path} is a folder that holds no {' or '.join(reversed(names))}: name a folder that "
        "save_pretrained or qzoo finetune wrote, or a file."
    )


def _kind(path: Path) -> str | None:
    """Returns "int8" or "float" where qzoo wrote a file, which says so in front, else None."""
    try:
        with File(path) as file:
            texts = read_metadata(file)
    except (OSError, RefusedError):
        return None
    return next((kind for key, kind in KINDS.items() if key in texts), None)
