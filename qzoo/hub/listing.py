"""What lies in the cache, and its removal."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from . import disk
from .cache import cache_dir, hub_lock, read_record, storage_error


@dataclass(frozen=True)
class CachedFile:
    """One file in the cache.

    Attributes:
        path: Where it lies.
        size: Bytes.
        url: Where it came from, without credentials; None if that is not known.
        complete: False for the rest of an interrupted download.
    """

    path: Path
    size: int
    url: str | None
    complete: bool = True


def list_cache() -> list[CachedFile]:
    """Returns every file in the cache, also the rests of interrupted downloads.

    Raises:
        DownloadError: the cache directory cannot be read.
    """
    root = cache_dir()
    try:
        found = list(_downloads(root / "files"))
        for repository in _repositories(root):
            found.extend(_hub_files(repository))
    except OSError as error:
        raise storage_error(error, root) from error
    return found


def clear_cache() -> list[CachedFile]:
    """Removes every file from the cache and returns what was removed.

    Files that a process is fetching at the moment are left alone, and so is everything in
    `cache_dir()` that the downloads did not put there.

    Raises:
        DownloadError: a file cannot be removed.
    """
    root, removed = cache_dir(), []
    for file in _downloads(root / "files"):
        name = file.path.name if file.complete else file.path.name[1:].removesuffix(".part")
        record = file.path.with_name(f".{name}.json")
        if _remove(file.path.with_name(f".{name}.lock"), [file.path, record]):
            removed.append(file)
    for repository in _repositories(root):
        files = list(_hub_files(repository))
        if _remove(hub_lock(repository), [repository]):
            removed.extend(files)
    return removed


def _remove(lock: Path, paths: list[Path]) -> bool:
    """Removes the paths while holding the lock; False if another process holds it."""
    import filelock

    # The lock file itself stays: without it two processes could each hold "the" lock.
    try:
        disk.plain(lock)
        with filelock.FileLock(lock, timeout=0):
            for path in paths:
                disk.remove(path)
    except filelock.Timeout:
        return False
    except OSError as error:
        raise storage_error(error, lock) from error
    return True


def _downloads(files: Path) -> Iterator[CachedFile]:
    for host in disk.subfolders(files):
        for path in (path for key in disk.subfolders(host) for path in disk.files_in(key)):
            name = path.name
            if not name.startswith("."):
                yield from _cached(path, read_record(path.with_name(f".{name}.json")).url)
            elif name.endswith(".part"):
                record = read_record(path.with_name(name.removesuffix(".part") + ".json"))
                yield from _cached(path, record.url, complete=False)


def _repositories(root: Path) -> list[Path]:
    return [p for p in disk.files_in(root / "hf") if p.name.startswith("models--")]


def _hub_files(repository: Path) -> Iterator[CachedFile]:
    prefix = "hf://" + repository.name.removeprefix("models--").replace("--", "/", 1)
    snapshots = repository / "snapshots"
    for commit in disk.subfolders(snapshots):
        for folder, _, names in os.walk(commit):
            for path in sorted(Path(folder, name) for name in names):
                inner = path.relative_to(commit).as_posix()
                yield from _cached(path, f"{prefix}/{inner}@{commit.name}")
    for path in disk.files_in(repository / "blobs"):
        if path.name.endswith(".incomplete"):
            yield from _cached(path, None, complete=False)


def _cached(path: Path, url: str | None, *, complete: bool = True) -> Iterator[CachedFile]:
    try:
        found: os.stat_result | None = path.stat()
    except OSError:  # a link that leads nowhere; or another process finished or removed it since
        found = disk.status(path)
    if found is not None:
        yield CachedFile(path, found.st_size, url, complete)
