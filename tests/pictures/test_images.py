"""Pictures of every kind, good and bad, against values worked out by hand or by Pillow."""

from __future__ import annotations

import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from qzoo.errors import ArgumentError, ImageError
from qzoo.pictures.images import MAX_PIXELS, load_image


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


def png(size: tuple[int, int], depth: int, color: int, pixels: bytes, key: bytes = b"") -> bytes:
    """A PNG file of raw rows, which begin with a filter byte each, and a transparent value."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, color, 0, 0, 0))
    transparent = chunk(b"tRNS", key) if key else b""
    body = chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + head + transparent + body


@pytest.mark.parametrize("side", [14_000, 20_000, 100_000])
def test_a_picture_larger_than_memory_is_refused_undecoded(side: int, tmp_path: Path) -> None:
    path = tmp_path / "huge.png"
    path.write_bytes(png((side, side), 8, 2, bytes(1000)))
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


#: Depth, colour type, one row of two pixels, the value that is transparent (the first pixel), and
#: the grey or colour of the second.
KEYED = {
    "grey 1": (1, 0, b"\x40", b"\0\0", (255, 255, 255)),
    "grey 2": (2, 0, b"\x60", b"\0\1", (170, 170, 170)),
    "grey 4": (4, 0, b"\x12", b"\0\1", (34, 34, 34)),
    "grey 8": (8, 0, b"\x12\x01", b"\0\x12", (1, 1, 1)),
    "grey 16": (16, 0, b"\0\x12\x80\x80", b"\0\x12", (128, 128, 128)),
    "black 16": (16, 0, b"\0\0\x40\x40", b"\0\0", (64, 64, 64)),
    "rgb 8": (8, 2, b"\1\2\3\4\5\6", b"\0\1\0\2\0\3", (4, 5, 6)),
    "rgb 16": (16, 2, b"\1\0\2\0\3\0\4\4\5\5\6\6", b"\1\0\2\0\3\0", (4, 5, 6)),
}


@pytest.mark.parametrize("kind", KEYED)
def test_a_transparent_value_is_white_at_every_depth(kind: str, tmp_path: Path) -> None:
    depth, color, row, key, other = KEYED[kind]
    path = tmp_path / "keyed.png"
    path.write_bytes(png((2, 1), depth, color, b"\0" + row, key))
    assert np.asarray(load_image(path)).tolist() == [[[255, 255, 255], list(other)]]


MODES = ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "La", "CMYK", "YCbCr", "HSV",
         "LAB", "I;16", "I;16B", "I", "F"]  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
def test_a_pil_image_of_every_mode_becomes_rgb(mode: str) -> None:
    image = Image.new(mode, (700, 30))
    loaded = load_image(image)
    assert (loaded.mode, loaded.size, image.mode) == ("RGB", (700, 30), mode)
    if mode in ("LA", "RGBA", "RGBa", "La", "PA"):
        assert loaded.getpixel((699, 29)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "CMYK", "F", "I"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_pil_image_is_the_picture_of_its_file(
    mode: str, orientation: int, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    grey = Image.fromarray(rng.integers(0, 65536, (60, 40), dtype=np.uint16))
    color = Image.fromarray(rng.integers(0, 256, (60, 40, 4), dtype=np.uint8))
    wide = grey.convert("I") if mode in ("I", "F") else grey
    image = wide.convert(mode) if mode in ("I;16", "I", "F") else color.convert(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"picture.{'tiff' if mode in ('CMYK', 'F', 'I') else 'png'}"
    image.save(path, exif=exif)
    by_path = load_image(path)
    with Image.open(path) as opened:
        by_object = load_image(opened)
    assert by_path.size == ((40, 60) if orientation == 1 else (60, 40))
    assert by_object.tobytes() == by_path.tobytes()
    plain = image if orientation == 1 else image.transpose(Image.Transpose.ROTATE_270)
    assert by_path.tobytes() == load_image(plain).tobytes()
    if mode == "RGB":
        assert by_path.tobytes() == ImageOps.exif_transpose(Image.open(path)).tobytes()
    # What is turned already is not turned again.
    assert load_image(by_path).tobytes() == by_path.tobytes()


@pytest.mark.parametrize("mode", ["I;16", "I", "F", "RGBA", "P"])
def test_parts_fit_together(mode: str) -> None:
    """Large pictures are converted part by part, which must not show."""
    values = np.arange(1100 * 530, dtype=np.int32).reshape(530, 1100) % 65536
    if mode == "P":
        image = Image.fromarray((values % 256).astype(np.uint8))
        image = image.convert("P")
        image.info["transparency"] = 9
        grey = np.where(values % 256 == 9, 255, values % 256)
    elif mode == "RGBA":
        image = Image.fromarray((values % 256).astype(np.uint8)).convert("RGBA")
        grey = values % 256
    else:
        dtype = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
        image = Image.fromarray(values.astype(dtype))
        top = values.max() if mode == "F" else 65535
        grey = (values.astype(np.float64) / top * 255).round()
    found = np.asarray(load_image(image))
    np.testing.assert_array_equal(found, np.repeat(grey[..., None], 3, axis=2))


def test_what_is_no_picture_object() -> None:
    with pytest.raises(ArgumentError, match="path or a PIL image, not ndarray"):
        load_image(np.zeros((3, 3)))  # type: ignore[arg-type]


def _exif(entries: list[tuple[int, int, int, bytes]]) -> bytes:
    """EXIF of entries as they are: tag, type, count and four bytes of value or offset."""
    body = b"".join(struct.pack("<HHI4s", *entry) for entry in sorted(entries))
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + body + bytes(4)


_SIX = (0x0112, 3, 1, b"\6\0\0\0")
ODD_EXIF = {
    "float where an integer belongs": [_SIX, (0x0100, 11, 1, struct.pack("<f", 1.5))],
    "orientation as a float": [(0x0112, 11, 1, struct.pack("<f", 6))],
    "text where a number belongs": [_SIX, (0x011A, 2, 4, b"abc\0")],
    "an offset beyond the end": [_SIX, (0x011A, 5, 1, b"\xff\xff\xff\x7f")],
    "an unknown type": [_SIX, (0x8298, 99, 1, b"\0\0\0\0")],
    "a pointer that is text": [_SIX, (0x8769, 2, 4, b"abc\0")],
    "a pointer that is a float": [_SIX, (0x8769, 11, 1, struct.pack("<f", 8))],
    "a count of 4 billion": [_SIX, (0x010F, 1, 2**32 - 1, b"\0\0\0\0")],
}


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("kind", ODD_EXIF)
def test_odd_exif_leaves_the_picture_as_it_is(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "phone.jpg"
    Image.new("RGB", (30, 10), (9, 99, 199)).save(path, exif=_exif(ODD_EXIF[kind]))
    assert load_image(path).size == (10, 30)
    assert load_image(Image.open(path)).size == (10, 30)


@pytest.mark.parametrize("value", [b"\0\0\0\0", b"\x09\0\0\0", b"\xff\xff\xff\xff"])
def test_an_orientation_that_does_not_exist_is_upright(value: bytes, tmp_path: Path) -> None:
    path = tmp_path / "phone.jpg"
    Image.new("RGB", (30, 10)).save(path, exif=_exif([(0x0112, 3, 1, value)]))
    assert load_image(path).size == (30, 10)


def test_readers_in_threads_leave_the_filters_of_warnings_alone(tmp_path: Path) -> None:
    path = tmp_path / "odd.jpg"
    Image.new("RGB", (30, 10)).save(path, exif=_exif(ODD_EXIF["a count of 4 billion"]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = list(warnings.filters)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(load_image, [path] * 200))
        assert list(warnings.filters) == before
