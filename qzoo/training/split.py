"""The record of which pictures a run trains on and which it holds out."""

from __future__ import annotations

import csv
import dataclasses
import os
from pathlib import Path
from typing import Any

from torch import nn

from ..artifact.seen import TRAINING, files_of, hashes, noted
from ..native.model import attach_info, model_info
from .distributed import Ranks
from .files import write_csv
from .options import TrainOptions
from .prepare import Prepared
from .runs import SPLIT
from .script import tell

_COLUMNS = ("file", "part", "sha256")
#: What the parts are called.
TRAINED, HELD_OUT = "training", "held out"


def note_split(model: nn.Module, data: Prepared, options: TrainOptions, ranks: Ranks) -> None:
    """Writes split.csv, and notes on the model which pictures it is trained on.

    Of data that are no files there is nothing to write or note. A run that goes on has also seen
    what it was trained on before, whatever the folder holds now.

    Args:
        model: The model to train; its `ModelInfo.seen` gets the pictures.
        data: The data.
        options: The options.
        ranks: The processes; the first one writes, and alone has the note.

    Raises:
        ImageError: A picture cannot be read.
        ArtifactError: The file cannot be written.
    """
    if not ranks.first or options.output.test_only:
        return
    rows = []
    for part, pictures in ((TRAINED, data.train_set), (HELD_OUT, data.test_set)):
        files = files_of(pictures)
        if files is None:
            return
        for file, digest in zip(files, hashes(files, progress=True), strict=True):
            name = os.path.relpath(file, options.data.data_path or ".")
            name = name.encode(errors="backslashreplace").decode()  # names need not be Unicode
            rows.append({"file": name, "part": part, "sha256": digest.hex()})
    path = options.output.folder / SPLIT
    earlier = _earlier(path) if options.output.resume else []
    known = {tuple(row.values()) for row in rows}
    lost = [r for r in earlier if r["part"] == TRAINED and tuple(r.values()) not in known]
    if lost:
        tell(f"{len(lost)} pictures that this run was trained on have changed or are gone.")
    if earlier != (rows := rows + lost):
        write_csv(path, rows)
    trained = [bytes.fromhex(row["sha256"]) for row in rows if row["part"] == TRAINED]
    info = model_info(model)
    attach_info(model, dataclasses.replace(info, seen=noted(info.seen, TRAINING, trained)))


def _earlier(path: Path) -> list[dict[str, str]]:
    """Returns the rows that the run has written before, or none."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not all(tuple(row) == _COLUMNS and _is_sha256(row["sha256"]) for row in rows):
        tell(f"{path} is damaged and is written anew.")
        return []
    return rows


def _is_sha256(text: Any) -> bool:
    return isinstance(text, str) and len(text) == 64 and set(text) <= set("0123456789abcdef")
