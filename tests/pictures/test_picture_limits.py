"""What a picture may cost, and which files are not even tried."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import EpsImagePlugin, Image
from torch.utils.data import Dataset
from torchvision.transforms._presets import ImageClassification as TorchvisionsPreset

import qzoo
from qzoo.classify import classify
from qzoo.datasets.holdout import check_pictures
from qzoo.datasets.sources import open_data
from qzoo.errors import ArgumentError, ImageError
from qzoo.native.model import attach_info, model_info
from qzoo.pictures.images import FORMATS, MAX_MEMORY, load_image
from qzoo.quantize import ptq
from qzoo.quantize.data import open_labelled
from qzoo.training.sources import train_transforms
from qzoo.transforms import ImageClassification
from tests.helpers.calling import python
from tests.helpers.commands import invoke
from tests.helpers.trained import digits_model

PRESET = ImageClassification(crop_size=32, resize_size=32)
#: Reads files in a process of its own; prints by how many MB that has grown after each of them.
MEASURE = """
import resource, sys
from PIL import Image
from qzoo.errors import ImageError
from qzoo.pictures.images import load_image
Image.init()
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
for path in sys.argv[1:]:
    try:
        load_image(path)
    except ImageError as error:
        print("refused", end=" ")
    print(round((peak() - before) / 1e6))
"""


def growth(*paths: Path) -> list[str]:
    """What `MEASURE` prints of each file."""
    return python("-c", MEASURE, *paths).stdout.splitlines()


def square(mode: str, bytes_per_pixel: float, color: Any, share: float = 1.0) -> Image.Image:
    """A picture that just fits where reading takes so many bytes per pixel."""
    side = int((share * (MAX_MEMORY - 30e6) / bytes_per_pixel) ** 0.5)
    return Image.new(mode, (side, side), color)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no ru_maxrss")
def test_sixteen_bits_need_no_more_than_their_result(tmp_path: Path) -> None:
    square("I;16", 6, 1000, 0.4).save(tmp_path / "deep.png", compress_level=1)
    assert float(growth(tmp_path / "deep.png")[0]) < 0.4 * MAX_MEMORY / 1e6 + 50


#: Mode, colour, format, bytes per pixel of the picture and of the larger of decoder and result.
LARGEST = [
    ("L", 9, "png", 1, 4, {"compress_level": 1}),
    ("RGB", (1, 2, 3), "jpg", 4, 0, {}),
    ("RGBA", (1, 2, 3, 4), "png", 4, 4, {"compress_level": 1}),
    ("LA", (1, 2), "png", 4, 4, {"compress_level": 1}),
    ("P", 3, "png", 1, 4, {"compress_level": 1, "transparency": bytes(9)}),
    ("P", 3, "gif", 1, 4, {}),
    ("I;16", 1000, "png", 2, 4, {"compress_level": 1}),
    ("I", 1000, "tiff", 4, 4, {"compression": "tiff_lzw"}),
    ("F", 1000.0, "tiff", 4, 4, {"compression": "tiff_lzw"}),
    ("CMYK", (1, 2, 3, 4), "jpg", 4, 4, {}),
    ("RGB", (1, 2, 3), "jpeg", 4, 6, {"progressive": True, "subsampling": 0}),
    ("RGB", (1, 2, 3), "webp", 4, 13, {"lossless": True, "method": 0, "quality": 0}),
    ("RGB", (1, 2, 3), "avif", 4, 8, {"speed": 10}),
]


@pytest.mark.extended
@pytest.mark.skipif(sys.platform == "win32", reason="there is no ru_maxrss")
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("case", LARGEST, ids=lambda case: f"{case[0]} {case[2]}")
def test_the_largest_pictures_that_are_read_keep_to_the_limit(
    case: tuple[str, Any, str, int, int, dict], turned: bool, tmp_path: Path
) -> None:
    mode, color, suffix, own, result, options = case
    needed = own + result
    exif = Image.Exif()
    # GIF has no such tag, and the readers of TIFF and AVIF turn pictures themselves.
    if turned and suffix not in ("gif", "tiff", "avif"):
        exif[0x0112] = 6
        needed = own + max(result, own) if mode == "RGB" else 2 * own + result
    path, larger = tmp_path / f"fits.{suffix}", tmp_path / f"larger.{suffix}"
    square(mode, needed, color).save(path, exif=exif, **options)
    square(mode, needed, color, 1.2).save(larger, exif=exif, **options)
    fits, refused = growth(path, larger)
    assert float(fits) <= MAX_MEMORY / 1e6
    assert refused.split()[0] == "refused" and float(refused.split()[1]) <= MAX_MEMORY / 1e6


@pytest.mark.parametrize("size", [(1, 1_000_000), (1_000_000, 1), (1, 20_000_000), (40, 9_000_000)])
def test_an_extreme_shape_is_refused_before_it_is_resized(size: tuple[int, int]) -> None:
    thin = Image.new("L", size)
    for image in (thin, torch.zeros(3, size[1], size[0], dtype=torch.uint8)):
        with pytest.raises(ImageError, match=f"{size[0]} x {size[1]} pixels"):
            ImageClassification(crop_size=224)(image)
    for augment in ("none", "affine"):
        with pytest.raises(ImageError, match="too much memory"):
            train_transforms(augment, 224, ImageClassification(crop_size=224))(thin)


SIDES = st.integers(1, 300)


@given(SIDES, SIDES, st.integers(1, 64), st.integers(1, 80))
@example(1, 3000, 32, 40)
@example(5000, 3, 32, 40)
@example(1, 1, 32, 40)
def test_a_picture_of_any_size_is_transformed_as_torchvision_does(
    width: int, height: int, crop: int, resize: int
) -> None:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    wanted = TorchvisionsPreset(crop_size=crop, resize_size=resize)(image)
    given = ImageClassification(crop_size=crop, resize_size=resize)(image)
    assert torch.equal(given, wanted)


def test_evaluate_names_the_picture_of_an_extreme_shape(tmp_path: Path) -> None:
    for name in "01":
        (tmp_path / "data" / name).mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / "data" / name / "0.png")
    Image.new("L", (1, 2_000_000)).save(tmp_path / "data" / "1" / "thin.png")
    model = ("shufflenet_v2_x0_5", "-w", "DIGITS_X86_V1")
    done = invoke("evaluate", *model, "--data", tmp_path / "data")
    assert done.exit_code == 2
    assert "thin.png" in done.stderr and done.stderr.count("\n") == 1


#: Formats that Pillow knows, but writes none of.
STUBS = {"BUFR", "GRIB", "HDF5", "WMF"}


def others() -> list[str]:
    Image.init()
    return sorted(set(Image.SAVE) & set(Image.OPEN) - set(FORMATS) - STUBS - {"DIB", "MPO"})


@pytest.mark.filterwarnings("ignore:IM image format is deprecated")
@pytest.mark.parametrize("kind", others())
def test_formats_outside_the_list_are_not_tried(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("Ghostscript was started")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", never)
    # Pillow's writer of SPIDER files claims the ending of any file that it writes.
    monkeypatch.setattr(Image, "EXTENSION", dict(Image.EXTENSION))
    path = tmp_path / "photo.jpg"
    for mode in ("RGB", "L", "1", "P", "RGBA", "F"):
        try:
            Image.new(mode, (32, 32)).save(path, format=kind)
            break
        except (OSError, ValueError, KeyError):
            continue
    assert path.stat().st_size, f"no {kind} was written"
    with pytest.raises(ImageError, match="not a picture that can be read"):
        load_image(path)
    if kind == "EPS":
        with Image.open(path) as image, pytest.raises(ImageError, match="PostScript"):
            load_image(image)


@pytest.fixture
def not_regular(tmp_path: Path) -> Iterator[dict[str, Path]]:
    folder = tmp_path / "folder.png"
    folder.mkdir()
    found = {"folder": folder}
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.png")
        found["pipe"] = tmp_path / "pipe.png"
        (tmp_path / "link.png").symlink_to("/dev/zero")
        found["device"] = tmp_path / "link.png"
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(tmp_path / "s.png"))
            found["socket"] = tmp_path / "s.png"
            yield found
    else:
        yield found


def test_what_is_no_regular_file_is_refused_at_once(not_regular: dict[str, Path]) -> None:
    for kind, path in not_regular.items():
        with pytest.raises(ImageError, match=path.name):
            load_image(path)
        with pytest.raises(ImageError, match=path.name):
            classify(qzoo.shufflenet_v2_x0_5(weights="DIGITS_X86_V1", quantize=True), [path])
        assert kind == "folder" or not path.is_file()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
def test_a_pipe_among_the_pictures_of_a_folder_is_named(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        Image.new("L", (8, 8)).save(tmp_path / name / "0.png")
    os.mkfifo(tmp_path / "b" / "1.png")
    with pytest.raises(ImageError, match=r"1\.png"):
        list(open_labelled(tmp_path, transform=PRESET))
    with pytest.raises(ArgumentError, match=r"1\.png"):
        check_pictures(open_data(tmp_path), progress=False)


def test_classify_takes_one_picture_at_a_time() -> None:
    model = qzoo.shufflenet_v2_x0_5(weights="DIGITS_X86_V1", quantize=True)
    steps: list[str] = []
    model.register_forward_pre_hook(lambda *_: steps.append("classify"))

    class Lazy(Sequence[Image.Image]):
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: Any) -> Any:
            if index >= 3:
                raise IndexError
            steps.append("read")
            return Image.new("L", (9, 9))

    assert len(classify(model, Lazy())) == 3
    assert steps == ["read", "classify"] * 3


MODES = ["RGBA", "L", "P", "LA", "I;16", "CMYK", "1", "F"]


def test_classify_and_ptq_take_pil_images_of_every_mode() -> None:
    model = digits_model("shufflenet_v2_x0_5")
    pictures = [Image.new(mode, (40, 20)) for mode in MODES]
    guesses = classify(model, pictures)
    assert len(guesses) == len(MODES)
    for picture, found in zip(pictures, guesses, strict=True):
        assert found == classify(model, [load_image(picture)])[0]

    class Given(Dataset[Any]):
        def __len__(self) -> int:
            return len(pictures)

        def __getitem__(self, index: int) -> tuple[Image.Image, int]:
            return pictures[index], index

    int8 = ptq(model, Given(), transforms=PRESET, recipe="fast", progress=False)
    assert model_info(int8).recipe["calibration_images"] == len(MODES)
    labelled = open_labelled(Given(), transform=PRESET)
    assert sum(len(images) for images, _ in labelled) == len(MODES)


def test_one_picture_needs_a_list() -> None:
    model = qzoo.shufflenet_v2_x0_5(weights="DIGITS_X86_V1", quantize=True)
    for one in ("photo.jpg", Path("photo.jpg"), Image.new("L", (9, 9))):
        with pytest.raises(ArgumentError, match=r"write \[image\]"):
            classify(model, one)  # type: ignore[arg-type]


def test_a_single_logit_is_a_probability_of_its_own() -> None:
    model = qzoo.shufflenet_v2_x0_5(num_classes=1).eval()
    info = model_info(digits_model("shufflenet_v2_x0_5"))
    kwargs = {"num_classes": 1}
    attach_info(model, type(info)(info.architecture, kwargs, transforms=info.transforms))
    picture = Image.new("L", (64, 64), 128)
    preset = ImageClassification.from_dict(info.transforms or {})
    for bias in (-3.0, 0.0, 2.0):
        torch.nn.init.constant_(model.fc.bias, bias)
        with torch.inference_mode():
            logit = float(model(preset(load_image(picture))[None]))
        ((guess,),) = classify(model, [picture])
        assert guess.probability == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-6)
        assert 0.01 < guess.probability < 0.99
