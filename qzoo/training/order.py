"""In which order training sees its images: a function of the seed, the epoch and the batch.

Nothing here draws from a stream of random numbers that goes on from batch to batch, so that a run
can go on at any batch, in any number of processes, as if it had never stopped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import NamedTuple

import torch


class Key(NamedTuple):
    """An image of an epoch, in one of its augmented copies.

    Attributes:
        epoch: Counted from 0.
        image: Place in the data set.
        copy: Which of several differently augmented copies in one epoch.
    """

    epoch: int
    image: int
    copy: int = 0


def stream(*parts: int | str) -> int:
    """Returns the seed of the random stream that some numbers name, from 0 to 2**63 - 1.

    A hash, because generators whose seeds are near each other may give similar numbers.
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class Order:
    """Shuffled batches of an epoch, the same for any number of processes.

    A batch of one process with batch size B is cut into the batches of W processes with batch size
    B / W each; the few images that do not fill a batch of all are left out.

    Args:
        count: Number of images.
        batch_size: Images in a batch of one process.
        seed: Of the whole run.
        rank: Which of the processes this is.
        world: How many processes there are.
        copies: How often an image comes in an epoch, which then sees a part of the images only
            (repeated augmentation: M. Berman et al., "MultiGrain", 2019,
            https://arxiv.org/abs/1902.05509).
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        seed: int,
        *,
        rank: int = 0,
        world: int = 1,
        copies: int = 1,
    ) -> None:
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self.rank, self.world, self.copies = rank, world, copies
        #: What the next pass gives; a DataLoader's sampler takes no arguments.
        self.epoch, self.start = 0, 0

    def __len__(self) -> int:
        """Returns the number of batches in an epoch."""
        return self.count // (self.batch_size * self.world)

    def __iter__(self) -> Iterator[list[Key]]:
        """Yields the images of every batch of `epoch` from batch `start` on."""
        generator = torch.Generator().manual_seed(stream(self.seed, "order", self.epoch))
        order = torch.randperm(self.count, generator=generator, dtype=torch.int64, device="cpu")
        kept = -(-self.count // self.copies)
        indices = order[:kept].repeat_interleave(self.copies).tolist()
        whole = self.batch_size * self.world
        for batch in range(self.start, len(self)):
            first = batch * whole + self.rank * self.batch_size
            yield [
                Key(self.epoch, indices[place], place % self.copies)
                for place in range(first, first + self.batch_size)
            ]
