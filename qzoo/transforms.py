"""Transform presets that can say what they are, so that artifacts and metadata carry them."""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor
from torchvision import transforms as T
from torchvision.transforms import InterpolationMode, Resize
from torchvision.transforms._presets import ImageClassification as _ImageClassification
from torchvision.transforms.functional import get_image_size

from ._torch.defaults import plain_defaults
from .errors import ArgumentError
from .pictures.preset import Preset
from .pictures.preset import check_resize as check_resized


def check_resize(image: Any, side: int) -> None:
    """Checks that resizing an image keeps to `MAX_MEMORY`, whatever its shape.

    Args:
        image: A PIL image, or a tensor [..., C, H, W].
        side: What the shorter side is to become, in pixels.

    Raises:
        ImageError: It would take more, or the image has no pixels.
    """
    width, height = get_image_size(image)
    if isinstance(image, Tensor):
        check_resized(width, height, side, 0, 4 * image.shape[-3] if image.dim() > 2 else 4)
    else:
        check_resized(width, height, side, 4 * width * height, 4)


class BoundedResize(Resize):
    """torchvision's Resize to a shorter side, which refuses what would take too much memory."""

    def forward(self, img: Any) -> Any:
        """Resizes a PIL image or a tensor [..., H, W]."""
        check_resize(img, self.size)
        return super().forward(img)


class ImageClassification(_ImageClassification):
    """torchvision's evaluation preset: resize, centre crop, scale to [0, 1], normalize.

    Takes a PIL image or a uint8 or float tensor of shape [..., C, H, W]; gives float32
    [..., C, crop_size, crop_size]. It computes exactly what torchvision's preset computes, and adds
    `to_dict` and `from_dict`. A picture whose sides differ so much that the resized one would not
    fit into `qzoo.pictures.images.MAX_MEMORY` bytes is refused with an `ImageError`.
    """

    def __call__(self, img: Any) -> Tensor:
        """Returns the model's input, float32 [..., C, crop_size, crop_size]."""
        check_resize(img, self.resize_size[0])  # not in forward, which torch.jit.script compiles
        with plain_defaults():
            return super().__call__(img)

    def to_dict(self) -> dict[str, Any]:
        """Returns the preset as JSON values; `from_dict` makes an equal one of it."""
        return {
            "preset": "ImageClassification",
            "crop_size": self.crop_size[0],
            "resize_size": self.resize_size[0],
            "interpolation": self.interpolation.value,
            "antialias": self.antialias,
            "mean": list(self.mean),
            "std": list(self.std),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ImageClassification:
        """Makes the preset that `to_dict` described.

        Raises:
            ArtifactError: The description is not one of this preset.
        """
        return cls(**preset_kwargs(data))


def describe(transforms: Any) -> dict[str, Any]:
    """Returns transforms as JSON values, from which `ImageClassification.from_dict` makes them.

    Args:
        transforms: This preset or torchvision's, weights' `transforms` (called or not), a `Compose`
            of torchvision's Resize, CenterCrop, ToTensor and Normalize in this order, or what
            `to_dict` gave.

    Raises:
        ArgumentError: Other transforms, which no file can hold.
    """
    if isinstance(transforms, dict):
        return transforms
    if isinstance(transforms, functools.partial):
        transforms = transforms()
    preset = transforms if isinstance(transforms, _ImageClassification) else _of_steps(transforms)
    if preset is None or type(preset).forward not in _PRESETS:
        raise ArgumentError(
            f"Transforms like {repr(transforms)[:80]} cannot be recorded with a model: use "
            "qzoo.transforms.ImageClassification(crop_size=..., resize_size=...), or a Compose of "
            "Resize, CenterCrop, ToTensor and Normalize."
        )
    return ImageClassification.to_dict(preset)


#: What prepares pictures as this preset does; a subclass may do otherwise.
_PRESETS = (ImageClassification.forward, _ImageClassification.forward)


def _of_steps(transforms: Any) -> _ImageClassification | None:
    """Returns the preset that computes what a `Compose` of its four steps does, or None."""
    steps = list(getattr(transforms, "transforms", ()))
    if type(transforms) is not T.Compose or tuple(map(type, steps)) != _STEPS:
        return None
    resize, crop, _, normalize = steps
    resized, crops = _side(resize.size), {_side(crop.size)}
    if isinstance(crop.size, (list, tuple)):
        crops = set(crop.size)
    if resized is None or len(crops) != 1 or resize.max_size is not None:
        return None
    if len(normalize.mean) != 3 or len(normalize.std) != 3:
        return None
    return ImageClassification(
        crop_size=crops.pop(),
        resize_size=resized,
        interpolation=resize.interpolation,
        antialias=resize.antialias,
        mean=tuple(float(x) for x in normalize.mean),
        std=tuple(float(x) for x in normalize.std),
    )


_STEPS = (T.Resize, T.CenterCrop, T.ToTensor, T.Normalize)


def _side(size: Any) -> int | None:
    """Returns the one number that a size is given as; a pair would not keep the proportions."""
    if isinstance(size, (list, tuple)) and len(size) == 1:
        size = size[0]
    return size if isinstance(size, int) else None


def preset_kwargs(data: dict[str, Any]) -> dict[str, Any]:
    """Returns the keyword arguments of `ImageClassification` that a description stands for.

    Raises:
        ArtifactError: The description is of another preset or has impossible values.
    """
    kwargs = vars(Preset.from_dict(data)).copy()
    kwargs["interpolation"] = InterpolationMode(kwargs["interpolation"])
    return kwargs
