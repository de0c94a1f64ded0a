"""Float weights as files, and tables of results."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
from safetensors.torch import save as to_safetensors
from torch import nn

from qzoo.artifact.format import ModelInfo, write_atomically
from qzoo.artifact.native import attach_info, model_info
from qzoo.errors import ArgumentError, ArtifactError
from qzoo.registry import get_entry, get_model
from qzoo.weights import read_metadata

#: The header key under which a file of float weights says what they are.
_HEADER = "qzoo-float"


def check_size(model: str, size: int) -> None:
    """Checks that a model takes square pictures of this side.

    Raises:
        ArgumentError: They are too small for it.
    """
    least = max(read_metadata(get_entry(model).name)["min_size"])
    if size < least:
        raise ArgumentError(f"{model} takes pictures of at least {least} pixels, not {size}.")


def float_model(name: str, weights: str | None, classes: int) -> nn.Module:
    """Builds a float quantizable model with a head for this many classes.

    Raises:
        UnknownNameError: An unknown model or weights.
        DownloadError: The weights could not be fetched.
    """
    # The auxiliary classifiers of 2015 are of no use with batch norm, and int8 models drop them.
    extra = {"aux_logits": False} if get_entry(name).aux else {}
    return get_model(name, weights=weights, num_classes=classes, **extra)


def save_float(model: nn.Module, path: Path, **info: Any) -> None:
    """Writes float weights with a description of the model, whole or not at all.

    Raises:
        ArtifactError: The file cannot be written.
    """
    known = dataclasses.asdict(dataclasses.replace(model_info(model), **info))
    tensors = {name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()}
    write_atomically(path, to_safetensors(tensors, metadata={_HEADER: json.dumps(known)}))


def load_float(path: Path) -> nn.Module:
    """Builds the float model that `save_float` wrote, in eval mode; runs no code from the file.

    Raises:
        ArtifactError: The file is missing, damaged, or not of this kind.
    """
    if not path.is_file():
        raise ArtifactError(f"There is no checkpoint {path}; references/train.py writes one.")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            info = ModelInfo(**json.loads((file.metadata() or {})[_HEADER]))
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        model = get_model(info.architecture, **info.builder_kwargs)
        model.load_state_dict(state)
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ArtifactError(
            f"{path} is not a float checkpoint of references/train.py, or is damaged "
            f"({str(error)[:200]})."
        ) from None
    return attach_info(model, info).eval()


def write_csv(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes rows with the columns of the first one, whole or not at all.

    Raises:
        ArtifactError: The file cannot be written.
    """
    rows = list(rows)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.getvalue().encode())


def put_row(path: Path, row: Mapping[str, Any], key: Sequence[str]) -> None:
    """Writes a row into a CSV file, in place of the one that agrees with it in `key`.

    Raises:
        ArtifactError: The file has other columns, or cannot be written.
    """
    rows: list[Mapping[str, Any]] = []
    if path.is_file():
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        if rows and list(rows[0]) != list(row):
            raise ArtifactError(f"{path} has other columns than the row to add; move it away.")
    rows = [r for r in rows if any(str(r[k]) != str(row[k]) for k in key)]
    write_csv(path, sorted([*rows, row], key=lambda r: [str(r[k]) for k in key]))
