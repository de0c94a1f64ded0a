"""Pictures of every kind, good and bad, against values worked out by hand or by Pillow."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qzoo.errors import ImageError
from qzoo.images import MAX_PIXELS, load_image


def _gradient(side: int = 16) -> np.ndarray:
    return np.arange(side * side, dtype=np.uint16).reshape(side, side)


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I;16", "I", "F"]
)
def test_every_mode_becomes_rgb(mode: str, tmp_path: Path) -> None:
    suffix = {"CMYK": "jpg", "YCbCr": "jpg", "HSV": None, "I": "tiff", "F": "tiff"}.get(mode, "png")
    if mode == "I;16":
        image = Image.fromarray(_gradient() * 257)
    else:
        image = Image.new("RGB", (20, 10), (200, 30, 60)).convert("L" if mode in "IF" else mode)
        image = image.convert(mode)
    if suffix is None:
        image, suffix = image.convert("RGB"), "png"
    path = tmp_path / f"picture.{suffix}"
    image.save(path)
    loaded = load_image(path)
    assert loaded.mode == "RGB"
    assert loaded.size == image.size


def test_sixteen_bits_are_scaled_not_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    Image.fromarray(_gradient() * 257).save(path)
    red = np.asarray(load_image(path))[..., 0]
    np.testing.assert_array_equal(red, _gradient().astype(np.uint8))


def test_transparent_parts_become_white(tmp_path: Path) -> None:
    path = tmp_path / "clear.png"
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (10, 20, 30, 255))
    image.save(path)
    assert np.asarray(load_image(path)).tolist() == [[[255, 255, 255], [10, 20, 30]]]


def test_orientation_tag_is_applied(tmp_path: Path) -> None:
    path = tmp_path / "phone.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: rotate by 90 degrees
    Image.new("RGB", (30, 10)).save(path, exif=exif)
    assert load_image(path).size == (10, 30)


def test_one_pixel_is_a_picture(tmp_path: Path) -> None:
    path = tmp_path / "dot.png"
    Image.new("L", (1, 1), 7).save(path)
    assert np.asarray(load_image(path)).tolist() == [[[7, 7, 7]]]


def _png_claiming(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [14_000, 20_000, 100_000])
def test_a_picture_larger_than_memory_is_refused_undecoded(side: int, tmp_path: Path) -> None:
    path = tmp_path / "huge.png"
    path.write_bytes(_png_claiming(side, side))
    assert side * side > MAX_PIXELS
    with pytest.raises(ImageError, match=r"more than 178 million pixels.*scale it down"):
        load_image(path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "bmp", "tiff"])
def test_truncated_pictures(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"whole.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ImageError, match=r"truncated|cannot be decoded|not a picture"):
        load_image(path)


def test_what_is_no_picture(tmp_path: Path) -> None:
    text = tmp_path / "notes.jpg"
    text.write_text("not a picture")
    empty = tmp_path / "empty.png"
    empty.touch()
    for path, words in [
        (text, "not a picture"),
        (empty, "not a picture"),
        (tmp_path, "is a folder"),
        (tmp_path / "missing.png", "There is no file"),
    ]:
        with pytest.raises(ImageError, match=words):
            load_image(path)


def test_damaged_pictures_never_raise_anything_else(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    noise = rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)
    for suffix in ("png", "jpg", "gif", "bmp", "tiff", "webp"):
        path = tmp_path / f"base.{suffix}"
        Image.fromarray(noise).save(path)
        base = np.frombuffer(path.read_bytes(), np.uint8)
        for _ in range(150):
            broken = base.copy()
            where = rng.integers(0, len(broken), rng.integers(1, 20))
            broken[where] = rng.integers(0, 256, len(where))
            path.write_bytes(broken.tobytes())
            try:
                assert load_image(path).mode == "RGB"
            except ImageError as error:
                assert "\n" not in str(error)
