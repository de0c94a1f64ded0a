"""Files of the Hugging Face Hub, by huggingface_hub's own client, below `cache_dir()/hf`.

That client brings the protocol, tokens, the cache layout and the resume of a broken connection.
Around it go what it lacks: a deadline, a bound on the size, a lock that is given up when its holder
stands still, and a check of what was stored.
"""

from __future__ import annotations

import errno
import os
import re
import sys
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import DownloadError
from . import settings
from .cache import Expected, ReadOnlyCacheError, cache_dir, hub_lock, locked, storage_error
from .exchange import EMBEDDED_HINT, MAX_ATTEMPTS, RETRIED_STATUS, backoff_s

if TYPE_CHECKING:
    from huggingface_hub import HfFileMetadata

_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ETAG = re.compile(r"[A-Za-z0-9_-]{1,128}")
_T = TypeVar("_T")
# The client reports every 10 MiB; at this rate in bytes per second it counts as standing still.
_MIN_RATE = 64 << 10
_REPORT_BYTES = 10 << 20


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
        body, _, revision = (
            url.removeprefix("hf://").rpartition("@")
            if "@" in url
            else (
                url.removeprefix("hf://"),
                "",
                "main",
            )
        )
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
        return _COMMIT.fullmatch(self.revision) is not None

    def cached(self) -> Path | None:
        """Returns where the cache holds this revision of the file, as far as is known offline."""
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(
            self.repo, self.path, cache_dir=_root(), revision=self.revision
        )
        return Path(found) if isinstance(found, str) else None


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
    current = held
    if (held is None or not file.pinned) and (commit := _commit_of(file, url, expected, held)):
        current = replace(file, revision=commit).cached()
    if current is not None and current == held and _mismatch(current, expected) is None:
        return current
    folder = _root() / f"models--{file.repo.replace('/', '--')}"
    try:
        with locked(hub_lock(folder), lambda: _blob_sizes(folder), progress=progress):
            for orphan in (folder / "blobs").glob("*.incomplete"):
                orphan.unlink(missing_ok=True)  # the client never picks up what a kill left
            return _fetch_locked(file, url, expected, progress=progress)
    except ReadOnlyCacheError:
        if held is None or _mismatch(held, expected) is not None:
            raise
        warnings.warn(
            f"{folder} cannot be written, so the older {held} is used although "
            f"{file.revision!r} moved on the Hub.",
            UserWarning,
            stacklevel=3,
        )
        return held


def _offline(url: str, held: Path | None, expected: Expected, variable: str) -> Path:
    if held is None:
        raise DownloadError(
            f"{url} is not in the cache and {variable} is set; unset it to download the file, or "
            f"fetch it once on a machine with a network and copy {_root()} {EMBEDDED_HINT}."
        )
    problem = _mismatch(held, expected)
    if problem is not None:
        raise DownloadError(
            f"{held} is damaged ({problem}) and {variable} is set; unset it to download the "
            "file again."
        )
    return held


def _commit_of(file: HubFile, url: str, expected: Expected, held: Path | None) -> str | None:
    """Asks the Hub for the commit to which the revision points now.

    Asked here, because the client's own retries go on for minutes, on a connection that it shares
    with later downloads. None where the Hub cannot be reached and `held` will do instead.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    watch = _Watch(settings.timeout_s())
    endpoint = _endpoint()

    def ask() -> HfFileMetadata:
        address = hf_hub_url(file.repo, file.path, revision=file.revision, endpoint=endpoint)
        return get_hf_file_metadata(address, timeout=watch.timeout_s / 3, endpoint=endpoint)

    for failures in range(1, MAX_ATTEMPTS + 1):
        try:
            found = _bounded(ask, watch, url)
            break
        except Exception as error:
            final = isinstance(error, (HFValidationError, OfflineModeIsEnabled)) or (
                isinstance(error, HfHubHTTPError)
                and error.response.status_code not in RETRIED_STATUS
            )
            if not final and held is not None:
                return None
            wait_s = backoff_s(watch.timeout_s, failures)
            late = time.monotonic() + wait_s >= watch.deadline
            if final or late or failures == MAX_ATTEMPTS:
                raise _translated(error, file, url) from error
            time.sleep(wait_s)
    # The client makes local paths of both.
    if not (_COMMIT.fullmatch(found.commit_hash or "") and _ETAG.fullmatch(found.etag or "")):
        raise DownloadError(
            f"The server did not answer for {url} as the Hub does; check HF_ENDPOINT and proxies."
        )
    _check_size(url, found.size or 0, expected)
    return found.commit_hash


def _fetch_locked(file: HubFile, url: str, expected: Expected, *, progress: bool) -> Path:
    held = file.cached()
    path = _download(file, url, expected, progress=progress, force=False)
    problem = _mismatch(path, expected)
    if problem is not None and path == held:
        warnings.warn(
            f"{path} is damaged ({problem}); it is downloaded again.", UserWarning, stacklevel=4
        )
        path = _download(file, url, expected, progress=progress, force=True)
        problem = _mismatch(path, expected)
    if problem is not None:
        path.resolve().unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        raise DownloadError(
            f"{url} is not the expected file: {problem}; check the revision and the hash."
        )
    return path


class _Watch:
    """Shares the deadline with the thread in which the client runs."""

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self.abandoned = False
        self.deadline = time.monotonic() + timeout_s

    def expect(self, count: int) -> None:
        """Grants the time for the next report, which comes after `count` bytes."""
        self.deadline = time.monotonic() + self.timeout_s + min(count, _REPORT_BYTES) / _MIN_RATE


def _bounded(call: Callable[[], _T], watch: _Watch, url: str) -> _T:
    """Runs the client in a thread, so that no wait of its own outlives the deadline."""
    outcome: list[_T | Exception] = []
    done = threading.Event()

    def run() -> None:
        try:
            outcome.append(call())
        except Exception as error:
            outcome.append(error)
        finally:
            done.set()

    threading.Thread(target=run, name="qzoo-hub-download", daemon=True).start()
    while not done.wait(min(1.0, max(0.0, watch.deadline - time.monotonic()))):
        if time.monotonic() >= watch.deadline:
            raise DownloadError(
                f"The Hub made no progress for {watch.timeout_s:g} s while fetching {url}; check "
                "the network, try again later or set QZOO_TIMEOUT to more seconds "
                f"{EMBEDDED_HINT}."
            )
    result = outcome[0]
    if isinstance(result, Exception):
        raise result
    return result


def _download(file: HubFile, url: str, expected: Expected, *, progress: bool, force: bool) -> Path:
    from huggingface_hub import hf_hub_download

    watch = _Watch(settings.timeout_s())
    bar = _bar_class(watch, url, expected, progress=progress)
    try:
        path = _bounded(
            lambda: hf_hub_download(
                file.repo,
                file.path,
                revision=file.revision,
                cache_dir=_root(),
                endpoint=_endpoint(),
                etag_timeout=watch.timeout_s / 3,
                force_download=force,
                tqdm_class=bar,
            ),
            watch,
            url,
        )
    except Exception as error:
        raise _translated(error, file, url) from error
    finally:
        watch.abandoned = True  # a thread that was left behind ends at its next chunk
    return Path(path)


def _endpoint() -> str | None:
    # Read now: the client itself reads it once, when it is imported.
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or None


def _check_size(url: str, size: int, expected: Expected) -> None:
    if size > expected.limit:
        raise DownloadError(
            f"{url} has at least {size} bytes where at most {expected.limit} are accepted; check "
            "the revision."
        )


def _bar_class(watch: _Watch, url: str, expected: Expected, *, progress: bool) -> type[Any]:
    """Returns the progress bar for the client, which also is where its transfer can be stopped."""
    from tqdm import tqdm

    class Bar(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            self.received = options.get("initial") or 0
            self.size = options.get("total")
            options.pop("name", None)
            super().__init__(*args, **{**options, "disable": not progress, "file": sys.stderr})
            self.check(self.size or 0)

        def check(self, size: int) -> None:
            _check_size(url, size, expected)
            left = _REPORT_BYTES if self.size is None else self.size - self.received
            watch.expect(max(0, left))

        def update(self, n: float | None = 1) -> bool | None:
            if watch.abandoned:
                raise DownloadError(f"The download of {url} was given up.")
            self.received += int(n or 0)
            self.check(self.received)
            return super().update(n)

    return Bar


def _translated(error: Exception, file: HubFile, url: str) -> DownloadError:
    """Returns the one sentence for an error of the client."""
    from huggingface_hub import errors

    if isinstance(error, DownloadError):
        return error
    first = str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
    if isinstance(error, errors.GatedRepoError):
        return DownloadError(
            f"{file.repo} is gated; accept its terms on the Hub and log in with `hf auth login`."
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return DownloadError(
            f"There is no repository {file.repo} on the Hub, or it is private; check the name, or "
            "log in with `hf auth login`."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return DownloadError(
            f"{file.repo} has no revision {file.revision!r}; check the part after the @."
        )
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return DownloadError(
            f"{file.repo} has no file {file.path!r} at revision {file.revision!r}; check the path."
        )
    if isinstance(error, OSError) and error.errno in (
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EROFS,
        errno.EACCES,
        errno.EPERM,
    ):
        return storage_error(error, _root())
    if isinstance(error, errors.HfHubHTTPError):
        return DownloadError(f"{url} could not be downloaded ({first}); try again later.")
    if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ is not None:
        first = str(error.__cause__).split("\n")[0].rstrip(".")
    return DownloadError(
        f"{url} could not be fetched from the Hub ({first}); check the network, HF_ENDPOINT and "
        f"HF_HUB_OFFLINE {EMBEDDED_HINT}."
    )


def _mismatch(path: Path, expected: Expected) -> str | None:
    """Says how a cached file differs from what the caller or the Hub expects of it."""
    if path.is_symlink() and _SHA256.fullmatch(name := Path(path.readlink()).name):
        problem = replace(expected, sha256=name).mismatch(path)
        if problem is not None:
            return problem
        if expected.sha256 is not None and expected.sha256.lower() != name:
            return f"its sha256 is {name} where {expected.sha256.lower()} was expected"
        return None
    return expected.mismatch(path)


def _blob_sizes(folder: Path) -> list[int]:
    sizes = []
    for path in (folder / "blobs").glob("*"):
        try:
            sizes.append(path.stat().st_size)
        except OSError:
            continue
    return sorted(sizes)


def _root() -> Path:
    return cache_dir() / "hf"
