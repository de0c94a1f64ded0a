"""Data by name or folder, as the command line and the reference scripts take it."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS, has_file_allowed_extension

from ..errors import ArgumentError, did_you_mean
from ..images import load_image
from ..transforms import ImageClassification
from .digits import Digits, digits_transforms
from .fractals import FRACTALS_STANDARD, Fractals, FractalsConfig, fractals_transforms

#: The data sets that need no download.
NAMED_DATA = ("digits", "fractals")
#: How ImageNet's folders are called.
_WORDNET = re.compile(r"n\d{8}")

Transform = Callable[[Any], Any]


@dataclasses.dataclass(frozen=True)
class Data:
    """A data set of pictures, with or without a split that is held out.

    Attributes:
        name: "digits", "fractals", or the folder's name.
        held_out: What figures of its test split are called in metadata.
        split: Makes a split by its name, with a transform; an item is a pair of a transformed RGB
            picture and its label, and `targets` lists the labels. Without classes, an item is a
            picture alone.
        classes: Class names in the order of the labels; empty where pictures have no labels.
        size: Side of the model's input in pixels, where the user gave none.
        resize: Side to which evaluation scales before it crops, where the user gave none.
        augment: Augmentation, where the user gave none.
        make_preset: Makes the evaluation transforms of a crop and a resize size.
        splits: "train" and "test", or "all" where nothing is held out.
    """

    name: str
    held_out: str
    split: Callable[[str, Transform | None], Any]
    classes: list[str]
    size: int
    resize: int
    augment: str
    make_preset: Callable[[int, int], ImageClassification]
    splits: tuple[str, ...] = ("train", "test")

    @property
    def workers(self) -> int:
        """How many processes should read pictures: none of what is in memory.

        To decode files is slower than to classify what they show.
        """
        return 0 if self.name in NAMED_DATA else min(4, os.cpu_count() or 1)

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

    def labels_of(self, names: Sequence[str] | None, count: int) -> list[int]:
        """Returns which of a model's classes each label of the data stands for.

        Args:
            names: The model's class names, where it knows them.
            count: How many classes the model tells apart.

        Raises:
            ArgumentError: The data has no labels, or classes that the model does not know.
        """
        if not self.classes:
            raise ArgumentError(
                f"{self.name} holds pictures without labels: accuracy needs a folder per class."
            )
        if names is not None and set(self.classes) <= set(names):
            return [list(names).index(name) for name in self.classes]
        # ImageNet's folders bear WordNet numbers, in the order of the logits.
        numbered = all(_WORDNET.fullmatch(name) for name in self.classes)
        if len(self.classes) == count and (names is None or numbered):
            return list(range(count))
        shown = f" ({', '.join(names)[:60]}, ...)" if names else ""
        raise ArgumentError(
            f"The model tells {count} classes apart{shown}, but {self.name} has "
            f"{len(self.classes)} ({', '.join(self.classes)[:60]}, ...): they do not belong "
            "together."
        )


def open_data(
    source: str | os.PathLike[str], *, fractals: FractalsConfig = FRACTALS_STANDARD
) -> Data:
    """Opens data by name or folder.

    Args:
        source: "digits", "fractals", or a folder: with `train/CLASS/*` and `val/CLASS/*`, with
            `CLASS/*`, or with pictures. A name comes before a folder of that name.
        fractals: Which fractals.

    Raises:
        ArgumentError: There is no such data set or folder, or it holds no pictures.
        MissingDependencyError: The named data set needs a package that is not installed.
    """
    name = os.fspath(source)
    if name == "digits":
        classes, held_out = list(Digits.classes), "digits (held-out 25 %)"
        return Data("digits", held_out, Digits, classes, 64, 64, "affine", digits_transforms)
    if name == "fractals":
        return _fractals(fractals)
    if not Path(name).is_dir():
        raise ArgumentError(
            f"There is no data set or folder {name!r}: name one of {', '.join(NAMED_DATA)}, or a "
            "folder of pictures." + did_you_mean(name, NAMED_DATA)
        )
    return open_folder(Path(name))


def open_folder(root: Path) -> Data:
    """Opens a folder of pictures: with `train/CLASS/*` and `val/CLASS/*`, `CLASS/*`, or none.

    Raises:
        ArgumentError: It holds no pictures, or only a half of what it should.
    """
    if any((root / half).is_dir() for half in ("train", "val")):
        return _two_folders(root)
    return _one_folder(root)


def _fractals(config: FractalsConfig) -> Data:
    def split(which: str, transform: Transform | None = None) -> Any:
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


def _two_folders(root: Path) -> Data:
    folders = {"train": root / "train", "test": root / "val"}
    for folder in folders.values():
        if not folder.is_dir():
            raise ArgumentError(
                f"{root} should have the folders train and val with one folder per class in each, "
                f"but {folder.name} is missing."
            )
    names = {split: _class_names(folder) for split, folder in folders.items()}
    if names["train"] != names["test"]:
        odd = sorted(set(names["train"]) ^ set(names["test"]))
        raise ArgumentError(f"{root}: train and val differ in the classes {', '.join(odd)[:200]}.")
    if len(names["train"]) < 2:
        raise ArgumentError(f"{root}/train should have folders of at least two classes.")
    for split_name, folder in folders.items():
        _check_filled(folder, names[split_name])

    def split(which: str, transform: Transform | None = None) -> Any:
        return _image_folder(folders[which], transform)

    return _of_folder(root, f"{root.name} (val)", split, names["train"], ("train", "test"))


def _one_folder(root: Path) -> Data:
    names = _class_names(root)
    if not names:
        files = sorted(p for p in root.iterdir() if p.suffix.lower() in IMG_EXTENSIONS)
        if not files:
            raise ArgumentError(
                f"{root} holds neither pictures nor a folder per class ({', '.join(IMG_EXTENSIONS)}"
                " are read)."
            )
    _check_filled(root, names)

    def split(which: str, transform: Transform | None = None) -> Any:
        return _image_folder(root, transform) if names else _Pictures(files, transform)

    return _of_folder(root, root.resolve().name, split, names, ("all",))


def _of_folder(
    root: Path,
    held_out: str,
    split: Callable[..., Any],
    classes: list[str],
    splits: tuple[str, ...],
) -> Data:
    def preset(crop: int, resize: int) -> ImageClassification:
        return ImageClassification(crop_size=crop, resize_size=resize)

    name = root.resolve().name
    return Data(name, held_out, split, classes, 224, 256, "crop", preset, splits)


def _class_names(folder: Path) -> list[str]:
    """Returns the names of a folder's classes; hidden folders (.ipynb_checkpoints) are none."""
    return sorted(d.name for d in folder.iterdir() if d.is_dir() and not d.name.startswith("."))


def _check_filled(folder: Path, names: Sequence[str]) -> None:
    """Checks that there is a picture in each class, looking no further than the first."""
    for name in names:
        below = os.walk(folder / name, followlinks=True)
        if not any(has_file_allowed_extension(f, IMG_EXTENSIONS) for *_, fs in below for f in fs):
            raise ArgumentError(
                f"The class folder {folder / name} holds no pictures ({', '.join(IMG_EXTENSIONS)} "
                "are read): put some in, or remove it."
            )


class _ImageFolder(ImageFolder):
    """torchvision's folder of classes, without hidden folders, which would shift the labels."""

    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        names = _class_names(Path(directory))
        return names, {name: label for label, name in enumerate(names)}


def _image_folder(folder: Path, transform: Transform | None) -> ImageFolder:
    try:
        return _ImageFolder(str(folder), transform, loader=load_image)
    except FileNotFoundError as error:
        raise ArgumentError(f"{folder}: {str(error).splitlines()[0]}") from None


class _Pictures(Dataset[Any]):
    """Pictures without labels."""

    def __init__(self, files: Sequence[Path], transform: Transform | None) -> None:
        self.files, self.transform = files, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Any:
        picture = load_image(self.files[index])
        return self.transform(picture) if self.transform else picture


class Relabelled(Dataset[tuple[Any, int]]):
    """A data set whose labels are a model's.

    Args:
        data: Pairs of a picture and a label, with `targets`.
        labels: Which of the model's classes each label stands for.
    """

    def __init__(self, data: Any, labels: Sequence[int]) -> None:
        self.data, self.labels = data, list(labels)
        self.targets = [self.labels[int(target)] for target in data.targets]

    def __len__(self) -> int:
        """Returns the number of pictures."""
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """Returns a picture and its label."""
        picture, label = self.data[index]
        return picture, self.labels[int(label)]
