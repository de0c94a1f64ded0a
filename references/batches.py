"""Training batches of pictures that lie in memory, many times faster than picture by picture."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from qzoo.transforms import ImageClassification


class MemoryBatches:
    """Shuffled batches of a data set whose pictures already have the model's size.

    Whole batches are mirrored and turned, not single pictures: over an epoch each comes in any of
    the eight ways all the same. Random numbers come from PyTorch's global generator, whose state
    train.py keeps in its checkpoints.
    """

    def __init__(self, data: Any, batch_size: int, preset: ImageClassification, turn: bool) -> None:
        """Takes over the pictures.

        Args:
            data: Has `images`, uint8 [N, S, S, 3], and `targets`, N labels.
            batch_size: Pictures in a batch; the few that do not fill one are left out.
            preset: The evaluation transforms, for mean and standard deviation.
            turn: Whether to mirror and turn at random.
        """
        # NHWC in memory seen as NCHW: what PyTorch calls channels last.
        self.images = torch.from_numpy(data.images).permute(0, 3, 1, 2)
        self.targets = torch.tensor(data.targets)
        self.batch_size, self.turn = batch_size, turn
        self.mean = 255 * torch.tensor(preset.mean)[:, None, None]
        self.std = 255 * torch.tensor(preset.std)[:, None, None]

    def __len__(self) -> int:
        """Returns the number of batches in an epoch."""
        return len(self.targets) // self.batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields normalized images, float32 [N, 3, S, S], and labels, int64 [N]."""
        order = torch.randperm(len(self.targets))
        for chosen in order.split(self.batch_size)[: len(self)]:
            images = self.images[chosen]
            if self.turn:
                images = turned(images, int(torch.randint(8, ())))
            yield (images - self.mean) / self.std, self.targets[chosen]


def turned(images: Tensor, way: int) -> Tensor:
    """Returns square images [..., S, S] in one of the eight ways to lay a square, 0 as they are."""
    if way & 1:
        images = images.flip(-1)
    if way & 2:
        images = images.flip(-2)
    return images.transpose(-1, -2) if way & 4 else images
