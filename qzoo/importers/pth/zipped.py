"""Finds the pickle and the storages in `torch.save`'s zip format (PyTorch 1.6 and later).

The zip directory is read here and not by `zipfile`, so that every length is checked before
anything is allocated. `torch.save` compresses nothing, so a compressed entry is refused, and with
it every zip bomb: entries that neither are compressed nor overlap cannot exceed the file. Format:
https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from ..._core.files import File, Span
from .inert import (
    MAX_PICKLE_BYTES,
    MAX_ZIP_DIRECTORY,
    MAX_ZIP_ENTRIES,
    RefusedError,
    StorageRef,
    shown,
)
from .unpickler import Unpickler

MAGIC = b"PK\x03\x04"
_END = struct.Struct("<4s4H2IH")
_LOCATOR = struct.Struct("<4sIQI")
_END64 = struct.Struct("<4sQ2H2I4Q")
_ENTRY = struct.Struct("<4s6H3I5H2I")
_LOCAL = struct.Struct("<4s5H3I2H")
_FULL = 0xFFFFFFFF  # "see the zip64 field"


class _Member(NamedTuple):
    name: str
    header: int
    size: int
    crc: int


def read_zip(file: File) -> tuple[object, dict[str, Span]]:
    """Unpickles `data.pkl` and locates the storages that it names.

    Returns:
        The pickled object, with `inert` references for tensors, and where each storage lies.

    Raises:
        RefusedError: The archive is damaged, hostile, or of another kind (TorchScript).
    """
    entries = _directory(file)
    names = {entry.name for entry in entries}
    if len(names) != len(entries):
        raise RefusedError("is damaged: its zip archive holds two entries of one name")
    spans = _data_spans(file, entries)
    roots = [n[: -len("data.pkl")] for n in names if n.endswith("/data.pkl") and n.count("/") == 1]
    if len(roots) != 1:
        raise RefusedError("is a zip archive but no PyTorch checkpoint: it holds no data.pkl")
    (root,) = roots
    order = spans.get(f"{root}byteorder")
    if order is not None and (order.size > 6 or file.checked_bytes(order) != b"little"):
        raise RefusedError(
            "was written on a big-endian machine; save it again on a little-endian one"
        )
    pickled = spans[f"{root}data.pkl"]
    if pickled.size > MAX_PICKLE_BYTES:
        raise RefusedError(f"is too large for a checkpoint: {pickled.size} bytes of pickle")
    unpickler = Unpickler(file.checked_bytes(pickled))
    value = unpickler.load()
    return value, {
        key: _storage_span(ref, spans.get(f"{root}data/{key}"))
        for key, ref in unpickler.storages.items()
    }


def _storage_span(ref: StorageRef, span: Span | None) -> Span:
    if span is None:
        raise RefusedError(f"is damaged: storage {shown(ref.key)} is missing")
    if span.size != ref.nbytes:
        raise RefusedError(
            f"is damaged: storage {shown(ref.key)} has {span.size} bytes instead of {ref.nbytes}"
        )
    return span


def _directory(file: File) -> list[_Member]:
    """The central directory's entries."""
    count, size, start = _directory_place(file)
    if count > MAX_ZIP_ENTRIES or size > MAX_ZIP_DIRECTORY:
        raise RefusedError(f"is too large for a checkpoint: a zip archive of {count} entries")
    raw = file.read_bytes(start, size)
    entries = []
    position = 0
    for _ in range(count):
        if position + _ENTRY.size > size:
            raise RefusedError("is damaged: its zip directory is cut short")
        fields = _ENTRY.unpack_from(raw, position)
        flags, method = fields[3:5]
        crc, packed, plain, name_length, extra_length, comment_length = fields[7:13]
        header = fields[16]
        begin = position + _ENTRY.size
        extra_begin = begin + name_length
        position = extra_begin + extra_length + comment_length
        if fields[0] != b"PK\x01\x02" or position > size:
            raise RefusedError("is damaged: its zip directory is cut short")
        name = _checked_name(raw[begin:extra_begin])
        if name.partition("/")[2].startswith(("code/", "constants.pkl")):
            raise RefusedError(
                "is a TorchScript archive; load it with torch.jit.load and save its state_dict()"
            )
        if flags & 0x2041:
            raise RefusedError("is an encrypted zip archive, which torch.save never writes")
        plain, packed, header = _wide(
            raw[extra_begin : extra_begin + extra_length], plain, packed, header
        )
        if method != 0 or packed != plain:
            raise RefusedError(
                f"holds a compressed zip entry ({shown(name)}), which torch.save never writes; "
                "load it with PyTorch and save it again"
            )
        if header + _LOCAL.size + plain > start:
            raise RefusedError(f"is damaged: its zip entry {shown(name)} lies outside of the file")
        entries.append(_Member(name, header, plain, crc))
    if position != size:
        raise RefusedError("is damaged: its zip directory has a wrong length")
    return entries


def _directory_place(file: File) -> tuple[int, int, int]:
    """Count of entries, size and offset of the central directory; it ends before its own end."""
    cut = RefusedError(
        "is cut short or has something appended, its zip directory is not at its end; "
        "fetch it again"
    )
    tail = file.read_bytes(max(0, file.size - _END.size - _LOCATOR.size), None)
    if len(tail) < _END.size or tail[-_END.size : -_END.size + 4] != b"PK\x05\x06":
        raise cut
    end = file.size - _END.size
    _, disk, start_disk, here, count, size, start, comment = _END.unpack(tail[-_END.size :])
    if disk or start_disk or here != count or comment:
        raise cut
    locator = tail[: -_END.size]
    if len(locator) == _LOCATOR.size and locator.startswith(b"PK\x06\x07"):
        _, _, end, _ = _LOCATOR.unpack(locator)
        if end + _END64.size > file.size:
            raise cut
        fields = _END64.unpack(file.read_bytes(end, _END64.size))
        here, count, size, start = fields[6:10]
        if fields[0] != b"PK\x06\x06" or here != count:
            raise cut
    if start + size > end:
        raise cut
    return count, size, start


def _wide(extra: bytes, plain: int, packed: int, header: int) -> tuple[int, int, int]:
    """The three numbers with those that did not fit 32 bits taken from the zip64 field."""
    numbers = [plain, packed, header]
    wanted = [index for index, number in enumerate(numbers) if number == _FULL]
    while wanted and len(extra) >= 4:
        kind, length = struct.unpack_from("<HH", extra)
        body, extra = extra[4 : 4 + length], extra[4 + length :]
        if kind == 1 and len(body) >= 8 * len(wanted):
            for index, number in zip(
                wanted, struct.unpack_from(f"<{len(wanted)}Q", body), strict=True
            ):
                numbers[index] = number
            return numbers[0], numbers[1], numbers[2]
    if wanted:
        raise RefusedError("is damaged: a zip64 field is missing")
    return plain, packed, header


def _checked_name(raw: bytes) -> str:
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise RefusedError("is damaged: the name of a zip entry is no text") from None
    parts = name.split("/")
    if not name or name[0] == "/" or ".." in parts or any(c in name for c in "\\:\0"):
        raise RefusedError(
            f"holds a zip entry with an unsafe name ({shown(name)}), which torch.save never writes"
        )
    return name


def _data_spans(file: File, entries: list[_Member]) -> dict[str, Span]:
    """Where each entry's bytes lie, once it is sure that no two entries share any."""
    spans = {}
    free = 0
    for entry in sorted(entries, key=lambda entry: entry.header):
        if entry.header < free:
            raise RefusedError(f"is damaged: its zip entry {shown(entry.name)} overlaps another")
        fields = _LOCAL.unpack(file.read_bytes(entry.header, _LOCAL.size))
        begin = entry.header + _LOCAL.size + fields[9] + fields[10]
        free = begin + entry.size
        name = file.read_bytes(entry.header + _LOCAL.size, fields[9])
        if fields[0] != MAGIC or name != entry.name.encode() or free > file.size:
            raise RefusedError(f"is damaged: its zip entry {shown(entry.name)} has a wrong header")
        spans[entry.name] = Span(begin, entry.size, entry.crc)
    return spans
