"""Names of classes: given in full, or by the name of the data set that they are those of."""

from __future__ import annotations

import functools
from pathlib import Path

#: How artifacts and metadata refer to the 1000 classes of ImageNet-1K.
IMAGENET = "imagenet-1k"


def class_names(classes: list[str] | str | None) -> list[str] | None:
    """Returns the names that an artifact or a metadata entry refers to."""
    return list(_imagenet()) if classes == IMAGENET else classes  # type: ignore[return-value]


@functools.cache
def _imagenet() -> tuple[str, ...]:
    """Returns the names in the order of the logits, spelt as in torchvision."""
    path = Path(__file__).with_name("imagenet_classes.txt")
    return tuple(path.read_text(encoding="utf-8").splitlines())
