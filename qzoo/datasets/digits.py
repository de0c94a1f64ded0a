"""Handwritten digits that come with scikit-learn, so that training and tests need no download.

The 1,797 scans are the test part of "Optical Recognition of Handwritten Digits" by E. Alpaydin and
C. Kaynak (UCI Machine Learning Repository, 1998, https://doi.org/10.24432/C50P49), licensed under
CC BY 4.0; scikit-learn (BSD-3-Clause) redistributes them as `sklearn.datasets.load_digits`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from ..errors import ArgumentError, MissingDependencyError, did_you_mean
from ..transforms import ImageClassification

SPLITS = ("train", "test")
#: One image in this many, class by class, is held out as the test split.
HELD_OUT_EVERY = 4
#: The largest grey value of the scans: pixels count the ink dots of a 4x4 block.
_FULL_INK = 16


class Digits(Dataset[tuple[Any, int]]):
    """The ten handwritten digits: 8x8 scans, white ink on black, as RGB pictures.

    Within each class, in scikit-learn's order, every fourth image is held out: the test split has
    445 images, the train split the other 1,352. The rule draws no random numbers, so the split is
    the same with every library version and leaves the process's random state alone. Both splits
    hold digits of the same writers, so accuracies tell about new digits, not about new writers.

    Attributes:
        classes: "0" to "9".
        images: Grey values, uint8 [N, 8, 8], 0 for paper and 255 for full ink.
        targets: Label of each item.
        indices: Where each item stands in scikit-learn's data set, from 0 to 1796.
    """

    classes = tuple(str(d) for d in range(10))

    def __init__(
        self, split: str = "train", transform: Callable[[Image.Image], Any] | None = None
    ) -> None:
        """Loads one split.

        Args:
            split: "train" or "test".
            transform: Applied to each RGB picture; None gives the 8x8 PIL pictures themselves.

        Raises:
            ArgumentError: An unknown split.
            MissingDependencyError: scikit-learn is not installed.
        """
        if split not in SPLITS:
            raise ArgumentError(
                f"Unknown split {split!r} of the digits: choose one of {', '.join(SPLITS)}."
                + did_you_mean(str(split), SPLITS)
            )
        images, targets = _scans()
        held_out = np.zeros(len(targets), dtype=bool)
        for label in range(10):
            held_out[np.flatnonzero(targets == label)[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY]] = True
        chosen = np.flatnonzero(held_out == (split == "test"))
        self.split = split
        self.transform = transform
        self.images = images[chosen]
        self.targets: list[int] = targets[chosen].tolist()
        self.indices: list[int] = chosen.tolist()

    def __len__(self) -> int:
        """Returns the number of images of the split."""
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """Returns the picture at `index`, transformed, and its label."""
        picture = Image.fromarray(self.images[index]).convert("RGB")
        return self.transform(picture) if self.transform else picture, self.targets[index]

    def __repr__(self) -> str:
        """Names the split and its size."""
        return f"Digits(split={self.split!r}, {len(self)} images)"


def digits_transforms(size: int = 64, resize_size: int | None = None) -> ImageClassification:
    """Returns the evaluation preset of the digits models.

    Args:
        size: Side of the square input in pixels.
        resize_size: Side to which the 8x8 scans are enlarged before the centre is cut out; None
            takes `size`, so that nothing is cut off.

    Returns:
        A preset that gives float32 [3, size, size] in [-1, 1].
    """
    half = (0.5, 0.5, 0.5)
    return ImageClassification(crop_size=size, resize_size=resize_size or size, mean=half, std=half)


@functools.cache
def _scans() -> tuple[np.ndarray, np.ndarray]:
    """Returns all images, uint8 [1797, 8, 8], and their labels, int64 [1797]."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise MissingDependencyError(
            'The digits data set comes with scikit-learn: pip install "qzoo[digits]".'
        ) from None
    data = load_digits()
    return np.rint(data.images * (255 / _FULL_INK)).astype(np.uint8), data.target.astype(np.int64)
