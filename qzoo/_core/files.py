"""Files from outside: opened once, read into memory of our own, and written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import mmap
import os
import secrets
import stat
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import ArtifactError, QzooError

# Larger storages get pages of their own, which the system takes back as soon as one is freed; the
# heap would keep them while a model is packed from them, and need twice the memory.
_MAPPED_BYTES = 1 << 16


class RefusedError(Exception):
    """Why a file is refused: a sentence without its subject, the file (`is damaged: ...`)."""


class Span(NamedTuple):
    """A run of bytes of the file; `crc` is its CRC-32 where the format keeps one."""

    start: int
    size: int
    crc: int | None = None


def open_regular(path: str | os.PathLike[str]) -> io.FileIO:
    """Opens a regular file for reading; a pipe would make the process wait, a device never end.

    Raises:
        OSError: The file is missing, no regular one, or cannot be opened.
    """

    def at_once(name: str, flags: int) -> int:
        # A pipe that takes the file's name meanwhile is opened without waiting for its writer.
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))

    try:
        mode = os.stat(path).st_mode  # noqa: PTH116 - pathlib parses anew what may be one of millions
        if stat.S_ISREG(mode):
            file = open(path, "rb", buffering=0, opener=at_once)  # noqa: SIM115
            if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return file
            file.close()
    except ValueError as error:  # a zero byte in the name
        raise OSError(errno.EINVAL, str(error)) from None
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    raise OSError(errno.EINVAL, "it is no regular file; copy its contents into one")


class File:
    """A regular file that is open for reading; use as a context manager.

    The path is looked up once, so that all that is read is of one file, whatever takes its name
    meanwhile. Nothing stays mapped to it: what was read and verified cannot change any more.

    Attributes:
        path: As it was given.
        size: In bytes.

    Raises:
        OSError: The file is missing, no regular one, or cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._file = open_regular(path)
        self._stamp = self._now()
        self.size = self._stamp[0]

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

    def read_storage(self, span: Span) -> np.ndarray:
        """The span as a `uint8` array `[size]` of its own memory, its CRC verified."""
        if span.start + span.size > self.size:
            raise RefusedError("is cut short; fetch it again")
        if span.size >= _MAPPED_BYTES:
            storage = np.frombuffer(mmap.mmap(-1, span.size), np.uint8)
        else:
            storage = np.empty(span.size, np.uint8)
        view = storage.data
        self._read_into(span.start, view)
        _check(view, span)
        return storage

    def sha256(self) -> str:
        """Returns the hash of the whole file in hexadecimal digits, in constant memory."""
        digest = hashlib.sha256()
        buffer = memoryview(bytearray(1 << 20))
        for start in range(0, self.size, len(buffer)):
            part = buffer[: self.size - start]
            self._read_into(start, part)
            digest.update(part)
        return digest.hexdigest()

    def _read_into(self, start: int, view: memoryview) -> None:
        self._file.seek(start)
        while len(view):
            count = self._file.readinto(view)
            if not count:
                raise RefusedError("became shorter while it was read; read it again")
            view = view[count:]
        # What was hashed before and what is read now must be of one state of the file.
        if self._now() != self._stamp:
            raise RefusedError("was written to while it was read; read it again")

    def _now(self) -> tuple[int, int]:
        status = os.fstat(self._file.fileno())
        return status.st_size, status.st_mtime_ns


def _check(data: bytes | memoryview, span: Span) -> None:
    if span.crc is not None and zlib.crc32(data) != span.crc:
        raise RefusedError("is damaged: a checksum is wrong; fetch it again")


@contextlib.contextmanager
def opened(source: str | os.PathLike[str] | File) -> Iterator[File]:
    """Gives an open file for a path, or the file itself where it is open already.

    Raises:
        OSError: It cannot be opened.
    """
    if isinstance(source, File):
        yield source
        return
    with File(source) as file:
        yield file


@contextlib.contextmanager
def reading(source: str | os.PathLike[str] | File) -> Iterator[File]:
    """Opens a model's file, as `opened` does, for all that is read of it in a block.

    Raises:
        ArtifactError: It cannot be opened, or is refused.
    """
    path = source.path if isinstance(source, File) else os.fspath(source)
    try:
        with opened(source) as file:
            yield file
    except QzooError:
        raise
    except OSError as error:
        raise ArtifactError(f"{path} {not_opened(error)}.") from None
    except RefusedError as error:
        raise ArtifactError(f"{path} {error}.") from None


def not_opened(error: OSError) -> str:
    """Returns why a checkpoint cannot be opened: a sentence without its subject, the file."""
    match error:
        case FileNotFoundError():
            return "does not exist; check the path or download it first"
        case IsADirectoryError():
            return "is a directory, not a checkpoint; name a file in it"
        case _:
            return f"cannot be opened ({error.strerror or error}); check its permissions"


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes a file so that `path` holds either all of `content` or what it held before.

    Raises:
        ArtifactError: The folder is missing or read-only, the file is read-only or no regular one,
            or the disk is full.
    """
    write_files({path: content})


def write_files(contents: Mapping[str | os.PathLike[str], bytes]) -> None:
    """Writes several files, each whole or not at all, and none before all are on the disk.

    A link stays a link: the file that it names is written. A new file gets the mode that the
    process's umask allows, one that is replaced keeps its own.

    Raises:
        ArtifactError: As for `write_atomically`; no file has been changed.
    """
    written: list[tuple[Path, Path]] = []
    path: str | os.PathLike[str] = ""
    try:
        for path, content in contents.items():
            target = _target(Path(path))
            written.append((write_beside(target, content), target))
            if target.exists():
                _keep_owner_and_mode(target, written[-1][0])
        while written:
            temporary, path = written[0]
            temporary.replace(path)
            del written[0]
            sync_folder(path.parent)
    except (OSError, ValueError) as error:  # the latter of a zero byte in the name
        reason = error.strerror if isinstance(error, OSError) else None
        raise ArtifactError(f"Cannot write {os.fspath(path)}: {reason or error}.") from None
    finally:  # Ctrl-C too must not leave a temporary file behind
        for temporary, _ in written:
            temporary.unlink(missing_ok=True)


def _target(path: Path) -> Path:
    """Returns the file that is to be replaced, with all links followed.

    Raises:
        OSError: It must not be replaced.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        return Path(os.path.realpath(path))
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file; name one")
    target = Path(os.path.realpath(path))
    # The folder may allow what the file does not: replacing it. For root everything is writable.
    if not status.st_mode & 0o222 or not os.access(target, os.W_OK):
        raise PermissionError(
            errno.EACCES, "it is read-only; make it writable (chmod u+w), or name another file"
        )
    return target


def write_beside(target: Path, content: bytes) -> Path:
    """Writes a complete temporary file next to `target`, which is to take its place."""
    temporary = target.with_name(f".{target.name[:100]}.{secrets.token_hex(6)}")
    try:
        with temporary.open("xb") as file:  # with the mode that the umask allows
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _keep_owner_and_mode(target: Path, temporary: Path) -> None:
    status = target.stat()
    if hasattr(os, "chown"):
        with contextlib.suppress(OSError):  # only root may give files away
            os.chown(temporary, status.st_uid, status.st_gid)
    temporary.chmod(stat.S_IMODE(status.st_mode))


def sync_folder(folder: Path) -> None:
    """Lets new names in a folder survive a power cut, where the system can open folders at all."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
