"""Images to measure on, with labels where there are some, read anew for every pass."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from ...artifact.format import ModelInfo
from ...datasets.pairs import batch_pair, image_and_label
from ...datasets.sources import Relabelled, open_folder
from ...errors import ArgumentError
from .images import check_images, image_tensor, needed, stratified, targets_of

Batch = tuple[Tensor, Tensor | None]
#: Images that take less than this are read once and kept, in bytes.
KEPT_MEMORY = 1 << 30


class LabelledImages:
    """Images and, where they are known, their labels.

    Attributes:
        labelled: Whether there are labels.
    """

    def __init__(self, batches: Callable[[], Iterator[Batch]], labelled: bool) -> None:
        self._batches, self.labelled = batches, labelled
        self._kept: list[Batch] | None = None
        self._until = self._most = math.inf

    def stop_after(self, seconds: float) -> None:
        """Ends passes over the images after this time; each takes one batch at least.

        Later passes take the same batches.
        """
        self._until = time.monotonic() + seconds

    def __iter__(self) -> Iterator[Batch]:
        """Yields images, float32 [n, 3, H, W], checked, and labels, int64 [n] or None.

        Raises:
            ArgumentError: The images are not what an image classifier takes.
        """
        if self._kept is not None:
            yield from self._kept
            return
        kept: list[Batch] | None = []
        size = 0
        for number, (images, labels) in enumerate(self._batches(), 1):
            batch = (check_images(images), labels)
            size += images.numel() * images.element_size()
            if kept is not None:
                kept.append(batch)
                kept = kept if size <= KEPT_MEMORY else None
            yield batch
            if time.monotonic() > self._until:
                self._most = min(self._most, number)
            if number >= self._most:
                break
        if not size:
            raise ArgumentError("There are no images to measure on: the data set is empty.")
        self._kept = kept


def open_labelled(
    data: Any,
    *,
    images: int | None = None,
    batch_size: int = 32,
    seed: int = 0,
    transform: Callable[[Any], Tensor] | None = None,
    model: ModelInfo | None = None,
    mixed: bool = False,
) -> LabelledImages:
    """Opens images to measure on.

    Args:
        data: A data set of (image, label) pairs or of images; a loader of batches of either; a
            tensor [N, 3, H, W], a list of such batches, or a pair of a tensor and its labels
            [N]; or a folder of pictures, with labels where they lie in a folder per class. Of a
            folder with `train/` and `val/`, the second counts.
        images: How many to take at most; None takes all. Of a data set or folder, every class has
            its share; of a loader or tensor, the first ones are taken.
        batch_size: Images per batch, where `data` does not come in batches.
        seed: Seed of the choice.
        transform: Makes a tensor of a picture; needed for folders, and for data sets that give
            pictures.
        model: What is known of the model to measure: the labels of a folder are the places of its
            classes among the model's, by their names. None takes their alphabetical order.
        mixed: Whether the images of a data set or folder come in an order that alternates classes,
            so that the first ones stand for all.

    Raises:
        ArgumentError: There are no images, `data` is none of these, or a folder has classes that
            the model does not know.
    """
    if isinstance(data, LabelledImages):
        return data
    if isinstance(data, (str, os.PathLike)):
        data, transform = _of_folder(Path(data), transform, model), None
    if isinstance(data, Tensor):
        return _of_tensors([data], None, images, batch_size)
    if isinstance(data, (tuple, list)) and data and all(isinstance(x, Tensor) for x in data):
        if len(data) == 2 and data[0].dim() == 4 and data[1].dim() == 1:
            return _of_tensors([data[0]], data[1], images, batch_size)
        return _of_tensors(list(data), None, images, batch_size)
    if isinstance(data, DataLoader):
        return _of_loader(data, images)
    if isinstance(data, Dataset) or (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
        return _of_dataset(data, images, batch_size, seed, transform, mixed)
    raise ArgumentError(
        "Images to measure on should be a data set, a DataLoader, a tensor [N, 3, H, W], a pair "
        f"(images, labels) or a folder of pictures, not {type(data).__name__}."
    )


def _of_folder(
    root: Path, transform: Callable[[Any], Tensor] | None, model: ModelInfo | None
) -> Dataset[Any]:
    """Returns the pictures of a folder, with the model's labels where they have classes."""
    prepare, found = needed(transform), open_folder(root)
    pictures = found.split("test" if "test" in found.splits else "all", prepare)
    if model is None or not found.classes:
        return pictures
    return Relabelled(pictures, found.labels_for(model))


class _Transformed(Dataset[Any]):
    """A data set whose pictures become tensors."""

    def __init__(self, data: Any, transform: Callable[[Any], Tensor] | None) -> None:
        self.data, self.transform = data, transform

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        item = self.data[index]
        image, label = image_and_label(item)
        image = image_tensor(image, self.transform)
        return image if label is None else (image, label)


def _of_dataset(
    data: Any,
    images: int | None,
    batch_size: int,
    seed: int,
    transform: Callable[[Any], Tensor] | None,
    mixed: bool,
) -> LabelledImages:
    total = len(data)
    if not total:
        raise ArgumentError("There are no images to measure on: the data set is empty.")
    plain = _Transformed(data, transform)
    labelled = isinstance(plain[0], tuple)
    chosen = list(range(total))
    wanted = total if images is None else min(images, total)
    if mixed or wanted < total:
        targets = targets_of(data)
        chosen = stratified([0] * total if targets is None else targets, wanted, seed)
    loader = DataLoader(Subset(plain, chosen), batch_size)

    def batches() -> Iterator[Batch]:
        for item in _quietly(loader):
            yield batch_pair(item)

    return LabelledImages(batches, labelled)


def _of_tensors(
    data: list[Tensor], labels: Tensor | None, images: int | None, batch_size: int
) -> LabelledImages:
    if labels is not None and len(labels) != len(data[0]):
        raise ArgumentError(f"There are {len(data[0])} images, but {len(labels)} labels.")

    def batches() -> Iterator[Batch]:
        left = sum(len(x) for x in data) if images is None else images
        for batch in data:
            for start in range(0, min(len(batch), left), batch_size):
                part = slice(start, min(start + batch_size, left))
                yield batch[part], None if labels is None else labels[part].long()
            left = max(0, left - len(batch))

    return LabelledImages(batches, labels is not None)


def _of_loader(loader: DataLoader[Any], images: int | None) -> LabelledImages:
    def batches() -> Iterator[Batch]:
        left = images
        for item in _quietly(loader):
            x, labels = batch_pair(item)
            yield x[:left], None if labels is None else labels[:left]
            if left is not None:
                left -= min(left, len(x))
                if not left:
                    return

    first = next(_quietly(loader), None)
    return LabelledImages(batches, first is not None and batch_pair(first)[1] is not None)


def _quietly(loader: DataLoader[Any]) -> Iterator[Any]:
    """Reads a loader and restores the global random state, from which loaders draw a seed."""
    before = torch.get_rng_state()
    iterator = iter(loader)
    torch.set_rng_state(before)
    while True:
        try:
            yield next(iterator)
        except StopIteration:
            return
        except RuntimeError as error:
            if "stack expects each tensor" not in str(error):
                raise
            raise ArgumentError(
                "The images differ in shape: pass them through the evaluation transforms, which "
                "crop them to one size."
            ) from None
