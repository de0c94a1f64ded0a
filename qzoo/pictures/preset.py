"""Evaluation presets without PyTorch: from a picture to a model's input, as torchvision's do it."""

from __future__ import annotations

from dataclasses import dataclass
from types import NoneType
from typing import Any

import numpy as np
from PIL import Image

from ..errors import ArtifactError, ImageError
from .images import MAX_MEMORY

#: Of presets that come from files, in pixels: the models of the zoo take 176 to 342.
MAX_CROP, MAX_RESIZE = 1024, 2048
#: Of each channel's mean and standard deviation, of pixels in [0, 1] or [0, 255].
MAX_STATISTIC, MIN_STD = 10_000.0, 1e-4
#: torchvision's names of Pillow's filters.
_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "nearest-exact": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True)
class Preset:
    """Resize, centre crop, scale to [0, 1], normalize, in torchvision's order and arithmetic.

    Pixels are equal to torchvision's to the bit up to the normalization; after it, to float32's
    rounding.

    Attributes:
        crop_size: Height and width of the result, in pixels.
        resize_size: What the picture's shorter side becomes first, in pixels.
        interpolation: torchvision's name of the filter, such as "bilinear".
        antialias: Noted for tensors; Pillow always smooths where it makes smaller.
        mean: Subtracted from each channel of values in [0, 1].
        std: What each channel is divided by then.
    """

    crop_size: int
    resize_size: int
    interpolation: str = "bilinear"
    antialias: bool | None = True
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def __call__(self, picture: Image.Image) -> np.ndarray:
        """Returns a picture as the model takes it.

        Args:
            picture: 8-bit RGB.

        Returns:
            float32 [3, crop_size, crop_size].

        Raises:
            ImageError: The resized picture would take more than `MAX_MEMORY` bytes.
        """
        pixels = np.asarray(self.cropped(picture))
        values = pixels.transpose(2, 0, 1).astype(np.float32) / np.float32(255)
        mean, std = (np.array(v, np.float32).reshape(-1, 1, 1) for v in (self.mean, self.std))
        return (values - mean) / std

    def cropped(self, picture: Image.Image) -> Image.Image:
        """Returns a picture resized and cropped: 8-bit RGB, `crop_size` pixels wide and high."""
        width, height = picture.size
        check_resize(width, height, self.resize_size, 4 * width * height, 4)
        short, long = sorted(picture.size)
        sides = self.resize_size, int(self.resize_size * long / short)
        size = sides if width <= height else sides[::-1]
        resized = (
            picture if picture.size == size else picture.resize(size, _FILTERS[self.interpolation])
        )
        # Where the crop is larger, black borders are as wide as torchvision makes them.
        left, top = (
            -((self.crop_size - side) // 2)
            if side < self.crop_size
            else round((side - self.crop_size) / 2)
            for side in resized.size
        )
        return resized.crop((left, top, left + self.crop_size, top + self.crop_size))

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Preset:
        """Makes the preset that an artifact's `transforms` describe.

        Raises:
            ArtifactError: They are of another preset or have impossible values.
        """
        fields = dict(data)
        bounds = {"crop_size": MAX_CROP, "resize_size": MAX_RESIZE}
        good = fields.pop("preset", None) == "ImageClassification" and set(fields) == {
            "crop_size", "resize_size", "interpolation", "antialias", "mean", "std",
        }  # fmt: skip
        good = good and all(
            type(fields[n]) is int and 0 < fields[n] <= m for n, m in bounds.items()
        )
        for name, least in (("mean", -MAX_STATISTIC), ("std", MIN_STD)):
            values = fields.get(name)
            good = good and isinstance(values, list) and len(values) == 3
            good = good and all(
                type(v) in (int, float) and least <= v <= MAX_STATISTIC for v in values or ()
            )
        if not good or type(data["antialias"]) not in (bool, NoneType):
            raise ArtifactError(
                f"The transforms {str(data)[:200]} are not a preset that this qzoo knows: a crop "
                f"of 1 to {MAX_CROP} and a size of 1 to {MAX_RESIZE} pixels, mean and std of at "
                f"most {MAX_STATISTIC:.0f}, std of at least {MIN_STD}."
            )
        if not isinstance(fields["interpolation"], str) or fields["interpolation"] not in _FILTERS:
            raise ArtifactError(
                f"The transforms name the unknown interpolation "
                f"{str(fields['interpolation'])[:40]!r}."
            )
        return cls(**{**fields, "mean": tuple(fields["mean"]), "std": tuple(fields["std"])})


def check_resize(width: int, height: int, side: int, own: int, bytes_per_pixel: int) -> None:
    """Checks that resizing a picture keeps to `MAX_MEMORY`, whatever its shape.

    The longer side grows along: 1 x 1,000,000 pixels would become 256 x 256,000,000.

    Args:
        width: Of the picture, in pixels.
        height: Likewise.
        side: What the shorter side is to become, in pixels.
        own: Bytes that the picture itself takes meanwhile.
        bytes_per_pixel: What each pixel of the intermediate pictures takes.

    Raises:
        ImageError: It would take more, or the picture has no pixels.
    """
    if min(width, height) < 1:
        raise ImageError(f"A picture of {width} x {height} pixels has nothing to resize.")
    scale = side / min(width, height)
    wide, high = max(1, int(width * scale)), max(1, int(height * scale))
    # Columns come first, then rows; each of them has weights of its own.
    pixels, weights = wide * height + wide * high, 64 * (wide + high)
    if own + bytes_per_pixel * pixels + weights > MAX_MEMORY:
        raise ImageError(
            f"A picture of {width} x {height} pixels becomes {wide} x {high} when its shorter side "
            f"is made {side}, which takes too much memory: cut or scale it first."
        )
