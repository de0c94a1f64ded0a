"""What the tests of the reference scripts share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


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


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of 17 pictures to train on and 3 to measure on; not to be changed."""
    root = tmp_path_factory.mktemp("pictures")
    return write_pictures(root, 17, 3, ("bright", "dark", "grey"))


@pytest.fixture
def own_pictures(tmp_path: Path) -> Path:
    """Two classes of 8 pictures to train on and 2 to measure on, for a test to spoil."""
    return write_pictures(tmp_path / "photos", 8, 2, ("bright", "dark"))
