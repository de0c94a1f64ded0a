"""From options to data: the splits with their transforms, and training batches."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from ..datasets.evaluate import Metrics
from ..errors import ArgumentError
from ..transforms import ImageClassification
from . import sources
from .batches import Batches, LoadedBatches, MemoryBatches
from .distributed import Ranks, evaluate_all
from .files import check_size
from .options import TrainOptions
from .order import Order
from .runs import check_run


@dataclass(frozen=True)
class Prepared:
    """All that training and measuring needs to know of the data.

    Attributes:
        data: The data set.
        preset: The evaluation transforms.
        size: Side of training images in pixels.
        train_set: The training split with training transforms.
        test_set: The held-out split with evaluation transforms.
        batches: Training batches of this process.
        workers: Processes that read pictures.
    """

    data: sources.Data
    preset: ImageClassification
    size: int
    train_set: Any
    test_set: Any
    batches: Batches
    workers: int

    @property
    def classes(self) -> list[str]:
        """Class names in the order of the labels."""
        return self.data.classes

    @property
    def batch_size(self) -> int:
        """Images per step of this process."""
        return self.batches.order.batch_size

    @property
    def sha256(self) -> str:
        """Digest of the labels in their order, which tells whether the data changed."""
        return hashlib.sha256(",".join(map(str, self.train_set.targets)).encode()).hexdigest()


def set_up(options: TrainOptions, ranks: Ranks) -> None:
    """Sets this process's random seeds, and whether it computes deterministically.

    The random numbers of dropout differ between processes, as their images do.

    Raises:
        ArgumentError: The output folder holds another run.
    """
    check_run(options.output, ranks)
    compute = options.compute
    seed = compute.seed + ranks.rank
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    if compute.use_deterministic_algorithms:
        torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(True)


def prepare_data(
    options: TrainOptions,
    ranks: Ranks,
    model: str,
    *,
    data: sources.Data | None = None,
    transforms: Callable[[str, int, ImageClassification], Any] | None = None,
) -> Prepared:
    """Opens the data that the options name.

    Args:
        options: The options.
        ranks: The processes.
        model: Name of the model, whose smallest input is checked.
        data: The data set, where it is not what `data` and `data_path` say.
        transforms: Makes the training transforms of the augmentation's name, the side of the images
            and the evaluation transforms; None for `sources.train_transforms`.

    Raises:
        ArgumentError: Data or sizes that do not fit together.
    """
    o = options.data
    with ranks.first_alone():
        data = data or sources.open_data(o.data, o.data_path)
        size = o.train_crop_size or data.size
        preset = data.preset(o.val_crop_size or size, o.val_resize_size)
        check_size(model, min(size, preset.crop_size[0]))
        augment = o.augment or data.augment
        extra: dict[str, Any] = {"auto_augment": o.auto_augment, "random_erase": o.random_erase}
        make = transforms or sources.train_transforms
        train_set = data.split("train", make(augment, size, preset, **extra))
        test_set = data.split("test", preset)
    order = Order(
        len(train_set),
        _batch_size(o.batch_size, len(train_set), ranks.world),
        options.compute.seed,
        rank=ranks.rank,
        world=ranks.world,
        copies=o.ra_reps,
    )
    workers = data.workers if o.workers is None else o.workers
    batches: Batches
    if _in_memory(data, preset, augment) and not any(extra.values()):
        batches = MemoryBatches(train_set, order, preset, augment == "turn")
    else:
        batches = LoadedBatches(train_set, order, workers, pin=ranks.device.type == "cuda")
    return Prepared(data, preset, size, train_set, test_set, batches, workers)


def _batch_size(wanted: int | None, images: int, world: int) -> int:
    """Returns the images per step of each process."""
    most = images // world
    if wanted is None:  # somebody with forty photos should not have to know what a batch is
        wanted = max(2, min(32, most))
    if wanted > most:
        each = "" if world == 1 else f" in each of {world} processes"
        raise ArgumentError(
            f"--batch-size {wanted}{each} is larger than the training split, which has {images} "
            "images."
        )
    return wanted


def _in_memory(data: sources.Data, preset: ImageClassification, augment: str) -> bool:
    """Returns whether training can take batches of pictures in memory as they are."""
    as_it_is = preset.crop_size[0] == preset.resize_size[0] == data.size
    return data.name == "fractals" and as_it_is and augment in ("none", "turn")


def measure(model: nn.Module, data: Prepared) -> Metrics:
    """Measures a model, float or int8, on the held-out split, in this process alone."""
    alone = Ranks(torch.device("cpu"))
    return evaluate_all(model, data.test_set, alone, workers=data.workers)
