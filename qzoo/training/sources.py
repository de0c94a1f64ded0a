"""The data of the reference scripts: what qzoo.datasets.sources opens, and training transforms."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from torchvision import transforms as T

from ..datasets import sources
from ..datasets.fractals import FRACTALS_STANDARD
from ..datasets.holdout import HELD_OUT, hold_out
from ..datasets.sources import NAMED_DATA, Data
from ..errors import ArgumentError
from ..transforms import BoundedResize, ImageClassification

__all__ = [
    "AUGMENTATIONS",
    "FRACTALS",
    "HELD_OUT",
    "NAMED_DATA",
    "Data",
    "open_data",
    "train_transforms",
]

#: The fractals that are trained and measured on.
FRACTALS = FRACTALS_STANDARD
#: The names of `train_transforms`, for --augment.
AUGMENTATIONS = ("none", "affine", "turn", "crop")


def open_data(name: str | None, path: str | None) -> Data:
    """Opens a named data set, or a folder with `train/CLASS/*` and `val/CLASS/*` or `CLASS/*`.

    Of a folder without these halves, a fifth of each class is held out: the same pictures for
    every script and seed, so that none measures on what another trained on.

    Raises:
        ArgumentError: Neither or both are given, or the folder does not hold such pictures.
        MissingDependencyError: The named data set needs a package that is not installed.
    """
    if (name is None) == (path is None):
        raise ArgumentError(f"Give either --data {'|'.join(NAMED_DATA)} or --data-path FOLDER.")
    if path is None:
        return sources.open_data(str(name), fractals=FRACTALS)
    data = sources.open_data(Path(path))
    return hold_out(data, HELD_OUT) if data.splits == ("all",) else data


def _transposed(picture: Image.Image) -> Image.Image:
    return picture.transpose(Image.Transpose.TRANSPOSE)


_TRANSPOSE = T.RandomApply([T.Lambda(_transposed)])


def train_transforms(
    augment: str,
    size: int,
    preset: ImageClassification,
    *,
    auto_augment: str | None = None,
    random_erase: float = 0.0,
) -> Callable[[Any], Any]:
    """Returns training transforms that end like the evaluation preset.

    Args:
        augment: "none", "affine" (small turns, shifts and scalings: for pictures where left and
            right matter, such as digits), "turn" (mirrored and turned by right angles) or "crop"
            (torchvision's random crops and mirroring).
        size: Side of the model's input in pixels.
        preset: The evaluation transforms.
        auto_augment: What else to do to pictures: "imagenet" (AutoAugment), "ra" (RandAugment),
            "ta_wide" (TrivialAugment) or "augmix"; None for nothing.
        random_erase: Probability to blank a rectangle.
    """
    bilinear = T.InterpolationMode.BILINEAR
    resize = round(preset.resize_size[0] * size / preset.crop_size[0])
    plain = [BoundedResize(resize, bilinear), T.CenterCrop(size)]
    augmentation = {
        "none": plain,
        "affine": [*plain, T.RandomAffine(10, (0.1, 0.1), (0.9, 1.1), interpolation=bilinear)],
        "turn": [*plain, T.RandomHorizontalFlip(), T.RandomVerticalFlip(), _TRANSPOSE],
        "crop": [T.RandomResizedCrop(size, interpolation=bilinear), T.RandomHorizontalFlip()],
    }[augment]
    more = []
    if auto_augment is not None:
        more = [
            {
                "imagenet": lambda: T.AutoAugment(interpolation=bilinear),
                "ra": lambda: T.RandAugment(interpolation=bilinear),
                "ta_wide": lambda: T.TrivialAugmentWide(interpolation=bilinear),
                "augmix": lambda: T.AugMix(interpolation=bilinear),
            }[auto_augment]()
        ]
    erase = [T.RandomErasing(random_erase)] if random_erase else []
    normalize = T.Normalize(preset.mean, preset.std)
    return T.Compose([*augmentation, *more, T.ToTensor(), normalize, *erase])
