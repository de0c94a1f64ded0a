"""A split that is held out of a folder of pictures which has none."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset
from tqdm import tqdm

from ..errors import ArgumentError, ImageError
from ..folders import plain_name
from ..images import check_image
from .sources import Data, Transform


class Part(Dataset[tuple[Any, int]]):
    """Some of the pictures of a folder.

    Attributes:
        files: Paths of the pictures.
        targets: Label of each item.
    """

    def __init__(self, data: Any, indices: Sequence[int]) -> None:
        """Takes some of a data set's items.

        Args:
            data: Pairs of a picture and a label, with `files` and `targets`.
            indices: Which ones.
        """
        self.data, self.indices = data, list(indices)
        self.files: list[str] = [data.files[i] for i in self.indices]
        self.targets = [int(data.targets[i]) for i in self.indices]

    def __len__(self) -> int:
        """Returns the number of pictures."""
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """Returns a picture and its label."""
        picture, label = self.data[self.indices[index]]
        return picture, label


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
    members: dict[int, list[int]] = defaultdict(list)
    for index, label in enumerate(whole.targets):
        members[int(label)].append(index)
    kept: dict[str, list[int]] = {"train": [], "test": []}
    for label, indices in sorted(members.items()):
        if len(indices) < 2:
            raise ArgumentError(
                f"The class {data.classes[label]} of {data.name} has a single picture: one is "
                "needed to train on and another to measure on."
            )
        names = {i: _key(whole.files[i], seed) for i in indices}
        order = sorted(indices, key=names.__getitem__)
        count = min(max(1, round(share * len(indices))), len(indices) - 1)
        kept["test"] += order[:count]
        kept["train"] += order[count:]

    def split(which: str, transform: Transform | None = None) -> Any:
        return Part(data.split("all", transform), sorted(kept[which]))

    return dataclasses.replace(
        data,
        held_out=f"{data.name} (held-out {round(100 * share)} %)",
        split=split,
        splits=("train", "test"),
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
