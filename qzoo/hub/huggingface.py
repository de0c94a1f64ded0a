"""Files of the Hugging Face Hub, below `cache_dir()/hf` in the layout of huggingface_hub's cache.

That client brings the protocol, tokens and errors: it is asked which commit and which file a name
means. The file itself is fetched like any other, by `qzoo.hub.http`: resumed, bounded in size and
time, and stored by names that were checked, since a server's answers become paths here.
"""

from __future__ import annotations

import itertools
import os
import threading
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from ..errors import DownloadError
from . import disk, http, settings
from .cache import Entry, Expected, ReadOnlyCacheError, cache_dir, hub_lock, locked, storage_error
from .exchange import EMBEDDED_HINT, MAX_ATTEMPTS, RETRIED_STATUS, StallWatch
from .repository import (
    COMMIT,
    ETAG,
    SHA256,
    HubFile,
    blob,
    hub_root,
    link,
    mismatch,
    mismatch_of_name,
)

if TYPE_CHECKING:
    from huggingface_hub import HfFileMetadata

_T = TypeVar("_T")


class _Found(NamedTuple):
    """What the Hub says of a file: its commit, the name of its content, and its size in bytes."""

    commit: str
    etag: str
    size: int | None


def fetch(url: str, expected: Expected, *, progress: bool) -> Path:
    """Returns the local path of a file on the Hub, verified.

    A commit that is in the cache is used as it is; for a branch or tag the Hub is asked whether it
    moved, and where the Hub cannot be reached the last known state is used. Beside `expected`, a
    large file is checked against the sha256 under which the Hub stores it.

    Raises:
        DownloadError: the file could not be fetched, verified or stored.
    """
    file = HubFile.parse(url)
    held = file.cached()
    variable = settings.offline_variable(hub=True)
    if variable is not None:
        return _offline(url, held, expected, variable)
    usable = held if held is not None and mismatch(held, expected) is None else None
    if usable is not None and file.pinned:
        return usable
    found = _ask(file, url, expected, usable)
    if usable is not None and (found is None or found.commit == file.known_commit()):
        return usable
    assert found is not None
    try:
        with locked(hub_lock(file.folder), lambda: _blob_sizes(file.folder), progress=progress):
            return _fetch_locked(file, found, url, expected, progress=progress)
    except ReadOnlyCacheError:
        if usable is None:
            raise
        warnings.warn(
            f"{file.folder} cannot be written, so the older {usable} is used although "
            f"{file.revision!r} moved on the Hub.",
            UserWarning,
            stacklevel=3,
        )
        return usable
    except OSError as error:
        if isinstance(error, DownloadError):
            raise
        raise storage_error(error, file.folder) from error


def _offline(url: str, held: Path | None, expected: Expected, variable: str) -> Path:
    if held is None:
        raise DownloadError(
            f"{url} is not in the cache and {variable} is set; unset it to download the file, or "
            f"fetch it once on a machine with a network and copy {hub_root()} {EMBEDDED_HINT}."
        )
    problem = mismatch(held, expected)
    if problem is not None:
        raise DownloadError(
            f"{held} is damaged ({problem}) and {variable} is set; unset it to download the "
            "file again."
        )
    return held


def _ask(file: HubFile, url: str, expected: Expected, usable: Path | None) -> _Found | None:
    """Asks the Hub which content the revision has now.

    The client makes one request and gives up soon, but its timeouts cover neither the name lookup
    nor a server that sends a byte a second: `QZOO_TIMEOUT` bounds all attempts together. None where
    the Hub cannot be reached and `usable` will do instead.
    """
    from huggingface_hub import get_hf_file_metadata
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    watch = StallWatch(settings.timeout_s())
    endpoint, token = _endpoint()
    address = _address(file, file.revision, endpoint)

    def ask() -> HfFileMetadata:
        third = watch.timeout_s / 3  # so that a connection which hangs leaves time for another try
        return get_hf_file_metadata(address, token=token, timeout=third, endpoint=endpoint)

    for failures in itertools.count(1):
        try:
            answer = _bounded(ask, watch, url)
            break
        except Exception as error:
            refused = isinstance(error, HfHubHTTPError)
            final = isinstance(error, (HFValidationError, OfflineModeIsEnabled)) or (
                refused and error.response.status_code not in RETRIED_STATUS  # type: ignore[attr-defined]
            )
            if not final and usable is not None:
                return None
            if final or not watch.pause(failures):
                late = not final and not refused and failures < MAX_ATTEMPTS
                raise (_stalled(watch, url) if late else _translated(error, file, url)) from error
    commit, etag, size = answer.commit_hash or "", answer.etag or "", answer.size
    if not (COMMIT.fullmatch(commit) and ETAG.fullmatch(etag)):
        raise DownloadError(
            f"The server did not answer for {url} as the Hub does; check HF_ENDPOINT, QZOO_MIRROR "
            "and proxies."
        )
    if size is not None and not 0 <= size <= expected.limit:
        raise DownloadError(
            f"{url} has {size} bytes where at most {expected.limit} are accepted; check the "
            "revision."
        )
    return _Found(commit, etag, size)


def _fetch_locked(
    file: HubFile, found: _Found, url: str, expected: Expected, *, progress: bool
) -> Path:
    current = replace(file, revision=found.commit)
    held, pointer = current.cached(), file.pointer(found.commit)
    problem = None if held is None else mismatch(held, expected)
    if held is None or problem is not None:
        if disk.status(pointer) is not None:
            warnings.warn(
                f"{pointer} is damaged ({problem or 'it is no file of the cache'}); it is "
                "downloaded again.",
                UserWarning,
                stacklevel=4,
            )
        entry = blob(file, url, found.etag)
        _store(entry, current, found, expected, progress=progress)
        link(pointer, entry.final)
    if found.commit != file.known_commit():
        disk.make_folder(file.ref.parent, cache_dir())
        disk.write_file(file.ref, found.commit.encode())
    return pointer


def _store(
    blob: Entry, file: HubFile, found: _Found, expected: Expected, *, progress: bool
) -> None:
    """Puts the content into the cache, or leaves it where an earlier commit has brought it."""
    problem = mismatch_of_name(found.etag, expected)
    if problem is not None:
        raise DownloadError(
            f"{blob.url} is not the expected file: {problem}; check the revision and the hash."
        )
    if SHA256.fullmatch(found.etag):
        expected = replace(expected, sha256=found.etag)
    if expected.size is None:
        expected = replace(expected, size=found.size)
    disk.make_folder(blob.final.parent, cache_dir())
    for orphan in disk.files_in(blob.final.parent):
        if orphan.name.endswith(".incomplete") and orphan != blob.part:
            disk.remove(orphan)  # of a commit that nobody asks for any more
    if disk.plain(blob.final) is not None and expected.mismatch(blob.final) is None:
        return
    endpoint, token = _endpoint()
    source = _address(file, found.commit, endpoint)
    http.fill(source, blob, expected, progress=progress, headers=_credentials(token))
    blob.publish()
    disk.remove(blob.record)


def _bounded(call: Callable[[], _T], watch: StallWatch, url: str) -> _T:
    """Runs the client in a thread, so that no wait of its own outlives the deadline."""
    outcome: list[_T | Exception] = []

    def run() -> None:
        try:
            outcome.append(call())
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=run, name="qzoo-hub-question", daemon=True)
    thread.start()
    thread.join(watch.left_s())
    if not outcome:
        raise _stalled(watch, url)
    result = outcome[0]
    if isinstance(result, Exception):
        raise result
    return result


def _stalled(watch: StallWatch, url: str) -> DownloadError:
    return DownloadError(
        f"The Hub made no progress for {watch.timeout_s:g} s while fetching {url}; check the "
        f"network, try again later or set QZOO_TIMEOUT to more seconds {EMBEDDED_HINT}."
    )


def _endpoint() -> tuple[str | None, bool | None]:
    """Returns where the Hub is asked, and the client's word for which token is sent there.

    `HF_ENDPOINT` is a Hub, which gets the user's token; a mirror for downloads gets none.
    """
    # Read now: the client itself reads it once, when it is imported.
    if endpoint := os.environ.get("HF_ENDPOINT", "").strip().rstrip("/"):
        return endpoint, None
    mirror = settings.mirror()
    return mirror, None if mirror is None else False


def _address(file: HubFile, revision: str, endpoint: str | None) -> str:
    from huggingface_hub import hf_hub_url

    return hf_hub_url(file.repo, file.path, revision=revision, endpoint=endpoint)


def _credentials(token: bool | None) -> dict[str, str]:
    from huggingface_hub.utils import build_hf_headers

    headers = build_hf_headers(token=token)
    return {key: value for key, value in headers.items() if key.lower() == "authorization"}


def _translated(error: Exception, file: HubFile, url: str) -> DownloadError:
    """Returns the one sentence for an error of the client."""
    from huggingface_hub import errors

    if isinstance(error, DownloadError):
        return error
    first = str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
    sentences = {
        errors.GatedRepoError: f"{file.repo} is gated; accept its terms on the Hub and log in with "
        "`hf auth login`.",
        errors.RepositoryNotFoundError: f"There is no repository {file.repo} on the Hub, or it is "
        "private; check the name, or log in with `hf auth login`.",
        errors.RevisionNotFoundError: f"{file.repo} has no revision {file.revision!r}; check the "
        "part after the @.",
        errors.RemoteEntryNotFoundError: f"{file.repo} has no file {file.path!r} at revision "
        f"{file.revision!r}; check the path.",
        errors.HfHubHTTPError: f"{url} could not be downloaded ({first}); try again later.",
        Exception: f"{url} could not be fetched from the Hub ({first}); check the network, "
        f"HF_ENDPOINT and HF_HUB_OFFLINE {EMBEDDED_HINT}.",
    }
    return DownloadError(next(s for kind, s in sentences.items() if isinstance(error, kind)))


def _blob_sizes(folder: Path) -> list[int]:
    found = [disk.status(path) for path in disk.files_in(folder / "blobs")]
    return sorted(status.st_size for status in found if status is not None)
