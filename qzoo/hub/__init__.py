"""Downloads that can be trusted: `fetch` returns the local path of a verified file.

A file is resumed where a connection broke, tried again where a server failed, checked against its
hash before it gets its final name, and downloaded once however many processes ask for it. The
environment variables are described in `qzoo.hub.settings`, the layout on disk in `qzoo.hub.cache`.
"""

from __future__ import annotations

import warnings
from pathlib import Path

from ..errors import DownloadError
from . import cache, disk, http, huggingface, settings
from .cache import Entry, Expected, ReadOnlyCacheError, cache_dir
from .exchange import EMBEDDED_HINT
from .listing import CachedFile, clear_cache, list_cache
from .settings import is_offline

__all__ = [
    "CachedFile",
    "cache_dir",
    "clear_cache",
    "fetch",
    "is_cached",
    "is_offline",
    "list_cache",
]


def fetch(
    url: str,
    *,
    sha256: str | None = None,
    sha256_prefix: str | None = None,
    size: int | None = None,
    progress: bool = True,
    file_name: str | None = None,
) -> Path:
    """Returns the local path of the file at `url`, downloaded if needed and verified every time.

    Args:
        url: `https://`, `http://`, `file://` (used in place) or
            `hf://org/repo/path/to/file@revision` (revision `main` where none is given).
        sha256: All 64 hexadecimal digits of the file's hash.
        sha256_prefix: Its first digits, as torchvision's file names carry them.
        size: Bytes. Without it a body of more than 4 GiB is refused.
        progress: Whether to draw a progress bar on stderr.
        file_name: The name in the cache for an http(s) url, instead of the url's own.

    Raises:
        DownloadError: the file could not be fetched, verified or stored. A download fails at the
            latest `QZOO_TIMEOUT` seconds after it last made progress.
        ArgumentError: a hash or size that cannot be one.
    """
    expected = Expected(sha256, sha256_prefix, size)
    scheme = settings.split_url(url).scheme
    if scheme in ("http", "https"):
        return _fetch_http(url, expected, progress=progress, file_name=file_name)
    if scheme == "file":
        return _use_in_place(url, expected)
    if scheme == "hf":
        return huggingface.fetch(url, expected, progress=progress)
    raise DownloadError(
        f"{settings.redacted(url)!r} cannot be fetched; use https://, http://, file:// or hf://."
    )


def is_cached(url: str, *, file_name: str | None = None) -> bool:
    """Says whether `fetch` with the same url and name would find a local file, verified or not."""
    scheme = settings.split_url(url).scheme
    if scheme in ("http", "https"):
        return cache.entry_for(url, file_name).final.is_file()
    if scheme == "file":
        return _path_of(url).is_file()
    return scheme == "hf" and huggingface.HubFile.parse(url).cached() is not None


def _fetch_http(url: str, expected: Expected, *, progress: bool, file_name: str | None) -> Path:
    entry = cache.entry_for(url, file_name)
    # Without the lock, so that a finished file can be used from a cache that cannot be written.
    problem = _problem(entry, expected)
    if problem is None:
        return entry.final
    name = settings.redacted(url)
    if is_offline():
        state = f"is damaged in the cache ({problem})" if problem else "is not in the cache"
        raise DownloadError(
            f"{name} {state} and QZOO_OFFLINE is set; unset it to download the file, or put the "
            f"file at {entry.final} {EMBEDDED_HINT}."
        )
    try:
        with cache.locked(entry.lock, lambda: _progress_of(entry), progress=progress):
            problem = _problem(entry, expected)  # another process may have been quicker
            if problem is None:
                return entry.final
            if problem:
                warnings.warn(
                    f"{entry.final} is damaged ({problem}); it is downloaded again.",
                    UserWarning,
                    stacklevel=3,
                )
                disk.remove(entry.final)
            http.fill(settings.mirrored(entry.url), entry, expected, progress=progress)
            entry.publish()
    except DownloadError as error:
        if problem and isinstance(error, ReadOnlyCacheError):
            raise ReadOnlyCacheError(f"{entry.final} is damaged ({problem}). {error}") from error
        raise
    except OSError as error:
        raise cache.storage_error(error, entry.final) from error
    return entry.final


def _problem(entry: Entry, expected: Expected) -> str | None:
    """Says what is wrong with the cached file: None for nothing, an empty text if it is missing."""
    try:
        found = disk.status(entry.final)
    except OSError as error:
        raise cache.storage_error(error, entry.final) from error
    return "" if found is None else expected.mismatch(entry.final)


def _progress_of(entry: Entry) -> object:
    found = disk.status(entry.part)
    return None if found is None else (found.st_size, found.st_mtime_ns)


def _path_of(url: str) -> Path:
    parts = settings.split_url(url)
    if parts.hostname not in (None, "localhost"):
        raise DownloadError(f"{url!r} is on another machine; write file:///path/to/file.")
    from urllib.request import url2pathname  # with http.client and email: only where it is used

    return Path(url2pathname(parts.path))


def _use_in_place(url: str, expected: Expected) -> Path:
    path = _path_of(url)
    if not path.is_file():
        raise DownloadError(f"There is no file {path}; check the path in {url!r}.")
    problem = expected.mismatch(path)
    if problem:
        raise DownloadError(f"{path} is not the expected file: {problem}; check the path.")
    return path
