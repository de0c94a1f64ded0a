"""Transform presets that can say what they are, so that artifacts and metadata carry them."""

from __future__ import annotations

from typing import Any

from torchvision.transforms import InterpolationMode
from torchvision.transforms._presets import ImageClassification as _ImageClassification

from .errors import ArtifactError


class ImageClassification(_ImageClassification):
    """torchvision's evaluation preset: resize, centre crop, scale to [0, 1], normalize.

    Takes a PIL image or a uint8 or float tensor of shape [..., C, H, W]; gives float32
    [..., C, crop_size, crop_size]. It computes exactly what torchvision's preset computes, and adds
    `to_dict` and `from_dict`.
    """

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


def preset_kwargs(data: dict[str, Any]) -> dict[str, Any]:
    """Returns the keyword arguments of `ImageClassification` that a description stands for.

    Raises:
        ArtifactError: The description is of another preset or has impossible values.
    """
    kwargs = dict(data)
    sizes = (kwargs.get("crop_size"), kwargs.get("resize_size"))
    good = kwargs.pop("preset", None) == "ImageClassification" and set(kwargs) == {
        "crop_size", "resize_size", "interpolation", "antialias", "mean", "std",
    }  # fmt: skip
    good = good and all(type(s) is int and 0 < s <= 8192 for s in sizes)
    for name in ("mean", "std"):
        values = kwargs.get(name)
        good = good and isinstance(values, list) and len(values) == 3
        good = good and all(type(v) in (int, float) and abs(v) < 1e6 for v in values or ())
    if not good or min(data["std"]) <= 0 or data["antialias"] not in (True, False, None):
        raise ArtifactError(
            f"The transforms {str(data)[:200]} are not a preset that this qzoo knows."
        )
    try:
        kwargs["interpolation"] = InterpolationMode(kwargs["interpolation"])
    except ValueError:
        raise ArtifactError(
            f"The transforms name the unknown interpolation {str(kwargs['interpolation'])[:40]!r}."
        ) from None
    kwargs["mean"], kwargs["std"] = tuple(kwargs["mean"]), tuple(kwargs["std"])
    return kwargs
