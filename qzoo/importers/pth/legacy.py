"""Finds the pickle and the storages in the format that `torch.save` wrote before PyTorch 1.6.

Five pickles follow each other (magic number, protocol version, system information, the object, the
list of storage keys), then come the storages in the order of the list, each as an int64 count of
elements and its little-endian bytes (`torch.serialization._legacy_save`).
"""

from __future__ import annotations

from ..._core.files import File, Span
from .inert import MAX_PICKLE_BYTES, RefusedError, StorageRef, TruncatedError, shown
from .unpickler import Unpickler

_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_PROTOCOL_VERSION = 1001
_FIRST_WINDOW = 256 << 10


def read_legacy(file: File) -> tuple[object, dict[str, Span]]:
    """Unpickles the object and locates the storages that it names.

    Returns:
        The pickled object, with `inert` references for tensors, and where each storage lies.

    Raises:
        RefusedError: The file is damaged, hostile, or no such checkpoint.
    """
    # Where the pickles end is only known after reading them: try a small window, then the largest.
    for window in (_FIRST_WINDOW, MAX_PICKLE_BYTES):
        unpickler = Unpickler(file.read_bytes(0, min(window, file.size)))
        try:
            value, keys = _read_pickles(unpickler)
            break
        except TruncatedError:
            if window < file.size and window == MAX_PICKLE_BYTES:
                raise RefusedError(
                    f"is too large for a checkpoint: more than {window} bytes of pickle"
                ) from None
            if window >= file.size:
                raise
    return value, _storage_spans(file, unpickler, keys)


def _read_pickles(unpickler: Unpickler) -> tuple[object, object]:
    if unpickler.load() != _MAGIC_NUMBER:
        raise RefusedError(
            "is a pickle that torch.save did not write; load it where it was made and save the "
            "model's state_dict() with torch.save"
        )
    version = unpickler.load()
    if version != _PROTOCOL_VERSION:
        raise RefusedError("is damaged: its protocol version is not 1001")
    if not isinstance(unpickler.load(), dict):
        raise RefusedError("is damaged: its system information is no dict")
    return unpickler.load(), unpickler.load()


def _storage_spans(file: File, unpickler: Unpickler, keys: object) -> dict[str, Span]:
    named = dict(unpickler.storages)
    if not isinstance(keys, list):
        raise RefusedError("is damaged: it has no list of storages")
    spans: dict[str, Span] = {}
    position = unpickler.position
    for key in keys:
        ref: StorageRef | None = named.pop(key, None) if isinstance(key, str) else None
        if ref is None:
            raise RefusedError("is damaged: its list of storages is not that of its tensors")
        count = int.from_bytes(file.read_bytes(position, 8), "little", signed=True)
        if count != ref.count:
            raise RefusedError(
                f"is damaged: storage {shown(ref.key)} has {count} elements instead of {ref.count}"
            )
        spans[ref.key] = Span(position + 8, ref.nbytes, None)
        position += 8 + ref.nbytes
        if position > file.size:
            raise RefusedError("is cut short; fetch it again")
    if named:
        raise RefusedError("is damaged: a storage of one of its tensors is missing")
    if position != file.size:
        raise RefusedError("is damaged: something is appended to it; fetch it again")
    return spans
