"""The download cache: where a url's file lies, how it is checked and locked.

    <cache_dir>/files/<host>/<key of the url>/<file name>            a verified file
                                              .<file name>.part      an unfinished download
                                              .<file name>.json      its url, ETag and length
                                              .<file name>.lock
    <cache_dir>/hf/                                                  huggingface_hub's own cache

A file has its final name only after it was verified. Names are cut down to plain characters, so
nothing is ever written outside of the cache directory.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple
from urllib.parse import unquote

from .._core import strict_json
from .._core.files import File, RefusedError
from ..errors import ArgumentError, DownloadError
from . import disk, settings

MAX_BYTES = 4 << 30  # of a body whose size nobody declared; no image classifier comes near
_MAX_NAME = 120  # characters; the names next to it stay below every file system's 255 bytes
_MAX_TOTAL = 10**18  # bytes of a file, more than any file system holds
_STRONG_ETAG = re.compile(r'"[\x21\x23-\x7e]{0,1000}"')
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}
_READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}


class ReadOnlyCacheError(DownloadError):
    """The cache directory cannot be written."""


@dataclass(frozen=True)
class Expected:
    """What is known of a file before it is fetched.

    Attributes:
        sha256: All 64 hexadecimal digits.
        sha256_prefix: The first digits, as torchvision's file names carry them.
        size: Bytes.
    """

    sha256: str | None = None
    sha256_prefix: str | None = None
    size: int | None = None

    def __post_init__(self) -> None:
        if self.sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", self.sha256):
            raise ArgumentError(f"sha256 must be 64 hexadecimal digits, but it is {self.sha256!r}.")
        prefix = self.sha256_prefix
        if prefix is not None and not re.fullmatch(r"[0-9a-fA-F]{6,64}", prefix):
            raise ArgumentError(
                f"sha256_prefix must be 6 to 64 hexadecimal digits, not {prefix!r}."
            )
        if self.size is not None and self.size < 0:
            raise ArgumentError(f"size must be a number of bytes, but it is {self.size}.")

    @property
    def limit(self) -> int:
        """The most bytes that a body may have."""
        return MAX_BYTES if self.size is None else self.size

    def mismatch(self, path: Path) -> str | None:
        """Says how the file at `path` differs from what is expected; None if it does not.

        Raises:
            DownloadError: the file cannot be read.
        """
        try:
            with File(path) as file:
                if self.size is not None and file.size != self.size:
                    return f"it has {file.size} bytes where {self.size} were expected"
                if file.size > self.limit:
                    return f"it has {file.size} bytes where at most {self.limit} are accepted"
                if self.sha256 is None and self.sha256_prefix is None:
                    return None
                got = file.sha256()
        except RefusedError as error:
            return f"it {error}"
        except OSError as error:
            if error.errno in disk.NOTHING_THERE:
                return "it does not exist any more"
            if error.errno in (errno.EISDIR, errno.EINVAL):
                return "it is no file"
            raise storage_error(error, path) from error
        for want in (self.sha256, self.sha256_prefix):
            if want is not None and not got.startswith(want.lower()):
                return f"its sha256 is {got} where {want.lower()} was expected"
        return None


class Record(NamedTuple):
    """What is noted beside a download: its url, strong ETag and total length in bytes."""

    url: str | None = None
    etag: str | None = None
    total: int | None = None


@dataclass(frozen=True)
class Entry:
    """The places that belong to one url in the cache.

    Attributes:
        url: Where the file comes from.
        final: The verified file.
        part: The unfinished download.
        label: What a progress bar calls it.
    """

    url: str
    final: Path
    part: Path
    label: str

    @property
    def record(self) -> Path:
        """The JSON record of url, ETag and total length of the unfinished download."""
        return self.final.with_name(f".{self.final.name}.json")

    @property
    def lock(self) -> Path:
        """The lock that a writer holds."""
        return self.final.with_name(f".{self.final.name}.lock")

    def read_record(self) -> Record:
        """Returns the record, or an empty one where there is none that can be read."""
        return read_record(self.record)

    def write_record(self, etag: str | None, total: int | None) -> None:
        """Notes what the unfinished download is a part of, so that it can be resumed."""
        record = Record(settings.redacted(self.url), etag, total)
        disk.write_file(self.record, json.dumps(record._asdict()).encode())

    def held_bytes(self) -> int:
        """Returns the size of the unfinished download, 0 where there is none."""
        found = disk.plain(self.part)
        return 0 if found is None else found.st_size

    def open_part(self, *, append: bool) -> IO[bytes]:
        """Opens the unfinished download for writing, or begins a new one."""
        if not append:
            self.discard_part()
        return self.part.open("ab" if append else "xb")

    def discard_part(self) -> None:
        """Removes the unfinished download."""
        disk.remove(self.part)

    def publish(self) -> None:
        """Gives the verified part its final name."""
        disk.put(self.part, self.final)


def cache_dir() -> Path:
    """Returns the cache directory (`QZOO_HOME`, or `qzoo` below `torch.hub.get_dir()`).

    Asking does not create it.
    """
    home = os.environ.get("QZOO_HOME", "").strip()
    if home:
        return Path(home).expanduser().absolute()
    torch = sys.modules.get("torch")
    if torch is not None:  # where `torch.hub.set_dir` may have been called
        return Path(torch.hub.get_dir()).absolute() / "qzoo"
    usual = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "torch")
    root = Path(os.environ.get("TORCH_HOME", usual))
    return root.expanduser().absolute() / "hub" / "qzoo"


def safe_name(text: str) -> str:
    """Returns a file name of plain characters without separators, leading dots or great length."""
    name = re.sub(r"[^A-Za-z0-9._+-]", "_", text).lstrip(".") or "file"
    if len(name) > _MAX_NAME:
        stem, suffix = name[:_MAX_NAME], Path(name).suffix[-20:]
        name = stem[: _MAX_NAME - len(suffix)] + suffix
    return name


def entry_for(url: str, file_name: str | None = None) -> Entry:
    """Returns the cache's places for an http(s) url; `file_name` replaces the url's own."""
    parts = settings.split_url(url)
    if not parts.hostname:
        raise DownloadError(f"{settings.redacted(url)!r} names no host to download from.")
    name = safe_name(file_name or unquote(parts.path).rsplit("/", 1)[-1])
    # The key keeps urls apart that end in the same name.
    key = hashlib.sha256(f"{url}\n{name}".encode()).hexdigest()[:16]
    final = cache_dir() / "files" / safe_name(parts.hostname) / key / name
    return Entry(url, final, final.with_name(f".{name}.part"), label=name)


def storage_error(error: OSError, path: Path) -> DownloadError:
    """Returns the sentence for an error of the local file system."""
    if error.errno in _DISK_FULL:
        return DownloadError(
            f"The disk that holds {path.parent} is full; free some space or set QZOO_HOME to a "
            "directory on another disk, then try again."
        )
    if error.errno in _READ_ONLY:
        return ReadOnlyCacheError(
            f"{path} cannot be accessed ({error.strerror}); set QZOO_HOME to a directory that you "
            "may write."
        )
    reason = error.strerror or str(error)
    return DownloadError(
        f"{path} cannot be read or written ({reason}); check the disk, or set QZOO_HOME to "
        "another directory."
    )


@contextlib.contextmanager
def locked(lock: Path, probe: Callable[[], object], *, progress: bool) -> Iterator[None]:
    """Holds `lock` among all processes; the operating system frees it when its holder dies.

    Waits as long as the holder gets on, which is when `probe` returns something new.

    Raises:
        ReadOnlyCacheError: the lock file cannot be created.
        DownloadError: the holder made no progress for twice `QZOO_TIMEOUT` and 10 s more, in
            which it would have failed by itself.
    """
    import filelock

    patience = 2 * settings.timeout_s() + 10
    try:
        disk.make_folder(lock.parent, cache_dir())
        disk.plain(lock)
        file_lock = filelock.FileLock(lock)
        seen, since, said = probe(), time.monotonic(), False
        while True:
            try:
                file_lock.acquire(timeout=0.5, poll_interval=0.05)
                break
            except filelock.Timeout:
                if progress and not said:
                    said = True
                    name = lock.name.removeprefix(".").removesuffix(".lock")
                    print(f"qzoo: waiting for another process to fetch {name}", file=sys.stderr)
                if (now := probe()) != seen:
                    seen, since = now, time.monotonic()
                elif time.monotonic() - since > patience:
                    raise DownloadError(
                        f"Another process has held {lock} for {patience:.0f} s without progress; "
                        "end that process, then try again."
                    ) from None
    except NotImplementedError as error:
        raise DownloadError(
            f"The file system of {lock.parent} has no locks; set QZOO_HOME to a local directory."
        ) from error
    except DownloadError:
        raise
    except OSError as error:
        raise storage_error(error, lock) from error
    try:
        yield
    finally:
        file_lock.release()


def hub_lock(repository: Path) -> Path:
    """Returns the lock of one repository's folder in the Hub part of the cache."""
    return repository.parent / f".{safe_name(repository.name)}.lock"


def read_record(path: Path) -> Record:
    """Returns the record at `path`, or an empty one where there is none that can be read.

    A field that cannot be what qzoo wrote counts as unknown.
    """
    try:
        found = strict_json.parse(disk.read_note(path) or b"")
    except ValueError:
        return Record()
    if not isinstance(found, dict):
        return Record()
    url, etag, total = found.get("url"), found.get("etag"), found.get("total")
    return Record(
        url if isinstance(url, str) else None,
        strong_etag(etag) if isinstance(etag, str) else None,
        total if type(total) is int and 0 <= total < _MAX_TOTAL else None,
    )


def strong_etag(text: str) -> str | None:
    """Returns an ETag that can be sent back to ask for the rest of the same file, or None.

    Args:
        text: The header or record. A weak ETag does not name the very same bytes, and characters
            outside of ASCII cannot be sent.
    """
    return text if _STRONG_ETAG.fullmatch(text) else None
