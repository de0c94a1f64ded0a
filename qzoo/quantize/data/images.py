"""Images that models take: which ones are chosen, made tensors of, and checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor
from torch.utils.data import Subset

from ...datasets.pairs import not_a_tensor, wrong_channels
from ...errors import ArgumentError
from ...pictures.images import transformed

#: Largest magnitude of a normalized image's values; raw pixels reach 255.
LARGEST = 50.0


def targets_of(data: Any) -> list[int] | None:
    """Returns the labels of a data set that knows them without opening its images."""
    if isinstance(data, Subset):
        inner = targets_of(data.dataset)
        return None if inner is None else [inner[i] for i in data.indices]
    targets = getattr(data, "targets", None)
    return None if targets is None else [int(t) for t in targets]


def stratified(targets: Sequence[int], count: int, seed: int) -> list[int]:
    """Chooses images so that every class has its share, in an order that alternates classes.

    Args:
        targets: The label of every image.
        count: How many to choose; all of them, shuffled, where there are no more.
        seed: Seed of a generator of its own.

    Returns:
        Indices into `targets`.
    """
    generator = torch.Generator().manual_seed(seed)
    ranked = []
    seen: dict[int, int] = {}
    for index in torch.randperm(
        len(targets), generator=generator, dtype=torch.int64, device="cpu"
    ).tolist():
        label = int(targets[index])
        seen[label] = seen.get(label, 0) + 1
        ranked.append((seen[label], label, index))
    return [index for _, _, index in sorted(ranked)[:count]]


def needed(transform: Callable[[Any], Tensor] | None) -> Callable[[Any], Tensor]:
    """Returns the transforms that pictures of a folder go through.

    Raises:
        ArgumentError: There are none.
    """
    if transform is None:
        raise ArgumentError(
            "This model carries no transforms, so pictures of a folder cannot be prepared for it: "
            "pass transforms=, for example qzoo.ImageClassification(crop_size=224)."
        )
    return transform


def image_tensor(image: Any, transform: Callable[[Any], Tensor] | None) -> Tensor:
    """Returns what a data set gives as a tensor, PIL images of any mode through the transforms.

    Args:
        image: A tensor, or what the transforms take.
        transform: Makes a tensor of a picture, or None.

    Raises:
        ArgumentError: It is no tensor, and there are no transforms.
        ImageError: A picture that cannot be decoded or transformed.
    """
    if transform is not None and isinstance(image, Image):
        image = transformed(image, transform)
    elif transform is not None and not isinstance(image, Tensor):
        try:
            image = transform(image)
        except (TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise ArgumentError(f"{not_a_tensor(image)} Its transforms fail on them.") from error
    if not isinstance(image, Tensor):
        check_images(image)  # says what is wrong
    return image


def stack(items: list[Tensor]) -> Tensor:
    """Returns images of one shape as a batch."""
    shapes = sorted({tuple(x.shape) for x in items})
    if len(shapes) > 1:
        raise ArgumentError(
            f"The calibration images differ in shape ({shapes[0]} and {shapes[-1]}): pass them "
            "through the evaluation transforms, which crop them to one size."
        )
    return torch.stack(items)


def check_images(batch: Tensor) -> Tensor:
    """Returns a batch that a model can be calibrated on, as it came.

    Args:
        batch: Float32 [N, 3, H, W] of normalized pictures.

    Raises:
        ArgumentError: Another shape or dtype, values that are not finite, or raw pixels.
    """
    if not isinstance(batch, Tensor):
        raise ArgumentError(not_a_tensor(batch))
    if batch.dim() != 4 or batch.shape[1] != 3 or not batch.is_floating_point():
        advice = "pass them through the evaluation transforms"
        if batch.dim() == 4 and batch.shape[1] in (1, 2, 4):
            advice = wrong_channels(batch.shape[1])
        raise ArgumentError(
            f"Calibration images should be float tensors [N, 3, H, W], not {batch.dtype} "
            f"{list(batch.shape)}: {advice}."
        )
    if batch.is_meta:
        raise ArgumentError(
            'Calibration images are on the device "meta", where tensors hold no values: make them '
            'on the CPU (torch.set_default_device(None), or device="cpu").'
        )
    if batch.numel() == 0:
        raise ArgumentError("There are no calibration images: a batch is empty.")
    low, high = torch.aminmax(batch)
    if not bool(torch.isfinite(low) and torch.isfinite(high)):
        raise ArgumentError("A calibration image has values that are not finite (NaN or infinity).")
    if float(high) > LARGEST or float(low) < -LARGEST:
        raise ArgumentError(
            f"Calibration images reach from {float(low):g} to {float(high):g}, which looks like "
            "raw pixels: pass them through the evaluation transforms, which normalize them."
        )
    return batch.float().cpu()
