"""The cache's own places on disk, where anything may lie: a link, a pipe, a folder, damage.

What qzoo puts into its cache are folders and ordinary files. Something else in their place is
neither opened (a pipe never answers) nor followed (a link may lead out of the cache): it is removed
with a warning, and the file is fetched again.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import warnings
from pathlib import Path

from .._core.files import sync_folder, write_beside

MAX_NOTE_BYTES = 1 << 16  # of a record; they have a few hundred
#: Errors of a path that leads nowhere: the last two where a step is a file, or a link to itself.
NOTHING_THERE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}
_KINDS = (
    (stat.S_ISLNK, "a link"),
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
)


def status(path: Path) -> os.stat_result | None:
    """Returns what lies at a place, links not followed; None for nothing."""
    try:
        return path.lstat()
    except OSError as error:
        if error.errno in NOTHING_THERE:
            return None
        raise


def plain(path: Path) -> os.stat_result | None:
    """Returns the status of an ordinary file; None where there is none.

    Whatever else lies there is removed with a warning. So is a file that has a second name: what is
    written to it would change under that name, too.
    """
    found = status(path)
    if found is None or (stat.S_ISREG(found.st_mode) and found.st_nlink <= 1):
        return found
    _clear(path, found)
    return None


def make_folder(folder: Path, root: Path) -> None:
    """Makes a folder below `root`, every step of the way an ordinary one.

    What lies in its way is removed with a warning. `root` itself may be a link: it is the user's.
    """
    root.mkdir(parents=True, exist_ok=True)
    step = root
    for name in folder.relative_to(root).parts:
        step = step / name
        found = status(step)
        if found is not None and not stat.S_ISDIR(found.st_mode):
            _clear(step, found)
        step.mkdir(exist_ok=True)


def subfolders(folder: Path) -> list[Path]:
    """Returns the folders in a folder by name, without links to folders."""
    return [Path(e.path) for e in _scan(folder) if e.is_dir(follow_symlinks=False)]


def files_in(folder: Path) -> list[Path]:
    """Returns everything in a folder by name, of whatever kind; nothing where it is no folder."""
    return [Path(entry.path) for entry in _scan(folder)]


def read_note(path: Path, limit: int = MAX_NOTE_BYTES) -> bytes | None:
    """Returns the content of a small ordinary file, or None where there is no such file."""
    try:
        # Without waiting, should it have become a pipe, and without following, a link.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0)
        if not stat.S_ISREG(path.lstat().st_mode):
            return None
        with os.fdopen(os.open(path, flags | getattr(os, "O_BINARY", 0)), "rb") as file:
            content = file.read(limit + 1)
    except OSError:
        return None
    return content if len(content) <= limit else None


def write_file(path: Path, content: bytes) -> None:
    """Writes a file, whole or not at all, in the place of whatever lies there."""
    temporary = write_beside(path, content)
    try:
        put(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def put(source: Path, target: Path) -> None:
    """Moves a file to its final place in one step, which a power cut cannot halve."""
    found = status(target)
    if found is not None and stat.S_ISDIR(found.st_mode):
        _clear(target, found)
    source.replace(target)
    sync_folder(target.parent)


def remove(path: Path) -> None:
    """Removes whatever lies at a place; of a link, the link alone."""
    found = status(path)
    if found is not None and stat.S_ISDIR(found.st_mode):
        shutil.rmtree(path)
    else:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()


def _clear(path: Path, found: os.stat_result) -> None:
    kind = next((word for test, word in _KINDS if test(found.st_mode)), "no ordinary file")
    if stat.S_ISREG(found.st_mode):
        kind = "a file of several names" if found.st_nlink > 1 else "a file"
    warnings.warn(
        f"{path} in the cache is {kind}, which qzoo did not put there; it is removed.",
        UserWarning,
        stacklevel=3,
    )
    remove(path)


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    found = status(folder)
    if found is None or not stat.S_ISDIR(found.st_mode):
        return []
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)
