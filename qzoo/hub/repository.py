"""The Hub's part of the cache, in the layout of huggingface_hub's own cache.

<cache_dir>/hf/models--<org>--<repo>/blobs/<ETag>               the content of a file
                                    /blobs/<ETag>.incomplete    an unfinished download
                                    /snapshots/<commit>/<path>  a link to the content
                                    /refs/<revision>            the commit of a branch or tag
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import DownloadError
from . import disk
from .cache import Entry, Expected, cache_dir

_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?"
COMMIT = re.compile(r"[0-9a-f]{40}")
SHA256 = re.compile(r"[0-9a-f]{64}")
#: An ETag that may be the name of a file.
ETAG = re.compile(r"[A-Za-z0-9_-]{1,128}")


@dataclass(frozen=True)
class HubFile:
    """A file in a repository of the Hub, as `hf://org/repo/path/to/file@revision` names it."""

    repo: str
    path: str
    revision: str

    @classmethod
    def parse(cls, url: str) -> HubFile:
        """Returns the parts of the url; the revision is `main` where none is given.

        Raises:
            DownloadError: it does not name a file of a repository.
        """
        body, revision = url.removeprefix("hf://"), "main"
        if "@" in body:
            body, _, revision = body.rpartition("@")
        org, _, rest = body.partition("/")
        repo, _, path = rest.partition("/")
        steps = [*path.split("/"), *revision.split("/")]
        if (
            not (re.fullmatch(_PART, org) and re.fullmatch(_PART, repo))
            or re.search(r"--|\.\.", org + "/" + repo)
            # The client builds local paths of these.
            or any(step in ("", ".", "..") or "\\" in step or "\0" in step for step in steps)
        ):
            raise DownloadError(
                f"{url!r} names no file on the Hub; write hf://org/repo/path/to/file@revision."
            )
        return cls(f"{org}/{repo}", path, revision)

    @property
    def pinned(self) -> bool:
        """Whether the revision is a commit, which never changes."""
        return COMMIT.fullmatch(self.revision) is not None

    @property
    def folder(self) -> Path:
        """Where the cache holds the repository."""
        return hub_root() / f"models--{self.repo.replace('/', '--')}"

    @property
    def ref(self) -> Path:
        """The file that says to which commit a branch or tag pointed when it was last asked for."""
        return self.folder / "refs" / self.revision

    def pointer(self, commit: str) -> Path:
        """Returns the place of the file at a commit, a link to the content under `blobs`."""
        return self.folder / "snapshots" / commit / self.path

    def known_commit(self) -> str | None:
        """Returns the commit that the revision is, as far as is known offline."""
        if self.pinned:
            return self.revision
        text = (disk.read_note(self.ref, 100) or b"").decode("ascii", "replace")
        return text if COMMIT.fullmatch(text) else None

    def cached(self) -> Path | None:
        """Returns where the cache holds this revision of the file, as far as is known offline."""
        commit = self.known_commit()
        if commit is None:
            return None
        pointer = self.pointer(commit)
        try:
            content = pointer.resolve(strict=True)
        except (OSError, RuntimeError):  # nothing there, or links in a circle
            return None
        inside = content.is_relative_to(self.folder.resolve())
        return pointer if inside and content.is_file() else None


def blob(file: HubFile, url: str, name: str) -> Entry:
    """Returns the places of a file's content, which the Hub calls `name`."""
    final = file.folder / "blobs" / name
    part = final.with_name(f"{name}.incomplete")
    return Entry(url, final, part, label=file.path.rpartition("/")[2])


def link(pointer: Path, content: Path) -> None:
    """Makes the file of a commit a link to its content; moves the content there without links."""
    disk.make_folder(pointer.parent, cache_dir())
    temporary = pointer.with_name(f".{pointer.name}.new")
    disk.remove(temporary)
    try:
        temporary.symlink_to(os.path.relpath(content, pointer.parent))
    except (OSError, NotImplementedError):
        temporary = content
    disk.put(temporary, pointer)


def mismatch(path: Path, expected: Expected) -> str | None:
    """Says how a cached file differs from what the caller or the Hub expects of it."""
    name = path.resolve().name
    if not SHA256.fullmatch(name):
        return expected.mismatch(path)
    return replace(expected, sha256=name).mismatch(path) or mismatch_of_name(name, expected)


def mismatch_of_name(name: str, expected: Expected) -> str | None:
    """Says how the hash by which the Hub names a large file differs from the expected one."""
    for want in (expected.sha256, expected.sha256_prefix):
        if want is not None and SHA256.fullmatch(name) and not name.startswith(want.lower()):
            return f"its sha256 is {name} where {want.lower()} was expected"
    return None


def hub_root() -> Path:
    """Returns the Hub's part of the cache."""
    return cache_dir() / "hf"
