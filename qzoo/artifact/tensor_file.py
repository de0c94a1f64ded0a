"""Reads safetensors files into memory of our own, from an open file.

The package safetensors maps files instead: a tensor that it gives changes when the file does, and
is gone, with the process, when the file is cut short. It also takes the last of two tensors of one
name. The format is at https://huggingface.co/docs/safetensors/index#format.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from .._core import strict_json
from .._core.files import File, RefusedError, Span

#: The header of the largest model of the zoo takes 100 kB.
MAX_HEADER_BYTES = 8 * 2**20
MAX_TENSORS = 1 << 15
MAX_DIMENSIONS = 16
_MAX_SIZE = 1 << 40

_DTYPES: dict[str, np.dtype[Any]] = {
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),  # the upper halves of float32 numbers, which NumPy has no type for
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
}


class OtherKindError(RefusedError):
    """The file is no safetensors file at all."""


class TensorFile(NamedTuple):
    """What a safetensors file holds: texts by name, and arrays by name in stored order."""

    metadata: dict[str, str]
    arrays: dict[str, np.ndarray]


class _Place(NamedTuple):
    name: str
    dtype: str
    shape: list[int]
    start: int
    end: int


def read_metadata(file: File) -> dict[str, str]:
    """Returns only the texts of an open safetensors file; see `read_tensors` for the errors."""
    metadata, _, _ = _header(file)
    return metadata


def read_tensors(file: File) -> TensorFile:
    """Reads an open safetensors file; each array has memory of its own.

    Numbers stored as bfloat16 come as float32, which has them all.

    Raises:
        RefusedError: The file is no safetensors file, is damaged or cut short, or holds a dtype
            that no model of the zoo has.
    """
    metadata, places, begin = _header(file)
    arrays = {}
    for name, dtype, shape, start, end in places:
        array = file.read_storage(Span(begin + start, end - start)).view(_DTYPES[dtype])
        if dtype == "BF16":
            array = (array.astype("<u4") << 16).view("<f4")
        arrays[name] = array.reshape(shape)
    return TensorFile(metadata, arrays)


def _header(file: File) -> tuple[dict[str, str], list[_Place], int]:
    """Returns metadata, tensors in the order of their bytes, and where the bytes begin."""
    if file.size < 8:
        raise RefusedError("is truncated: it has fewer than 8 bytes; fetch or save it again")
    head = file.read_bytes(0, min(9, file.size))
    length = int.from_bytes(head[:8], "little")
    if length > MAX_HEADER_BYTES or head[8:] not in (b"{", b""):
        raise OtherKindError("is no safetensors file, or has a header of absurd length")
    text = file.read_bytes(8, length)
    try:
        header = strict_json.parse(text.decode())
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
            raise ValueError("its metadata are not texts")
        if len(header) > MAX_TENSORS:
            raise ValueError(f"it names more than {MAX_TENSORS} tensors")
        places = sorted((_place(name, entry) for name, entry in header.items()), key=_order)
    except ValueError as error:
        raise RefusedError(f"has a damaged header: {str(error)[:200]}; fetch it again") from None
    _check_places(places, file.size - 8 - length)
    return metadata, places, 8 + length


def _order(place: _Place) -> tuple[int, int]:
    return place.start, place.end


def _place(name: str, entry: Any) -> _Place:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"tensor {name[:80]!r} lacks its dtype, shape or place")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise ValueError(
            f"tensor {name[:80]!r} has the dtype {str(dtype)[:40]!r}, which no model has"
        )
    if not _are_sizes(shape) or len(shape) > MAX_DIMENSIONS:
        raise ValueError(f"tensor {name[:80]!r} has an impossible shape")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise ValueError(f"tensor {name[:80]!r} has an impossible place")
    place = _Place(name, dtype, shape, *offsets)
    if place.end - place.start != math.prod(shape) * _DTYPES[dtype].itemsize or (
        math.prod(max(1, size) for size in shape) >= _MAX_SIZE
    ):
        raise ValueError(f"tensor {name[:80]!r} has another size than its shape")
    return place


def _are_sizes(values: object) -> bool:
    return isinstance(values, list) and all(type(v) is int and 0 <= v < _MAX_SIZE for v in values)


def _check_places(places: list[_Place], size: int) -> None:
    """Checks that each byte after the header belongs to exactly one tensor."""
    end = 0
    for place in places:
        if place.start != end:
            raise RefusedError(
                f"is damaged: the bytes of tensor {place.name[:80]!r} overlap others or leave a "
                "gap; fetch it again"
            )
        end = place.end
    if end > size:
        raise RefusedError("is truncated or damaged: it ends before its tensors do; fetch it again")
    if end < size:
        raise RefusedError("is damaged: it goes on after its tensors; fetch it again")
