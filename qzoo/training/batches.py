"""Training batches, each of which can be made without those before it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..transforms import ImageClassification
from .order import Key, Order, stream


class Batches(Protocol):
    """What training takes its images from.

    Attributes:
        order: Which images come when.
    """

    order: Order

    def __len__(self) -> int:
        """Returns the number of batches in an epoch."""
        ...

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields an epoch's batches from batch `start` on: images [N, 3, H, W], labels [N]."""
        ...


class LoadedBatches:
    """Batches of any data set, read and augmented picture by picture.

    Args:
        data: Gives pairs of an image, float32 [3, H, W], and a label; its transforms may draw from
            the global generators of PyTorch, NumPy and Python.
        order: Which images come when.
        workers: Processes that prepare batches ahead; 0 for none.
        pin: Whether to put batches where a GPU can fetch them from by itself.
    """

    def __init__(self, data: Any, order: Order, workers: int = 0, pin: bool = False) -> None:
        self.order = order
        self._loader: DataLoader[Any] = DataLoader(
            Seeded(data, order.seed),
            batch_sampler=order,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=pin,
            # Every pass draws a seed for the workers, which must not come from the global state.
            generator=torch.Generator(),
        )

    def __len__(self) -> int:
        """Returns the number of batches in an epoch."""
        return len(self.order)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields an epoch's batches from batch `start` on."""
        self.order.epoch, self.order.start = epoch, start
        yield from self._loader


class Seeded(Dataset[Any]):
    """A data set whose augmentation depends on the seed, the epoch and the image alone.

    Args:
        data: The data set.
        seed: Of the whole run.
    """

    def __init__(self, data: Any, seed: int) -> None:
        self.data, self.seed = data, seed

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.data)

    def __getitem__(self, key: Key) -> Any:
        """Returns the image that `key` says, and its label."""
        with _seeded(stream(self.seed, "augment", *key)):
            return self.data[key.image]


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seeds the global generators on the CPU, and restores them afterwards."""
    kept = torch.get_rng_state(), random.getstate(), np.random.get_state()
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        torch.set_rng_state(kept[0])
        random.setstate(kept[1])
        np.random.set_state(kept[2])


class MemoryBatches:
    """Batches of pictures in memory that already have the model's size: many times faster.

    Whole batches are mirrored and turned, not single pictures: over the epochs each comes in any
    of the eight ways all the same.

    Args:
        data: Has `images`, uint8 [N, S, S, 3], and `targets`, N labels.
        order: Which images come when.
        preset: The evaluation transforms, for mean and standard deviation.
        turn: Whether to mirror and turn at random.
    """

    def __init__(self, data: Any, order: Order, preset: ImageClassification, turn: bool) -> None:
        # NHWC in memory seen as NCHW: what PyTorch calls channels last.
        self.images = torch.from_numpy(data.images).permute(0, 3, 1, 2)
        self.targets = torch.tensor(data.targets, dtype=torch.int64, device="cpu")
        self.order, self.turn = order, turn
        self.mean, self.std = (
            255 * torch.tensor(values, dtype=torch.float32, device="cpu")[:, None, None]
            for values in (preset.mean, preset.std)
        )

    def __len__(self) -> int:
        """Returns the number of batches in an epoch."""
        return len(self.order)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields an epoch's batches from batch `start` on."""
        self.order.epoch, self.order.start = epoch, start
        for number, keys in enumerate(self.order, start):
            chosen = torch.tensor([key.image for key in keys], dtype=torch.int64, device="cpu")
            images = self.images[chosen]
            if self.turn:
                images = turned(images, stream(self.order.seed, "turn", epoch, number) % 8)
            yield (images - self.mean) / self.std, self.targets[chosen]


def turned(images: Tensor, way: int) -> Tensor:
    """Returns square images [..., S, S] in one of eight turns and mirrorings; 0 changes none."""
    if way & 1:
        images = images.flip(-1)
    if way & 2:
        images = images.flip(-2)
    return images.transpose(-1, -2) if way & 4 else images
