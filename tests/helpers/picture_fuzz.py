"""Damaged pictures by the thousand: bytes changed blindly, and with knowledge of formats.

By hand, many of them, with the figures that matter at the end:

    python -m tests.helpers.picture_fuzz 30000 [SEED]
"""

from __future__ import annotations

import io
import resource
import struct
import sys
import tempfile
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, features

from qzoo.errors import ImageError
from qzoo.pictures.images import FORMATS, check_image, load_image

Random = np.random.Generator

#: Chunks that are added to PNG files, and how segments that are added to JPEG files begin.
CHUNKS = (
    b"tRNS", b"PLTE", b"iCCP", b"gAMA", b"zTXt", b"iTXt", b"acTL", b"fcTL", b"fdAT", b"pHYs",
    b"sRGB", b"cHRM", b"IDAT", b"tEXt",
)  # fmt: skip
SEGMENTS = (
    b"", b"Exif\0\0", b"MPF\0II*\0", b"ICC_PROFILE\0\1\1", b"Adobe", b"Photoshop 3.0\0",
    b'http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation="9">',
)  # fmt: skip
#: Numbers that break arithmetic on sizes and offsets.
EDGES = (0, 1, 2, 7, 255, 256, 32767, 65535, 65536, 2**24, 2**31 - 1, 2**31, 2**32 - 1)


def _exif(rng: Random | None = None) -> bytes:
    """EXIF with an orientation; with a generator, of entries of random tags, types and values."""
    tags = [0x0112, 0x010F, 0x011A, 0x0128, 0x8769, 0x8825, 0xA005, 0x0100, 0x014A, 0x02BC, 0x8298]
    entries = [(0x0112, 3, 1, b"\6\0\0\0"), (0x010F, 2, 4, b"me\0\0")]
    if rng is not None:
        entries = []
        for tag in rng.choice(tags, rng.integers(1, 9)):
            count = int(rng.choice([0, 1, 1, 1, 2, 4, 9, *EDGES]))
            value = struct.pack("<f", 6) if rng.random() < 0.3 else rng.bytes(4)
            if rng.random() < 0.3:
                value = struct.pack("<I", int(rng.choice([6, 8, 10, 200, *EDGES])))
            entries.append((int(tag), int(rng.integers(0, 15)), count, value))
    body = b"".join(struct.pack("<HHI4s", *entry) for entry in entries)
    tail = struct.pack("<I", 8 if rng is not None and rng.random() < 0.2 else 0)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + body + tail + bytes(40)


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def png_chunks(content: bytes) -> list[tuple[bytes, bytes]]:
    """Takes a PNG file apart into pairs of a kind and a body."""
    chunks, place = [], 8
    while place + 12 <= len(content):
        size = int.from_bytes(content[place : place + 4], "big")
        chunks.append((content[place + 4 : place + 8], content[place + 8 : place + 8 + size]))
        place += 12 + size
    return chunks


def png_file(chunks: list[tuple[bytes, bytes]]) -> bytes:
    """Puts chunks together, with their lengths and check sums."""
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


def _png(color: int, depth: int, interlaced: bool, extra: list[tuple[bytes, bytes]]) -> bytes:
    """A PNG of a kind that Pillow does not write: of rows of noise, or of interlaced ones."""
    rng = np.random.default_rng(depth + color)
    bands = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color]
    sizes = [(2, 2), (2, 2), (4, 2), (4, 4), (8, 4), (8, 8), (16, 8)] if interlaced else [(16, 16)]
    rows = b""
    for width, height in sizes:
        size = -(-width * bands * depth // 8)
        rows += b"".join(b"\0" + rng.bytes(size) for _ in range(height))
    head = struct.pack(">IIBBBBB", 16, 16, depth, color, 0, 0, int(interlaced))
    data = [(b"IHDR", head), *extra, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return png_file(data)


@cache
def seeds() -> dict[str, bytes]:
    """Whole files of every format and many of its kinds; small, so that many can be tried."""
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 256, (24, 20, 3), dtype=np.uint8))
    rgba = Image.fromarray(rng.integers(0, 256, (24, 20, 4), dtype=np.uint8))
    grey, deep = rgb.convert("L"), Image.fromarray(rng.integers(0, 65536, (24, 20), np.uint16))
    palette = rgb.quantize(16)
    colors = (b"PLTE", bytes(range(48)))
    made = {
        "jpeg exif": _saved(rgb, "JPEG", exif=_exif()),
        "jpeg progressive": _saved(rgb, "JPEG", progressive=True),
        "jpeg grey": _saved(grey, "JPEG"),
        "jpeg cmyk": _saved(rgb.convert("CMYK"), "JPEG"),
        "mpo": _saved(rgb, "MPO", save_all=True, append_images=[rgb]),
        "png rgb": _saved(rgb, "PNG", exif=_exif()[6:]),
        "png rgba": _saved(rgba, "PNG"),
        "png 16": _saved(deep, "PNG"),
        "png 16 keyed": _png(0, 16, False, [(b"tRNS", b"\0\7")]),
        "png rgb 16 keyed": _png(2, 16, False, [(b"tRNS", b"\0\7\0\7\0\7")]),
        "png palette": _saved(palette, "PNG", transparency=b"\0\x80"),
        "png grey 2 keyed": _png(0, 2, False, [(b"tRNS", b"\0\1")]),
        "png bits keyed": _png(0, 1, False, [(b"tRNS", b"\0\1")]),
        "png interlaced": _png(2, 8, True, []),
        "png interlaced palette": _png(3, 4, True, [colors, (b"tRNS", b"\0\1\2")]),
        "png interlaced 16": _png(6, 16, True, []),
        "apng": _saved(rgba, "PNG", save_all=True, append_images=[rgb, rgba]),
        "gif": _saved(palette, "GIF", transparency=3),
        "gif animated": _saved(palette, "GIF", save_all=True, append_images=[grey]),
        "bmp": _saved(rgb, "BMP"),
        "bmp palette": _saved(palette, "BMP"),
        "tiff": _saved(rgb, "TIFF", exif=_exif()),
        "tiff lzw": _saved(rgba, "TIFF", compression="tiff_lzw"),
        "tiff jpeg": _saved(rgb, "TIFF", compression="jpeg"),
        "tiff deflate 16": _saved(deep, "TIFF", compression="tiff_adobe_deflate"),
        "tiff float": _saved(grey.convert("F"), "TIFF"),
        "tiff group4": _saved(grey.convert("1"), "TIFF", compression="group4"),
        "ppm": _saved(rgb, "PPM"),
        "pgm": _saved(grey, "PPM"),
        "pbm": _saved(grey.convert("1"), "PPM"),
        "pgm 16": b"P5 20 24 65535\n" + np.asarray(deep).astype(">u2").tobytes(),
        "pgm odd": b"P5 20 24 1000\n" + np.asarray(deep).astype(">u2").tobytes(),
        "ppm plain": b"P3 3 2 255 " + b" ".join(b"%d" % (i * 14) for i in range(18)) + b"\n",
        "pfm": _saved(grey.convert("F"), "PPM"),
    }
    if features.check("webp"):
        made["webp"] = _saved(rgb, "WEBP", exif=_exif()[6:])
        made["webp lossless"] = _saved(rgba, "WEBP", lossless=True)
        made["webp animated"] = _saved(rgba, "WEBP", save_all=True, append_images=[rgb])
    if features.check("avif"):
        made["avif"] = _saved(rgb, "AVIF", exif=_exif()[6:], speed=10)
        made["avif rgba"] = _saved(rgba, "AVIF", speed=10)
    return made


def _bytes(content: bytes, rng: Random) -> bytes:
    """Other bytes, mostly near the start, where the structure is."""
    broken = np.frombuffer(content, np.uint8).copy()
    reach = len(broken) if rng.random() < 0.5 else min(len(broken), 200)
    where = rng.integers(0, reach, rng.integers(1, 12))
    broken[where] = rng.integers(0, 256, len(where))
    return broken.tobytes()


def _number(content: bytes, rng: Random) -> bytes:
    """An extreme number of 1, 2 or 4 bytes somewhere, in either order."""
    broken, size = bytearray(content), int(rng.choice([1, 2, 4]))
    reach = len(broken) - size if rng.random() < 0.3 else min(len(broken) - size, 120)
    place = int(rng.integers(0, max(1, reach)))
    value = int(rng.choice(EDGES)) % 256**size
    broken[place : place + size] = value.to_bytes(size, "big" if rng.random() < 0.5 else "little")
    return bytes(broken)


def _length(content: bytes, rng: Random) -> bytes:
    """Cut off, doubled in part, or with a part missing."""
    one, other = sorted(rng.integers(0, len(content), 2).tolist())
    kind = rng.integers(0, 3)
    if kind == 0:
        return content[:other]
    return content[:other] + content[one:] if kind == 1 else content[:one] + content[other:]


def _png_structure(content: bytes, rng: Random) -> bytes:
    """Chunks with other contents, sizes and places, and check sums that are right."""
    chunks = png_chunks(content)
    for _ in range(rng.integers(1, 4)):
        place = int(rng.integers(0, len(chunks)))
        kind, body = chunks[place]
        change = rng.integers(0, 6)
        if change == 0 and kind == b"IHDR":
            size = [int(rng.choice([1, 16, 20, 3000, *EDGES])) for _ in range(2)]
            rest = [int(rng.choice([1, 2, 4, 8, 16])), int(rng.choice([0, 2, 3, 4, 6]))]
            body = struct.pack(">II", *size) + bytes([*rest, 0, 0, int(rng.integers(0, 2))])
        elif change == 1 and body:
            body = _bytes(body, rng)
        elif change == 2:
            body = body[: int(rng.integers(0, len(body) + 1))]
        elif change == 3:
            body += rng.bytes(int(rng.integers(1, 30)))
        elif change == 4:
            new = (CHUNKS[int(rng.integers(0, len(CHUNKS)))], rng.bytes(int(rng.integers(0, 40))))
            chunks.insert(place, new if rng.random() < 0.7 else (b"eXIf", _exif(rng)[6:]))
            continue
        elif len(chunks) > 1:
            chunks.pop(place)
            continue
        chunks[place] = (kind, body)
    return png_file(chunks)


def _jpeg_structure(content: bytes, rng: Random) -> bytes:
    """Other EXIF, other segments, or another size."""
    if rng.random() < 0.6:
        exif = _exif(rng)
        start = content[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
        return start + content[2:]
    frame = max(content.find(b"\xff\xc0"), content.find(b"\xff\xc2"))
    if frame > 0 and rng.random() < 0.5:
        size = [int(rng.choice([1, 20, 5000, 65535])) for _ in range(2)]
        return content[: frame + 5] + struct.pack(">HH", *size) + content[frame + 9 :]
    body = rng.bytes(int(rng.integers(0, 60)))
    marker = bytes([255, int(rng.choice([0xE0, 0xE1, 0xE2, 0xED, 0xEE, 0xDB, 0xC4, 0xDD, 0xFE]))])
    head = SEGMENTS[int(rng.integers(0, len(SEGMENTS)))]
    segment = marker + struct.pack(">H", len(head + body) + 2) + head + body
    return content[:2] + segment + content[2:]


def _tiff_structure(content: bytes, rng: Random) -> bytes:
    """An entry of the first directory with another type, count or value."""
    broken = bytearray(content)
    (place,) = struct.unpack_from("<I", broken, 4)
    if content[:2] != b"II" or place + 2 > len(broken):
        return _bytes(content, rng)
    (count,) = struct.unpack_from("<H", broken, place)
    for _ in range(rng.integers(1, 3)):
        entry = place + 2 + 12 * int(rng.integers(0, max(1, count)))
        if entry + 12 > len(broken):
            break
        what = rng.integers(0, 3)
        if what == 0:
            struct.pack_into("<H", broken, entry + 2, int(rng.integers(0, 18)))
        else:
            values = [1, 2, 3, 5, 6, 7, 8, 16, 32, 32773, 5000, *EDGES]
            struct.pack_into("<I", broken, entry + (4 if what == 1 else 8), int(rng.choice(values)))
    return bytes(broken)


def _text_structure(content: bytes, rng: Random) -> bytes:
    """The header of a PPM file with other words."""
    words = content[:14].split()
    values = [b"0", b"1", b"-1", b"65536", b"99999", b"1e9", b"255", b"65535", b"nan", b"P6", b"#"]
    words[int(rng.integers(0, len(words)))] = values[int(rng.integers(0, len(values)))]
    return b" ".join(words) + b"\n" + content[14:]


#: Knowledge of formats, by the first word of a seed's name.
STRUCTURE: dict[str, Callable[[bytes, Random], bytes]] = {
    "jpeg": _jpeg_structure, "mpo": _jpeg_structure, "png": _png_structure, "apng": _png_structure,
    "tiff": _tiff_structure, "ppm": _text_structure, "pgm": _text_structure,
    "pbm": _text_structure, "pfm": _text_structure,
}  # fmt: skip


def mutants(count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Yields damaged files with the names of what they were; the same for the same seed."""
    names = list(seeds())
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        name = names[number % len(names)]
        content = seeds()[name]
        for _ in range(rng.integers(1, 3)):
            ways = [_bytes, _number, _length]
            known = STRUCTURE.get(name.split()[0])
            change = known if known and rng.random() < 0.5 else ways[rng.integers(0, 3)]
            try:
                content = change(content, rng) or b"\0"
            except (struct.error, ValueError, IndexError):
                break  # nothing of the structure is left to change
        yield f"{name} #{number}", content


def _object(path: Path) -> None:
    """Reads a file that somebody else opened."""
    try:
        image = Image.open(path, formats=list(FORMATS))
    except Exception:  # not qzoo's to tell
        return
    with image:
        load_image(image)


#: All ways to a picture.
READERS: tuple[Callable[[Path], object], ...] = (load_image, check_image, _object)


def foreign_errors(name: str, path: Path) -> list[str]:
    """Reads a damaged file in all ways; returns what was raised besides ImageError."""
    found = []
    for reader in READERS:
        try:
            picture = reader(path)
            if isinstance(picture, Image.Image) and picture.mode != "RGB":
                found.append(f"{name}: {picture.mode} instead of RGB")
        except ImageError as error:
            if "\n" in str(error):
                found.append(f"{name}: several lines: {error}")
        except Exception as error:
            found.append(f"{name}: {type(error).__name__}: {error}")
    return found


def main(count: int, seed: int) -> None:
    """Reads mutants, and prints what was wrong and the worst of time and memory."""
    seeds()
    foreign: list[str] = []
    slowest = (0.0, "")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Image.open in _object
        path = Path(folder) / "mutant"
        for name, content in mutants(count, seed):
            path.write_bytes(content)
            start = time.process_time()
            foreign += foreign_errors(name, path)
            slowest = max(slowest, (time.process_time() - start, name))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(f"{count} files from seed {seed}, each read in {len(READERS)} ways:")
    print(f"{len(foreign)} foreign errors, slowest {slowest[0]:.2f} s ({slowest[1]}), ", end="")
    print(f"memory grew by {grown * 1024 / 1e6:.0f} MB")
    print(*foreign[:20], sep="\n")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
