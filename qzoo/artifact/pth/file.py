"""Bounded reads from one regular file."""

from __future__ import annotations

import io
import mmap
import os
import stat
import zlib
from pathlib import Path
from typing import NamedTuple

import torch

from qzoo.artifact.pth.inert import RefusedError

# Larger storages get pages of their own, which the system takes back as soon as one is freed; the
# heap would keep them while a model is packed from them, and need twice the memory.
_MAPPED_BYTES = 1 << 16


class Span(NamedTuple):
    """A run of bytes of the file; `crc` is its CRC-32 where the format keeps one."""

    start: int
    size: int
    crc: int | None


class File:
    """A regular file that is open for reading; use as a context manager."""

    def __init__(self, path: str) -> None:
        try:
            # Before opening it, because opening a pipe waits for its writer.
            mode = Path(path).stat().st_mode
            if stat.S_ISDIR(mode):
                raise RefusedError("is a directory, not a checkpoint; name a file in it")
            if not stat.S_ISREG(mode):
                raise RefusedError("is no regular file; copy its contents into one")
            self._file = io.FileIO(path)
            self.size = os.fstat(self._file.fileno()).st_size
        except FileNotFoundError:
            raise RefusedError("does not exist; check the path or download it first") from None
        except (OSError, ValueError) as error:
            raise RefusedError(f"cannot be opened ({error}); check its permissions") from error

    def __enter__(self) -> File:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read_bytes(self, start: int, size: int | None) -> bytes:
        """`size` bytes (or all up to the end) from `start`.

        Raises:
            RefusedError: The file ends before that.
        """
        size = self.size - start if size is None else size
        if start < 0 or size < 0 or start + size > self.size:
            raise RefusedError("is cut short; fetch it again")
        buffer = bytearray(size)
        self._read_into(start, memoryview(buffer))
        return bytes(buffer)

    def checked_bytes(self, span: Span) -> bytes:
        """The span's bytes, their CRC verified."""
        data = self.read_bytes(span.start, span.size)
        _check(data, span)
        return data

    def read_storage(self, span: Span) -> torch.Tensor:
        """The span as a `uint8` tensor `[size]` of its own memory, its CRC verified."""
        if span.start + span.size > self.size:
            raise RefusedError("is cut short; fetch it again")
        if span.size >= _MAPPED_BYTES:
            storage = torch.frombuffer(mmap.mmap(-1, span.size), dtype=torch.uint8)
        else:
            storage = torch.empty(span.size, dtype=torch.uint8, device="cpu")
        view = storage.numpy().data
        self._read_into(span.start, view)
        _check(view, span)
        return storage

    def _read_into(self, start: int, view: memoryview) -> None:
        self._file.seek(start)
        while len(view):
            count = self._file.readinto(view)
            if not count:
                raise RefusedError("became shorter while it was read; read it again")
            view = view[count:]


def _check(data: bytes | memoryview, span: Span) -> None:
    if span.crc is not None and zlib.crc32(data) != span.crc:
        raise RefusedError("is damaged: a checksum is wrong; fetch it again")
