"""The data of the reference scripts: named data sets, folders, training transforms."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from torchvision import transforms as T
from torchvision.datasets import ImageFolder

from qzoo.datasets.digits import Digits, digits_transforms
from qzoo.datasets.fractals import (
    FRACTALS_STANDARD,
    Fractals,
    FractalsConfig,
    fractals_transforms,
)
from qzoo.errors import ArgumentError, ImageError
from qzoo.transforms import ImageClassification

#: The data sets that need no download, for --data.
NAMED_DATA = ("digits", "fractals")
#: The fractals that are trained and measured on.
FRACTALS = FRACTALS_STANDARD
#: The names of `train_transforms`, for --augment.
AUGMENTATIONS = ("none", "affine", "turn", "crop")


@dataclasses.dataclass(frozen=True)
class Data:
    """A data set with two splits.

    Attributes:
        name: "digits", "fractals", or the folder's name.
        held_out: What figures of the test split are called in metadata.
        split: Makes the "train" or "test" split with a transform; an item is a pair of a
            transformed RGB picture and its label, and `targets` lists the labels.
        classes: Class names in the order of the labels.
        size: Side of the model's input in pixels, where the user gave none.
        resize: Side to which evaluation scales before it crops, where the user gave none.
        augment: Augmentation, where the user gave none.
        make_preset: Makes the evaluation transforms of a crop and a resize size.
    """

    name: str
    held_out: str
    split: Callable[[str, Callable[[Any], Any] | None], Any]
    classes: list[str]
    size: int
    resize: int
    augment: str
    make_preset: Callable[[int, int], ImageClassification]

    def preset(self, crop: int | None = None, resize: int | None = None) -> ImageClassification:
        """Returns the evaluation transforms.

        Raises:
            ArgumentError: The crop is larger than the picture that it is cut from.
        """
        crop = crop or self.size
        resize = resize or max(crop, round(crop * self.resize / self.size))
        if crop > resize:
            raise ArgumentError(
                f"--val-crop-size {crop} is larger than --val-resize-size {resize}: the rest would "
                "be black padding."
            )
        return self.make_preset(crop, resize)


def open_data(name: str | None, path: str | None) -> Data:
    """Opens a named data set, or a folder with `train/CLASS/*` and `val/CLASS/*`.

    Raises:
        ArgumentError: Neither or both are given, or the folder does not hold such pictures.
        MissingDependencyError: The named data set needs a package that is not installed.
    """
    if (name is None) == (path is None):
        raise ArgumentError(f"Give either --data {'|'.join(NAMED_DATA)} or --data-path FOLDER.")
    if name == "fractals":
        return _fractals(FRACTALS)
    if path is None:
        classes, held_out = list(Digits.classes), "digits (held-out 25 %)"
        return Data("digits", held_out, Digits, classes, 64, 64, "affine", digits_transforms)
    root = Path(path)
    folders = {"train": root / "train", "test": root / "val"}
    for folder in folders.values():
        if not folder.is_dir():
            raise ArgumentError(
                f"{root} should have the folders train and val with one folder per class in each, "
                f"but {folder.name} is missing."
            )
    names = {s: sorted(d.name for d in f.iterdir() if d.is_dir()) for s, f in folders.items()}
    if names["train"] != names["test"]:
        odd = sorted(set(names["train"]) ^ set(names["test"]))
        raise ArgumentError(f"{root}: train and val differ in the classes {', '.join(odd)[:200]}.")
    if len(names["train"]) < 2:
        raise ArgumentError(f"{root}/train should have folders of at least two classes.")

    def split(which: str, transform: Callable[[Any], Any] | None = None) -> Any:
        return ImageFolder(str(folders[which]), transform, loader=_picture)

    def preset(crop: int, resize: int) -> ImageClassification:
        return ImageClassification(crop_size=crop, resize_size=resize)

    return Data(root.name, f"{root.name} (val)", split, names["train"], 224, 256, "crop", preset)


def _fractals(config: FractalsConfig) -> Data:
    def split(which: str, transform: Callable[[Any], Any] | None = None) -> Any:
        count = config.train_images if which == "train" else config.test_images
        return Fractals(
            which,
            transform,
            classes=config.classes,
            images_per_class=count,
            size=config.size,
            seed=config.seed,
        )

    return Data(
        "fractals",
        "fractals (test)",
        split,
        [f"{label:03d}" for label in range(config.classes)],
        config.size,
        config.size,
        "turn",
        fractals_transforms,
    )


def _picture(path: str) -> Image.Image:
    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ImageError(
            f"{path} cannot be read as a picture ({error}); repair or remove it."
        ) from None


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
    plain = [T.Resize(resize, bilinear), T.CenterCrop(size)]
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
