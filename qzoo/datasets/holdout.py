"""A split that is held out of a folder of pictures which has none."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset
from tqdm import tqdm

from ..artifact.seen import TRAINING, Notes, hashes
from ..errors import ArgumentError, ImageError
from ..pictures.folders import plain_name
from ..pictures.images import check_image
from .sources import Data, Transform

#: Where a folder is not split, what is held out of each class.
HELD_OUT = 0.2


class Part(Dataset[Any]):
    """Some of the pictures of a folder.

    Attributes:
        files: Paths of the pictures.
        targets: Label of each item; None where pictures have no labels.
    """

    def __init__(self, data: Any, indices: Sequence[int]) -> None:
        """Takes some of a data set's items.

        Args:
            data: Pairs of a picture and a label, or pictures, with `files` and `targets`.
            indices: Which ones.
        """
        self.data, self.indices = data, list(indices)
        self.files: list[str] = [data.files[i] for i in self.indices]
        labels = data.targets
        self.targets = None if labels is None else [int(labels[i]) for i in self.indices]

    def __len__(self) -> int:
        """Returns the number of pictures."""
        return len(self.indices)

    def __getitem__(self, index: int) -> Any:
        """Returns a picture and its label, or a picture where there are no labels."""
        return self.data[self.indices[index]]


def hold_out(data: Data, share: float, seed: int = 0) -> Data:
    """Returns data of which a share of every class is held out as the split "test".

    Which pictures these are follows from their file names and the seed, so that it is the same
    everywhere, and hardly changes when pictures are added.

    Args:
        data: Data with the split "all" alone.
        share: What is held out of each class, above 0 and below 1; one picture at the least.
        seed: Chooses the pictures.

    Raises:
        ArgumentError: There are no two classes, or a class has a single picture.
    """
    if len(data.classes) < 2:
        raise ArgumentError(
            f"{data.name} should have folders of at least two classes: a model that knows one "
            "class has nothing to tell apart."
        )
    whole = data.split("all", None)
    for label, count in sorted(Counter(map(int, whole.targets)).items()):
        if count < 2:
            raise ArgumentError(
                f"The class {data.classes[label]} of {data.name} has a single picture: one is "
                "needed to train on and another to measure on."
            )
    return _split(data, chosen(whole, share, seed), f"held-out {round(100 * share)} %")


def chosen(pictures: Any, share: float, seed: int = 0) -> set[int]:
    """Returns which pictures of each class `hold_out` holds out: none of a class of one.

    Args:
        pictures: A data set with `files` and, where they have labels, `targets`.
        share: What is held out, above 0 and below 1; one picture of each class at the least.
        seed: Chooses the pictures.
    """
    members: dict[int, list[int]] = defaultdict(list)
    for index in range(len(pictures.files)):
        members[0 if pictures.targets is None else int(pictures.targets[index])].append(index)
    held: set[int] = set()
    for indices in members.values():
        names = {i: _key(pictures.files[i], seed) for i in indices}
        count = min(max(1, round(share * len(indices))), len(indices) - 1)
        held |= set(sorted(indices, key=names.__getitem__)[:count])
    return held


def divide(data: Data, seen: Mapping[str, str], *, progress: bool = True) -> Data:
    """Returns data with one part to calibrate on, "train", and another to judge by, "test".

    Data that are split already stay so. Of others, what the model was not trained on is the second
    part, where some of them were; else a fifth of each class.

    Args:
        data: The data.
        seen: What the model has seen (`ModelInfo.seen`).
        progress: Whether to show a progress bar on stderr.

    Raises:
        ArgumentError: There are no two pictures of one class.
    """
    if "test" in data.splits:
        return data
    parts = by_training(data, seen, progress=progress)
    if "test" in parts.splits:
        return parts
    held = chosen(data.split("all", None), HELD_OUT)
    if not held:
        raise ArgumentError(
            f"{data.name} has no two pictures of a class: one is needed to calibrate on and "
            "another to judge by."
        )
    return _split(data, held, f"held-out {round(100 * HELD_OUT)} %")


def by_training(data: Data, seen: Mapping[str, str], *, progress: bool = True) -> Data:
    """Returns data whose part "test" a model was not trained on, where it was on another part.

    Args:
        data: The data.
        seen: What the model has seen (`ModelInfo.seen`).
        progress: Whether to show a progress bar on stderr.

    Returns:
        The data as they are, where they are split already, where the model has seen all of them or
        none, or where that is not known.
    """
    notes = Notes([seen.get(TRAINING, "")])
    files = data.split("all", None).files if data.splits == ("all",) and notes else []
    held = {
        index
        for index, digest in enumerate(hashes(files, progress=progress))
        if notes.covers(digest) and not notes.has(digest)
    }
    if not 0 < len(held) < len(files):
        return data
    return _split(data, held, "not trained on")


def _split(data: Data, held: set[int], how: str) -> Data:
    count = len(data.split("all", None))
    indices = {
        "train": [i for i in range(count) if i not in held],
        "test": [i for i in range(count) if i in held],
    }

    def split(which: str, transform: Transform | None = None) -> Any:
        return Part(data.split("all", transform), indices[which])

    return dataclasses.replace(
        data, held_out=f"{data.name} ({how})", split=split, splits=("train", "test")
    )


def _key(path: str, seed: int) -> str:
    place = Path(path)
    # macOS spells the same name in another way, and names need not be Unicode at all.
    name = plain_name(f"{seed}/{place.parent.name}/{place.name}")
    return hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()


def check_pictures(data: Data, *, progress: bool = True) -> int:
    """Reads every picture of a folder once, so that a damaged one does not end a training midway.

    Args:
        data: Data of files; of others there is nothing to check.
        progress: Whether to show a progress bar on stderr.

    Returns:
        How many files were read.

    Raises:
        ArgumentError: Files cannot be read; the message names them.
    """
    files: list[str] = []
    for split in data.splits:
        files += getattr(data.split(split, None), "files", [])
    with ThreadPoolExecutor(4) as pool:
        found = list(
            tqdm(
                pool.map(_problem, files),
                "check pictures",
                len(files),
                unit="file",
                leave=False,
                disable=not progress,
            )
        )
    if broken := [problem for problem in found if problem]:
        more = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
        raise ArgumentError(f"{broken[0]} Repair or remove it{more}.")
    return len(files)


def _problem(path: str) -> str | None:
    """Returns what is wrong with a file, or None."""
    try:
        check_image(path)
    except ImageError as error:
        return str(error)
    return None
