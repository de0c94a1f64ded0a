"""Fractals: a data set of any size and difficulty that needs no download.

The construction is FractalDB's (qzoo/datasets/ifs.py). Every class, split and chunk of images has
a random stream of its own, so that neither the number of workers nor that of images or classes
changes an image: a larger data set begins with the smaller one.
"""

from __future__ import annotations

import hashlib
import io
import math
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
from PIL import Image
from torch.utils.data import Dataset
from tqdm import tqdm

from .._core.keywords import chosen, takes
from .._core.threads import usable_cores
from ..errors import ArgumentError, did_you_mean
from ..hub import disk
from ..hub.cache import cache_dir
from ..safe_text import terminal_text
from ..transforms import ImageClassification
from .ifs import Bytes, System, Variation, draw, sample_system

if TYPE_CHECKING:
    from typing_extensions import Unpack

SPLITS = ("train", "test")
#: Part of the cache's file names; raised whenever the same arguments would give other images.
VERSION = 1
#: Images of one class that are drawn at a time, from one random stream.
CHUNK = 50
_SYSTEM, _TRAIN, _TEST = range(3)


@dataclass(frozen=True)
class FractalsConfig:
    """What makes one data set of fractals.

    Attributes:
        classes: How many.
        train_images: Training images per class.
        test_images: Test images per class.
        size: Side of the square pictures in pixels.
        seed: Seed of everything.
    """

    classes: int = 50
    train_images: int = 400
    test_images: int = 200
    size: int = 40
    seed: int = 0


#: The yardstick: 20,000 training and 10,000 test images of 50 classes. All figures on "fractals"
#: are measured on it.
FRACTALS_STANDARD = FractalsConfig()


@dataclass(frozen=True, kw_only=True)
class FractalsOptions:
    """What can be chosen about a split of the fractals.

    Attributes:
        classes: How many classes, 2 to 10,000.
        images_per_class: Images of each class; None takes the standard number of the split (400 for
            training, 200 for testing).
        size: Side of the pictures in pixels, 8 to 512.
        seed: Seed of systems and images, not negative.
        workers: Threads that draw; None takes as many as there are processors.
        progress: Whether to show a progress bar on stderr while drawing.

    Raises:
        ArgumentError: A number out of its range.
    """

    classes: int = FRACTALS_STANDARD.classes
    images_per_class: int | None = None
    size: int = FRACTALS_STANDARD.size
    seed: int = FRACTALS_STANDARD.seed
    workers: int | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        _check("classes", self.classes, 2, 10_000)
        if self.images_per_class is not None:
            _check("images_per_class", self.images_per_class, 1, 1_000_000)
        _check("size", self.size, 8, 512)
        _check("seed", self.seed, 0, 2**63)
        if self.workers is not None:
            _check("workers", self.workers, 1, 1024)


class FractalsKeywords(TypedDict, total=False):
    """`FractalsOptions` as keyword arguments, for type checkers and editors."""

    classes: int
    images_per_class: int | None
    size: int
    seed: int
    workers: int | None
    progress: bool


class Fractals(Dataset[tuple[Any, int]]):
    """Fractals drawn from iterated function systems, as RGB pictures.

    A class is a random system of affine maps; its images are drawn from slightly changed systems,
    mirrored, turned, moved, coloured, partly covered and noisy. The train and the test split have
    the same classes and share no random number, and so no image.

    The images are drawn once and kept in `qzoo.hub.cache_dir()/datasets`.

    Attributes:
        classes: "000", "001" and so on.
        images: uint8 [N, size, size, 3], class by class.
        targets: Label of each item.
    """

    @takes(FractalsOptions)
    def __init__(
        self,
        split: str = "train",
        transform: Callable[[Image.Image], Any] | None = None,
        *,
        options: FractalsOptions | None = None,
        **changes: Unpack[FractalsKeywords],
    ) -> None:
        """Draws one split, or reads it from the cache.

        Args:
            split: "train" or "test".
            transform: Applied to each RGB picture; None gives the PIL pictures themselves.
            options: What to choose otherwise than by default; None takes the defaults.
            changes: Single options instead, or other than in `options`: see `FractalsOptions`.

        Raises:
            ArgumentError: An unknown split, or a number out of its range.
        """
        if split not in SPLITS:
            raise ArgumentError(
                f"Unknown split {split!r} of the fractals: choose one of {', '.join(SPLITS)}."
                + did_you_mean(str(split), SPLITS)
            )
        own = chosen(FractalsOptions, options, changes)
        standard = FRACTALS_STANDARD
        count = own.images_per_class or (
            standard.train_images if split == "train" else standard.test_images
        )
        self.classes = tuple(f"{label:03d}" for label in range(own.classes))
        self.split, self.transform = split, transform
        self.size, self.seed = own.size, own.seed
        self.targets: list[int] = np.repeat(np.arange(own.classes), count).tolist()
        name = f"fractals{VERSION}-{split}-{own.classes}x{count}-{own.size}px-{own.seed}.npz"
        path = cache_dir() / "datasets" / name
        images = _read(path, (own.classes * count, own.size, own.size, 3))
        if images is None:
            images = _draw(split, count, own)
            _keep(path, images)
        self.images = images

    def __len__(self) -> int:
        """Returns the number of images of the split."""
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """Returns the picture at `index`, transformed, and its label."""
        picture = Image.fromarray(self.images[index])
        return self.transform(picture) if self.transform else picture, self.targets[index]

    def __repr__(self) -> str:
        """Names the split, its size and its seed."""
        return (
            f"Fractals(split={self.split!r}, {len(self)} images of {len(self.classes)} classes, "
            f"{self.size} px, seed {self.seed})"
        )


def fractals_transforms(
    size: int = FRACTALS_STANDARD.size, resize_size: int | None = None
) -> ImageClassification:
    """Returns the evaluation preset of models trained on fractals.

    Args:
        size: Side of the square input in pixels; that of the pictures leaves them as they are.
        resize_size: Side to which pictures are scaled before the centre is cut out; None takes
            `size`, so that nothing is cut off.

    Returns:
        A preset that gives float32 [3, size, size] in [-1, 1].
    """
    half = (0.5, 0.5, 0.5)
    return ImageClassification(crop_size=size, resize_size=resize_size or size, mean=half, std=half)


def fractal_system(label: int, seed: int = FRACTALS_STANDARD.seed) -> System:
    """Returns the system of affine maps behind a class."""
    return sample_system(_stream(seed, label, _SYSTEM))


def _check(name: str, value: Any, least: int, most: int) -> None:
    if type(value) is not int or not least <= value <= most:
        raise ArgumentError(
            f"{name} of the fractals should be an integer from {least} to {most}, not {value!r}."
        )


def _stream(seed: int, *key: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=key)))


def _draw(split: str, count: int, options: FractalsOptions) -> Bytes:
    """Draws `count` images of each class, uint8 [N, size, size, 3]."""
    classes, size = options.classes, options.size
    images = np.empty((classes, count, size, size, 3), dtype=np.uint8)
    purpose = _TRAIN if split == "train" else _TEST
    how = Variation()

    def fill(label: int) -> None:
        system = fractal_system(label, options.seed)
        for start in range(0, count, CHUNK):
            rng = _stream(options.seed, label, purpose, start // CHUNK)
            # Always a whole chunk, so that fewer images are the first of more.
            images[label, start : start + CHUNK] = draw(system, CHUNK, size, rng, how)[
                : count - start
            ]

    title, quiet = f"draw fractals ({split})", not options.progress
    with ThreadPoolExecutor(options.workers or usable_cores()) as pool:
        done = pool.map(fill, range(classes))
        for _ in tqdm(done, title, classes, unit="class", disable=quiet):
            pass
    return images.reshape(-1, size, size, 3)


def _read(path: Path, shape: tuple[int, ...]) -> Bytes | None:
    """Returns the images of a file in the cache; None, with a word, where it is damaged."""
    try:
        if disk.plain(path) is None:
            return None
        # NumPy would leave a damaged file that it opened itself open.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            # What would be unpacked is bounded before it is.
            if sum(member.file_size for member in file.zip.infolist()) > math.prod(shape) + 4096:
                raise ValueError("it holds more than the images")
            images, digest = file["images"], str(file["sha256"])
        if images.shape == shape and images.dtype == np.uint8 and digest == _sha256(images):
            return images
    except Exception:  # damaged zip files fail in many ways, all with one remedy
        pass
    _tell(f"{path} is damaged; drawing the fractals anew")
    return None


def _keep(path: Path, images: Bytes) -> None:
    content = io.BytesIO()
    np.savez(content, images=images, sha256=np.array(_sha256(images)))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)  # leaves a file of the user's in its way
        disk.make_folder(path.parent, cache_dir())
        disk.write_file(path, content.getvalue())
    except OSError as error:
        _tell(f"the fractals are not kept in the cache: {error}")


def _tell(text: str) -> None:
    print(f"qzoo: {terminal_text(text, sys.stderr)}", file=sys.stderr)


def _sha256(images: Bytes) -> str:
    return hashlib.sha256(np.ascontiguousarray(images).data).hexdigest()
