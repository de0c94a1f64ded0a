"""Data by name or folder, as the command line and the reference scripts take it."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from .._core.threads import usable_cores
from ..artifact.format import ModelInfo
from ..artifact.seen import files_of
from ..errors import ArgumentError, did_you_mean, listed
from ..pictures.classes import class_names
from ..pictures.folders import HALVES, PictureFolder, halves, places_of, read_folder, unknown_names
from ..pictures.images import SUFFIXES, load_image, transformed
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
        return 0 if self.name in NAMED_DATA else min(4, usable_cores())

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

        Classes go by their names, whatever their order and also where some are absent; where the
        model knows no names, or the data are ImageNet's folders, by their order.

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
        if names is not None and (places := places_of(self.classes, names)) is not None:
            return places
        # ImageNet's folders bear WordNet numbers, in the order of the logits.
        numbered = all(_WORDNET.fullmatch(name) for name in self.classes)
        if len(self.classes) == count and (names is None or numbered):
            return list(range(count))
        shown = f" ({listed(names)})" if names else ""
        unknown = unknown_names(self.classes, names) if names else ""
        raise ArgumentError(
            f"The model tells {count} classes apart{shown}, but {self.name} has "
            f"{len(self.classes)} ({listed(self.classes)}): they do not belong together.{unknown}"
        )

    def labels_for(self, model: ModelInfo) -> list[int]:
        """Returns which of a model's classes each label of the data stands for.

        Args:
            model: What is known of the model.

        Raises:
            ArgumentError: The data has no labels, or classes that the model does not know.
        """
        count = model.builder_kwargs.get("num_classes", 1000)
        return self.labels_of(class_names(model.classes), count)


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

    See `qzoo.pictures.folders.read_folder` for which files count.

    Raises:
        ArgumentError: It holds no pictures, or only a half of what it should.
    """
    found = halves(root)
    return _two_folders(root, found) if found else _one_folder(root)


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


def _two_folders(root: Path, folders: dict[str, Path]) -> Data:
    for half, name in HALVES.items():
        if half not in folders:
            raise ArgumentError(
                f"{root} should have the folders train and val with one folder per class in each, "
                f"but {name} is missing."
            )
    parts = {half: read_folder(folder) for half, folder in folders.items()}
    classes = parts["train"].classes
    if classes != parts["test"].classes:
        odd = sorted(set(classes) ^ set(parts["test"].classes))
        raise ArgumentError(f"{root}: train and val differ in the classes {', '.join(odd)[:200]}.")
    if len(classes) < 2:
        raise ArgumentError(f"{root}/train should have folders of at least two classes.")
    return _of_folders(root, f"{root.name} (val)", parts)


def _one_folder(root: Path) -> Data:
    found = read_folder(root)
    if not found.classes and not found.files:
        raise ArgumentError(
            f"{root} holds neither pictures nor a folder per class ({', '.join(SUFFIXES)} are "
            "read)."
        )
    return _of_folders(root, root.resolve().name, {"all": found})


def _of_folders(root: Path, held_out: str, parts: dict[str, PictureFolder]) -> Data:
    for part in parts.values():
        part.check_classes()

    def preset(crop: int, resize: int) -> ImageClassification:
        return ImageClassification(crop_size=crop, resize_size=resize)

    def split(which: str, transform: Transform | None = None) -> Any:
        return Pictures(parts[which], transform)

    name, classes = root.resolve().name, next(iter(parts.values())).classes
    return Data(name, held_out, split, classes, 224, 256, "crop", preset, tuple(parts))


class Pictures(Dataset[Any]):
    """Pictures of a folder: pairs of a picture and its label, or pictures where there are none.

    Attributes:
        classes: Class names in the order of the labels; empty where pictures have no labels.
        files: Paths of the pictures.
        targets: Label of each item; None where pictures have no labels.
    """

    def __init__(self, folder: PictureFolder, transform: Transform | None = None) -> None:
        """Takes the pictures that were found.

        Args:
            folder: What `read_folder` found.
            transform: Applied to each RGB picture; None gives the pictures themselves.
        """
        self.files, self.classes, self.transform = folder.files, folder.classes, transform
        self.targets = folder.labels if folder.classes else None

    @property
    def samples(self) -> list[tuple[str, int]]:
        """Pairs of a path and a label, as torchvision's ImageFolder names them."""
        return list(zip(self.files, self.targets or [], strict=False))

    def __len__(self) -> int:
        """Returns the number of pictures."""
        return len(self.files)

    def __getitem__(self, index: int) -> Any:
        """Returns a picture, transformed, and its label, where there is one."""
        path, transform = self.files[index], self.transform
        picture: Any = load_image(path) if transform is None else transformed(path, transform)
        return picture if self.targets is None else (picture, self.targets[index])


class Relabelled(Dataset[tuple[Any, int]]):
    """A data set whose labels are a model's.

    Args:
        data: Pairs of a picture and a label, with `targets`.
        labels: Which of the model's classes each label stands for.
    """

    def __init__(self, data: Any, labels: Sequence[int]) -> None:
        self.data, self.labels = data, list(labels)
        self.targets = [self.labels[int(target)] for target in data.targets]

    @property
    def files(self) -> list[str] | None:
        """Paths of the pictures; None where they are no files."""
        return files_of(self.data)

    def __len__(self) -> int:
        """Returns the number of pictures."""
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """Returns a picture and its label."""
        picture, label = self.data[index]
        return picture, self.labels[int(label)]
