"""What data sets and loaders give: images, or pairs of images and labels; all else is told of."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import ArgumentError


def image_and_label(item: Any) -> tuple[Any, Any]:
    """Returns the image, or images, of what a data set or loader gives, and the label or None."""
    if not isinstance(item, (tuple, list)):
        return item, None
    if not item:
        raise ArgumentError("The data gives empty tuples instead of images.")
    return item[0], item[1] if len(item) > 1 else None


def batch_pair(item: Any) -> tuple[Tensor, Tensor | None]:
    """Returns a batch's images and its labels, int64 [N], or None where there are none.

    Args:
        item: What a loader gives: images, or a tuple or list of images and labels.

    Raises:
        ArgumentError: The images are no tensor, or the labels are not one number for each.
    """
    images, labels = image_and_label(item)
    if not isinstance(images, Tensor):
        raise ArgumentError(not_a_tensor(images))
    if labels is None:
        return images, None
    try:
        found = torch.as_tensor(labels, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        raise ArgumentError(
            f"The data gives labels of type {type(labels).__name__}: a label is a whole number, "
            "the place of the class."
        ) from None
    if found.shape != images.shape[:1] or found.is_floating_point() or found.is_complex():
        raise ArgumentError(
            f"The data gives labels of {found.dtype} {list(found.shape)} for {len(images)} images: "
            "each should have one label, a whole number, the place of its class."
        )
    return images, found.long()


def not_a_tensor(value: Any) -> str:
    """Returns the sentence on what a data set or loader gives instead of image tensors."""
    kind = type(value).__name__
    if isinstance(value, dict):
        keys = ", ".join(repr(key) for key in list(value)[:6])
        return (
            f"The data gives {kind} objects ({keys[:200]}) instead of images: have it return pairs "
            "of image and label, such as (item['image'], item['label'])."
        )
    if kind == "ndarray":
        return (
            f"The data gives {kind} objects instead of tensors: make tensors of them, float32 "
            "[3, H, W] and normalized, for example with torch.from_numpy."
        )
    return (
        f"The data gives {kind} objects instead of tensors: give it the evaluation transforms, "
        "such as transform=weights.transforms()."
    )


def wrong_channels(channels: int) -> str:
    """Says of pictures that have another number of channels than RGB what to do."""
    what = "one channel (gray) is" if channels == 1 else f"{channels} channels are"
    return f"{what} not supported, for qzoo's models take the 3 of RGB; repeat a gray one 3 times"
