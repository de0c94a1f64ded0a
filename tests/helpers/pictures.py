"""Folders of pictures to train on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from qzoo.datasets import Digits

#: Four digits by name, as classes of a folder.
NAMES = {"eight": 8, "one": 1, "seven": 7, "zero": 0}


def write_pictures(root: Path, train: int, val: int, classes: tuple[str, ...]) -> Path:
    """Writes a folder of pictures as `--data-path` takes it: a brightness for each class."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for place, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = 200 * place // len(classes) + rng.integers(0, 60, (40, 50, 3))
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    return root


def write_digits(root: Path, count: int) -> Path:
    """Writes so many training pictures of each of the four digits of `NAMES`, a folder for each."""
    data = Digits("train")
    for name, digit in NAMES.items():
        (root / name).mkdir(parents=True)
        indices = [i for i, label in enumerate(data.targets) if label == digit][:count]
        for place, index in enumerate(indices):
            data[index][0].save(root / name / f"{place}.png")
    return root
