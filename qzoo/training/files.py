"""Models to start from, and tables of results."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .._core.files import write_atomically
from ..datasets.sources import Data
from ..errors import ArgumentError, ArtifactError, listed
from ..importers.checkpoint import load_float
from ..metadata import read_metadata
from ..native.model import model_info
from ..pictures.classes import class_names
from ..pictures.folders import same_names
from ..registry import get_entry, get_model


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


def trained_model(name: str | None, weights: str | None, checkpoint: str | None) -> nn.Module:
    """Loads the float model that `--checkpoint`, or `--model` and `--weights`, name, in eval mode.

    Raises:
        ArgumentError: The options do not say one model.
        ArtifactError: The checkpoint is missing, damaged, or of another kind.
        DownloadError: The weights could not be fetched.
    """
    if (checkpoint is None) == (weights is None):
        raise ArgumentError("Give either --checkpoint FILE or --model NAME --weights NAME.")
    if checkpoint is None:
        if name is None:
            raise ArgumentError("--weights needs --model, to know whose weights they are.")
        return float_model(name, weights, 1000).eval()
    return load_float(Path(checkpoint), name)


def check_classes(model: nn.Module, data: Data, own: bool) -> None:
    """Checks that a model tells the classes of the data apart, in the same order.

    Args:
        model: A model of the zoo.
        data: The data.
        own: Whether its class names should be those of the data; ImageNet's folders bear WordNet
            numbers instead of names, but in the order of the logits.

    Raises:
        ArgumentError: It does not.
    """
    names = class_names(model_info(model).classes) or []
    if not same_names(names, data.classes) if own else len(names) != len(data.classes):
        raise ArgumentError(
            f"The model tells {len(names)} classes apart ({listed(names)}), "
            f"but {data.name} has {len(data.classes)} ({listed(data.classes)}): they do "
            "not belong together."
        )


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Returns the sha256 of a model's numbers and their names, in hexadecimal."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(name.encode())
        found.update(tensors[name].detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


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
        try:
            with path.open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
        except (OSError, csv.Error, UnicodeDecodeError) as error:
            raise ArtifactError(f"{path} is no table of results: {error}; move it away.") from None
        if rows and list(rows[0]) != list(row):
            raise ArtifactError(f"{path} has other columns than the row to add; move it away.")
    rows = [r for r in rows if any(str(r[k]) != str(row[k]) for k in key)]
    write_csv(path, sorted([*rows, row], key=lambda r: [str(r[k]) for k in key]))
