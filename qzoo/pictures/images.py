"""Reading pictures of every kind that people have into what models take."""

from __future__ import annotations

import functools
import importlib
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from .._core.files import open_regular
from .._core.process import quiet
from ..errors import ArgumentError, ImageError

#: The formats that are read, by Pillow's names, and the endings of such files. No other is even
#: tried: some of Pillow's readers start programs on what they read (EPS), and many are hardly used.
FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "AVIF": (".avif",),
}
#: Where Pillow's readers of those are that `Image.preinit` leaves out.
_PLUGINS = ("PIL.WebPImagePlugin", "PIL.TiffImagePlugin", "PIL.AvifImagePlugin")
#: Endings of picture files that a folder is searched for, in small letters.
SUFFIXES = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)
#: Larger pictures are refused before they are decoded, whatever their format.
MAX_PIXELS = 178_956_970
#: Bytes that reading a picture may take. What would take more is refused before it is decoded: RGB
#: of more than 118 million pixels, or half as many where it is turned or pixels are transparent.
MAX_MEMORY = 500_000_000
#: Bytes per pixel that a format's decoder takes besides the picture itself, measured.
_DECODER_BYTES = {"WEBP": 13, "AVIF": 8, "TIFF": 4}
#: Conversions that take much memory per pixel go through parts of so many pixels.
_TILE = 1 << 18
#: Bytes that such a part, and what else does not grow with a picture, takes.
_BESIDE = 25_000_000
#: What the camera's orientation tag asks for.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION = 0x0112


def load_image(source: str | os.PathLike[str] | Image.Image) -> Image.Image:
    """Reads a picture as 8-bit RGB.

    Grayscale, palette, CMYK and 16-bit pictures are converted (16-bit ones scaled, not cut off),
    transparent parts become white, the first frame of an animation is taken, and the camera's
    orientation tag is applied. An orientation tag that cannot be read is taken for upright.

    Args:
        source: A file of one of the `FORMATS`, or a PIL image of any mode, which is left as it is.

    Returns:
        A PIL image of mode "RGB".

    Raises:
        ArgumentError: `source` is neither.
        ImageError: The file is missing, no regular file, no picture, truncated, or would take over
            `MAX_MEMORY` bytes.
    """
    if isinstance(source, Image.Image):
        name = name_of(source)
        with _one_error(name):
            if getattr(source, "tile", None) and source.format == "EPS":
                raise ImageError(f"The picture {name} is PostScript, a program: save it as PNG.")
            return _upright_rgb(source, name)
    with _opened(source) as (image, name):
        return _upright_rgb(image, name)


def check_image(path: str | os.PathLike[str]) -> None:
    """Checks that a picture file can be read, JPEG at an eighth of its size, which is faster.

    Raises:
        ImageError: As `load_image`.
    """
    try:
        with _opened(path) as (image, _):
            image.draft("RGB", (image.width // 8, image.height // 8))
            image.load()
    except ImageError:
        load_image(path)


def transformed(
    source: str | os.PathLike[str] | Image.Image, transform: Callable[[Any], Any]
) -> Any:
    """Reads a picture and transforms it.

    Args:
        source: As `load_image` takes it.
        transform: Takes an RGB picture.

    Raises:
        ImageError: As `load_image`; or the transforms refuse the picture, whose name is then told.
    """
    picture = load_image(source)
    try:
        return transform(picture)
    except ImageError as error:
        raise ImageError(f"{name_of(source)}: {error}") from None


def name_of(source: str | os.PathLike[str] | Image.Image) -> str:
    """Returns what messages call a picture."""
    if isinstance(source, Image.Image):
        own = getattr(source, "filename", "")
        return str(own or f"given ({source.mode}, {source.width} x {source.height})")
    try:
        return os.fspath(source)
    except TypeError:
        raise ArgumentError(
            f"A picture should be a path or a PIL image, not {type(source).__name__}."
        ) from None


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[tuple[Image.Image, str]]:
    """Opens a picture file; all that goes wrong in the block is an ImageError."""
    name = name_of(path)
    with (
        _open_file(name) as file,
        _one_error(name),
        Image.open(file, formats=_formats()) as image,
    ):
        _check_size(image, name, _decoder_bytes(image, file))
        _scale_key(image)
        yield image, name


def _open_file(name: str) -> BinaryIO:
    try:
        file = io.BufferedReader(open_regular(name))
    except FileNotFoundError:
        raise ImageError(f"There is no file {name}: check the path.") from None
    except IsADirectoryError:
        raise ImageError(f"{name} is a folder: name the picture files in it.") from None
    except OSError as error:
        raise ImageError(
            f"The picture {name} cannot be opened ({error.strerror or error})."
        ) from None
    if (size := os.fstat(file.fileno()).st_size) > MAX_MEMORY:
        file.close()
        raise ImageError(
            f"The picture {name} has {size // 10**6} MB, which is too large to read safely: scale "
            "it down first."
        )
    return file


@functools.cache
def _formats() -> tuple[str, ...]:
    """Returns the formats that this Pillow can read.

    `Image.init` would import forty readers more, which takes longer than reading a picture.
    """
    Image.preinit()
    for module in _PLUGINS:
        with suppress(ImportError):
            importlib.import_module(module)
    return tuple(name for name in FORMATS if name in Image.OPEN)


@contextmanager
def _one_error(name: str) -> Iterator[None]:
    """Makes an ImageError of all that Pillow's decoders raise on damaged data: every kind."""
    try:
        with quiet():
            yield
    except ImageError:
        raise
    except (Image.DecompressionBombError, MemoryError):
        raise ImageError(_too_large(name)) from None
    except UnidentifiedImageError:
        raise ImageError(
            f"{name} is not a picture that can be read (another format, or cut off at its start): "
            f"use a whole file of {', '.join(FORMATS)}."
        ) from None
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ImageError(
            f"The picture {name} cannot be decoded, perhaps because it is truncated or damaged "
            f"({reason}): save or copy it again."
        ) from None


def _too_large(name: str) -> str:
    return (
        f"The picture {name} has more than {MAX_PIXELS // 10**6} million pixels, which is too "
        "large to read safely: scale it down first."
    )


def _check_size(image: Image.Image, name: str, decoder: int = 0, turned: bool = False) -> None:
    """Checks, before it is done, that reading or turning a picture takes no more than it may.

    Args:
        image: The picture.
        name: What to call it.
        decoder: Bytes per pixel of its decoder, which are free again when it is decoded.
        turned: Whether there will be a turned copy beside it.

    Raises:
        ImageError: It would take more than `MAX_MEMORY`.
    """
    pixels = image.width * image.height
    if pixels > MAX_PIXELS:
        raise ImageError(_too_large(name))
    own = _own_bytes(image)
    later = (own if turned else 0) + (0 if _is_plain(image) else 4)
    needed = pixels * (own + max(decoder, later)) + _BESIDE
    if needed > MAX_MEMORY:
        raise ImageError(
            f"The picture {name} has {image.width} x {image.height} pixels and would take "
            f"{needed // 10**6} MB to read, more than {MAX_MEMORY // 10**6}: scale it down first."
        )


def _is_plain(image: Image.Image) -> bool:
    return image.mode == "RGB" and not image.has_transparency_data


def _own_bytes(image: Image.Image) -> int:
    """Returns the bytes that Pillow keeps a pixel in."""
    return 1 if image.mode in ("1", "L", "P") else 2 if image.mode.startswith("I;16") else 4


def _decoder_bytes(image: Image.Image, file: BinaryIO) -> int:
    """Returns the bytes per pixel that a file's decoder takes besides the picture itself."""
    if image.format in ("JPEG", "MPO"):
        bands = len(image.getbands())
        # Coefficients of 2 bytes are gathered over all scans, where there are several.
        several = "progressive" in image.info or _scans_bands_apart(file, bands)
        return 2 * bands if several else 0
    return _DECODER_BYTES.get(str(image.format), 0)


def _scans_bands_apart(file: BinaryIO, bands: int) -> bool:
    """Says whether the first scan of a JPEG file holds fewer than all of its bands."""
    place = file.tell()
    try:
        file.seek(2)
        while len(head := file.read(4)) == 4:
            if head[:2] == b"\xff\xda":
                return file.read(1)[0] < bands
            if head[:1] != b"\xff":
                return True  # odd: better too careful
            file.seek(int.from_bytes(head[2:], "big") - 2, os.SEEK_CUR)
        return True
    finally:
        file.seek(place)


def _scale_key(image: Image.Image) -> None:
    """Brings a PNG's transparent value to the 8 bits that Pillow decodes its pixels to."""
    key, tile = image.info.get("transparency"), getattr(image, "tile", None)
    if image.format != "PNG" or key is None or not tile:
        return
    rawmode = tile[0][3]
    if rawmode in ("L;2", "L;4"):
        image.info["transparency"] = key * (85 if rawmode == "L;2" else 17)
    elif rawmode == "RGB;16B":
        image.info["transparency"] = tuple(value >> 8 for value in key)


def _upright_rgb(image: Image.Image, name: str) -> Image.Image:
    """Returns a picture as RGB, turned as its camera was held."""
    if getattr(image, "tile", None):
        _check_size(image, name)
        _load(image)
    turn = _TURNS.get(_orientation(image))
    if turn is None and _is_plain(image):
        return image
    _check_size(image, name, turned=turn is not None)
    if turn is not None:
        image = image.transpose(turn)
    result = image if _is_plain(image) else _to_rgb(image)
    result.info = {}  # tags of the picture as it was, such as its orientation
    return result


def _load(image: Image.Image) -> None:
    """Decodes a picture, which may be a file that somebody else opened."""
    path = getattr(image, "filename", "")
    try:
        # Pillow maps uncompressed TIFF files by their turned size, which scrambles turned ones;
        # what has no name is read instead.
        image.filename = ""  # type: ignore[attr-defined]
        image.load()
    finally:
        image.filename = path  # type: ignore[attr-defined]


def _orientation(image: Image.Image) -> Any:
    try:
        value = image.getexif().get(_ORIENTATION)
        return value if value in _TURNS else None
    except Exception:  # what is wrong with a tag makes no picture unreadable
        return None


def _to_rgb(image: Image.Image) -> Image.Image:
    to_grey = _grey_converter(image)
    if to_grey is None and not image.has_transparency_data:
        return image.convert("RGB")
    result = Image.new("RGB", image.size)
    for place, tile in _tiles(image):
        part = _on_white(tile) if to_grey is None else Image.fromarray(to_grey(tile))
        result.paste(part.convert("RGB"), place)
    return result


def _tiles(image: Image.Image) -> Iterator[tuple[tuple[int, int], Image.Image]]:
    """Yields a picture in parts, with their left and upper edges."""
    wide = max(1, min(image.width, _TILE))
    high = max(1, _TILE // wide)
    for left in range(0, image.width, wide):
        for top in range(0, image.height, high):
            right, bottom = min(left + wide, image.width), min(top + high, image.height)
            yield (left, top), image.crop((left, top, right, bottom))


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode == "La":
        image = image.convert("LA")
    key = image.info.get("transparency")
    if image.mode == "1":  # some versions of Pillow leave such pixels as they are
        image = image.convert("L")
        image.info["transparency"] = 255 if key else 0
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, (255, 255, 255, 255)), rgba)


def _grey_converter(image: Image.Image) -> Callable[[Image.Image], Any] | None:
    """Returns what makes 8-bit grey values, uint8 [H, W], of a tile of 16 bits or floats."""
    if image.mode == "F":
        # Floats are scaled by their range where they are not in [0, 1].
        top = max([1.0, *(float(np.nanmax(np.asarray(t), initial=0.0)) for _, t in _tiles(image))])
        return lambda tile: _rounded(np.asarray(tile).astype(np.float64), top)
    if not image.mode.startswith("I;16") and image.mode != "I":
        return None
    key = image.info.get("transparency")
    table = _rounded(np.arange(65536, dtype=np.float64), 65535.0)

    def look_up(tile: Image.Image) -> Any:
        values = np.asarray(tile)
        grey = table[values.clip(0, 65535) if image.mode == "I" else values]
        if key is not None:
            grey[values == key] = 255
        return grey

    return look_up


def _rounded(values: Any, top: float) -> Any:
    """Returns float64 values from 0 to `top`, which are overwritten, as uint8 from 0 to 255."""
    values /= top
    values *= 255.0
    np.nan_to_num(values, copy=False)
    return values.clip(0, 255, out=values).round(out=values).astype(np.uint8)
