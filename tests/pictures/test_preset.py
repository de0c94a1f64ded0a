"""Presets without PyTorch against torchvision's: the same pixels, the same numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F
from torchvision.transforms._presets import ImageClassification

import qzoo
from qzoo.pictures.images import load_image
from qzoo.pictures.preset import Preset
from tests.helpers import places

SAMPLE = places.ROOT.parent / "shared" / "imagenet_sample"
FILTERS = [mode.value for mode in InterpolationMode]
#: Crop and resize sizes of torchvision's weights, and crops larger than the image.
SIZES = [(224, 256), (224, 232), (299, 342), (224, 246), (300, 200), (225, 200), (64, 37), (7, 8)]


def check(picture: Image.Image, crop: int, size: int, mode: str) -> None:
    made = Preset(crop, size, mode)
    how = InterpolationMode(mode)
    resized = F.center_crop(F.resize(picture, [size], interpolation=how), [crop, crop])
    assert np.array_equal(np.asarray(made.cropped(picture)), np.asarray(resized))
    theirs = ImageClassification(crop_size=crop, resize_size=size, interpolation=how)
    assert np.abs(made(picture) - theirs(picture).numpy()).max() <= 1e-6


@pytest.mark.parametrize("mode", FILTERS)
@pytest.mark.parametrize("shape", [(37, 53), (53, 37), (256, 256), (301, 17), (1, 9)])
def test_every_filter_and_shape(mode: str, shape: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    for crop, size in SIZES:
        check(Image.fromarray(pixels), crop, size, mode)


@pytest.mark.extended
def test_real_pictures() -> None:
    files = sorted(path for path in SAMPLE.rglob("*.*") if path.suffix.lower() in (".jpg", ".jpeg"))
    if not files:
        pytest.skip(f"{SAMPLE} is not on this machine")
    for index, path in enumerate(files):
        crop, size = SIZES[index % 6]
        check(load_image(path), crop, size, FILTERS[index % len(FILTERS)])
        check(load_image(path), 224, 256, "bilinear")


def test_a_resize_that_takes_too_much_memory() -> None:
    thin = Image.new("RGB", (1, 100_000))
    with pytest.raises(qzoo.ImageError, match="too much memory"):
        Preset(224, 256)(thin)
    with pytest.raises(qzoo.ImageError, match="nothing to resize"):
        Preset(224, 256)(Image.new("RGB", (0, 5)))


def test_descriptions_come_back(tmp_path: Path) -> None:
    described = qzoo.transforms.ImageClassification(crop_size=32, resize_size=36).to_dict()
    made = Preset.from_dict(described)
    assert (made.crop_size, made.resize_size, made.interpolation) == (32, 36, "bilinear")
    with pytest.raises(qzoo.ArtifactError, match="interpolation"):
        Preset.from_dict({**described, "interpolation": "cubic"})
