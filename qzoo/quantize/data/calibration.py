"""Calibration images: where they come from, and in which batches they are read."""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ...artifact.seen import files_of
from ...datasets.pairs import image_and_label
from ...errors import ArgumentError, QuantizationWarning, warn
from ...pictures.folders import halves, read_folder
from ...pictures.images import SUFFIXES, transformed
from .images import check_images, image_tensor, needed, stack, stratified, targets_of

#: Images that take less than this are kept where time is short, in bytes.
KEPT_MEMORY = 1 << 28


class Calibration:
    """The images that ranges are calibrated on, read anew for every pass.

    Attributes:
        count: Number of images.
        seed: Seed of the choice; None where all images are taken as they come.
    """

    def __init__(
        self,
        batches: Callable[[int, int], Iterator[Tensor]],
        count: int,
        batch_size: int,
        digest: Callable[[int], str],
        seed: int | None,
        files: Sequence[str] | None = None,
    ) -> None:
        """Takes the images as they were chosen.

        Args:
            batches: Takes two numbers, `first` and `step`, and yields the batch of the first
                number and every `step`-th after it.
            count: Number of images.
            batch_size: Images per batch.
            digest: Takes a number and gives the SHA-256 of which images the first so many are,
                in hexadecimal digits.
            seed: Seed of the choice, or None.
            files: The pictures' files in the order in which they are read; None where they are no
                files.
        """
        self._batches, self.count, self.batch_size = batches, count, batch_size
        self._digest, self.seed, self._files = digest, seed, files
        self._until = self._work_until = self._most = math.inf
        self._kept: list[Tensor] = []

    def stop_after(self, seconds: float, work: float) -> None:
        """Ends passes over the images early; every pass takes one batch at least.

        Later passes take the same batches.

        Args:
            seconds: Time from now on, after which passes end.
            work: Time from now on, after which steps that improve layers one by one should stop.
        """
        now = time.monotonic()
        self._until, self._work_until = now + seconds, now + work

    def work_is_over(self) -> bool:
        """Whether the time for improving layers one by one is over."""
        return time.monotonic() > self._work_until

    @property
    def sha256(self) -> str:
        """Digest of which images these are: of their indices, names, or else values."""
        return self._digest(self.count)

    @property
    def files(self) -> list[str]:
        """The files of the pictures; empty where they are no files."""
        return list((self._files or [])[: self.count])

    def __iter__(self) -> Iterator[Tensor]:
        """Yields batches, float32 [n, 3, H, W], checked.

        Raises:
            ArgumentError: The images are not what an image classifier takes.
        """
        return self.share(0, 1)

    def share(self, first: int, step: int) -> Iterator[Tensor]:
        """Yields every `step`-th batch from batch number `first` on, without reading the others.

        Raises:
            ArgumentError: The images are not what an image classifier takes.
        """
        if step > 1 or (math.isinf(self._until) and math.isinf(self._most)):
            yield from map(check_images, self._batches(first, step))
            return
        yield from self._in_time()

    def _in_time(self) -> Iterator[Tensor]:
        """Yields batches until time is up, and keeps them, so that they are read only once."""
        images = size = 0
        for number, batch in enumerate(chain(self._kept, self._batches(len(self._kept), 1)), 1):
            size += batch.numel() * batch.element_size()
            if number > len(self._kept) and size <= KEPT_MEMORY:
                self._kept.append(check_images(batch))
            yield check_images(batch)
            images += len(batch)
            if time.monotonic() > self._until:
                self._most = min(self._most, number)
            if number >= self._most:
                self.count = images
                return

    def __len__(self) -> int:
        """Returns the number of batches."""
        return -(-self.count // self.batch_size)


def open_calibration(
    data: Any,
    *,
    images: int,
    batch_size: int,
    seed: int,
    transform: Callable[[Any], Tensor] | None,
    stratify: bool = True,
) -> Calibration:
    """Chooses calibration images.

    Args:
        data: A data set of (image, label) pairs or of images; a loader of batches of either, which
            is read in its own order; a tensor [N, 3, H, W] or a list of such batches; or a folder
            of pictures, with or without a folder per class. Of a folder with `train/` and `val/`,
            the first calibrates.
        images: How many to take at most.
        batch_size: Images per forward pass.
        seed: Seed of the choice among a data set's or folder's images, by a generator of its own.
        transform: Makes a tensor of a picture; needed for folders, and for data sets that give
            pictures.
        stratify: Whether every class gets an equal share; else the first images are taken.

    Raises:
        ArgumentError: There are no images, or `data` is none of these.
    """
    if isinstance(data, Calibration):
        return data
    if isinstance(data, (str, os.PathLike)):
        data = _Folder(Path(data), transform)
    if isinstance(data, Tensor):
        data = [data]
    if isinstance(data, (list, tuple)) and data and all(isinstance(x, Tensor) for x in data):
        return _of_tensors(list(data), images, batch_size)
    if isinstance(data, DataLoader):
        return _of_loader(data, images)
    if isinstance(data, Dataset) or (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
        return _of_dataset(data, images, batch_size, seed, transform, stratify)
    raise ArgumentError(
        f"Calibration data should be a data set, a DataLoader, a tensor [N, 3, H, W] or a folder "
        f"of pictures, not {type(data).__name__}."
    )


def nothing() -> Calibration:
    """Returns an empty set of calibration images."""
    return Calibration(lambda *_: iter(()), 0, 1, lambda _: "", None)


def _of_dataset(
    data: Any,
    images: int,
    batch_size: int,
    seed: int,
    transform: Callable[[Any], Tensor] | None,
    stratify: bool,
) -> Calibration:
    total, targets = len(data), targets_of(data)
    chosen = list(range(min(images, total)))
    if stratify:
        chosen = stratified([0] * total if targets is None else targets, images, seed)
    _check_count(len(chosen))

    def batches(first: int = 0, step: int = 1) -> Iterator[Tensor]:
        for start in range(first * batch_size, len(chosen), step * batch_size):
            items = [data[i] for i in chosen[start : start + batch_size]]
            images = [image_and_label(item)[0] for item in items]
            yield stack([image_tensor(x, transform) for x in images])

    def digest(count: int) -> str:
        if isinstance(data, _Folder):
            listed = "\n".join(data.name(i) for i in chosen[:count])
        else:
            listed = ",".join(map(str, chosen[:count]))
        return hashlib.sha256(listed.encode(errors="surrogateescape")).hexdigest()

    files = files_of(data)
    taken = None if files is None else [files[i] for i in chosen]
    return Calibration(batches, len(chosen), batch_size, digest, seed if stratify else None, taken)


def _of_tensors(data: list[Tensor], images: int, batch_size: int) -> Calibration:
    for batch in data:
        check_images(batch)
    if len({tuple(batch.shape[1:]) for batch in data}) == 1:
        data = [torch.cat(data)[:images]] if len(data) > 1 else [data[0][:images]]
        data = list(data[0].split(batch_size))
    count = sum(len(batch) for batch in data)
    _check_count(count)

    def digest(count: int) -> str:
        values = hashlib.sha256()
        for batch in data:
            values.update(batch[:count].float().contiguous().numpy().tobytes())
            count -= min(count, len(batch))
        return values.hexdigest()

    def batches(first: int = 0, step: int = 1) -> Iterator[Tensor]:
        return iter(data[first::step])

    return Calibration(batches, count, batch_size, digest, None)


def _of_loader(loader: DataLoader[Any], images: int) -> Calibration:
    """Keeps a loader's first images, because a second pass over it may give others."""
    kept: list[Tensor] = []
    count = 0
    # Every pass over a loader draws a seed for its workers from the global random state.
    with torch.random.fork_rng(devices=[]):
        for item in loader:
            batch = check_images(image_and_label(item)[0])
            kept.append(batch[: images - count])
            count += len(kept[-1])
            if count >= images:
                break
    if not kept:
        _check_count(0)
    return _of_tensors(kept, images, len(kept[0]))


class _Folder(Dataset[Tensor]):
    """The pictures of a folder; of one with `train/` and `val/`, those of the first."""

    def __init__(self, root: Path, transform: Callable[[Any], Tensor] | None) -> None:
        if not root.is_dir():
            raise ArgumentError(f"There is no folder {root} to take calibration images from.")
        self.root, self.transform = root, needed(transform)
        found = read_folder(halves(root).get("train", root))
        # Pictures beside the folders of the classes belong to none, but show what there is as well.
        self.files = [*found.beside, *found.files]
        if not self.files:
            raise ArgumentError(f"{root} holds no pictures ({', '.join(SUFFIXES)}).")
        self.targets = [*[-1] * len(found.beside), *(found.labels or [0] * len(found.files))]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        return transformed(self.files[index], self.transform)

    def name(self, index: int) -> str:
        """Returns where in the folder a picture lies."""
        return Path(self.files[index]).relative_to(self.root).as_posix()


def _check_count(count: int) -> None:
    if count == 0:
        raise ArgumentError("There are no calibration images: the data set is empty.")
    if count == 1:
        warn(
            "Calibrating on a single image: its ranges will cut other images off. A few hundred, "
            "of every class, are usual.",
            QuantizationWarning,
        )
