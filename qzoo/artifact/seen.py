"""Which pictures a model has seen, as short hashes of their contents.

Accuracy means something on pictures that a model was neither trained nor calibrated on. So training
and calibration note the pictures that they use, and what measures looks them up, by content: a
picture that was renamed or copied elsewhere is still the same one. The notes hold no names and no
pictures, but whoever has a picture can find out whether it is among them.

A note is text: the first `BYTES` bytes of each file's SHA-256, sorted, one after the other, in
base64. Of more than `LIMIT` pictures the `LIMIT` smallest hashes are kept, which are as good as a
random choice of pictures: of others whose hashes are as small, the note still says for sure whether
they were seen.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from .._core.files import open_regular
from ..errors import ArtifactError, ImageError

#: What a model may have seen pictures for.
TRAINING, CALIBRATION = "training", "calibration"
KINDS = (TRAINING, CALIBRATION)
#: Bytes kept of each hash. With `LIMIT` pictures in a note, one in 4 * 10**9 other pictures is
#: taken for one of them.
BYTES = 6
#: Pictures in a note, which then takes 512 kB.
LIMIT = 65536
#: How much of a file is read at a time.
_CHUNK = 1 << 20


def file_sha256(path: str | os.PathLike[str]) -> bytes:
    """Returns the SHA-256 of a file's content.

    Raises:
        ImageError: The file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with open_regular(path) as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except OSError as error:
        raise ImageError(f"Cannot read {os.fspath(path)}: {error.strerror or error}.") from None
    return digest.digest()


def hashes(files: Sequence[str | os.PathLike[str]], *, progress: bool = False) -> list[bytes]:
    """Returns the SHA-256 of each file's content, in the order of the files.

    Args:
        files: Paths.
        progress: Whether to show a progress bar on stderr.

    Raises:
        ImageError: A file cannot be read.
    """
    from tqdm import tqdm

    with ThreadPoolExecutor(4) as pool:
        found = pool.map(file_sha256, files)
        bar = tqdm(found, "recognize", len(files), unit="file", leave=False, disable=not progress)
        return list(bar)


def noted(seen: Mapping[str, str], kind: str, digests: Iterable[bytes]) -> dict[str, str]:
    """Returns what a model has seen with more pictures added.

    Args:
        seen: What it has seen so far: kind to note.
        kind: One of `KINDS`.
        digests: SHA-256 of the further pictures.
    """
    together = {*_parts(seen.get(kind, "")), *(digest[:BYTES] for digest in digests)}
    if not together:
        return dict(seen)
    kept = sorted(together)[:LIMIT]
    note = base64.b64encode(b"".join(kept)).decode()
    # In one order, so that the same numbers give the same file.
    return {k: note if k == kind else seen[k] for k in KINDS if k == kind or k in seen}


def check_seen(seen: Any) -> None:
    """Checks what a file says that a model has seen.

    Raises:
        ArtifactError: It is not what `noted` writes.
    """
    if not isinstance(seen, dict) or not all(
        kind in KINDS and isinstance(note, str) and _is_note(note) for kind, note in seen.items()
    ):
        raise ArtifactError("the field 'seen' is not a list of pictures that this qzoo knows.")


def _is_note(note: str) -> bool:
    if not 0 < len(note) <= LIMIT * BYTES * 4 // 3 or len(note) % (BYTES * 4 // 3):
        return False
    try:
        parts = _parts(note)
    except (binascii.Error, ValueError):
        return False
    return all(a < b for a, b in itertools.pairwise(parts))


def _parts(note: str) -> list[bytes]:
    content = base64.b64decode(note, validate=True)
    return [content[i : i + BYTES] for i in range(0, len(content), BYTES)]


class Notes:
    """What several notes say together of pictures.

    Args:
        notes: As `noted` makes them; one that was cut off says nothing of larger hashes.
    """

    def __init__(self, notes: Iterable[str]) -> None:
        parts = [_parts(note) for note in notes if note]
        self._known = {part for one in parts for part in one}
        self._last = min((one[-1] for one in parts if len(one) >= LIMIT), default=None)

    def __bool__(self) -> bool:
        """Whether there is anything to look up in."""
        return bool(self._known)

    def covers(self, digest: bytes) -> bool:
        """Whether `has` is sure of a picture that it does not find."""
        return self._last is None or digest[:BYTES] <= self._last

    def has(self, digest: bytes) -> bool:
        """Whether a picture was seen, by its SHA-256."""
        return digest[:BYTES] in self._known


def files_of(data: Any) -> list[str] | None:
    """Returns the files of a data set's pictures in their order; None where they are no files.

    Args:
        data: A data set with `files` or, as torchvision's folders have it, `samples`; or PyTorch's
            `Subset` of one.
    """
    if hasattr(data, "dataset") and hasattr(data, "indices"):
        inner = files_of(data.dataset)
        return None if inner is None else [inner[int(i)] for i in data.indices]
    files = getattr(data, "files", None)
    if files is None and isinstance(samples := getattr(data, "samples", None), (list, tuple)):
        files = [s[0] if isinstance(s, (list, tuple)) and s else None for s in samples]
    if not isinstance(files, (list, tuple)) or len(files) != len(data):
        return None
    if not all(isinstance(f, (str, os.PathLike)) for f in files):
        return None
    # Paths in an archive, say, are the names of no files here; and there may be millions to ask.
    if files and not Path(files[0]).is_file():
        return None
    return [os.fspath(f) for f in files]
