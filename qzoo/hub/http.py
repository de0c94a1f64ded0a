"""One http(s) url into its partial file: resumed, retried, bounded in size and in time."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import IO, Any

from .._version import __version__
from ..errors import DownloadError
from . import settings
from .cache import Entry, Expected, Record, storage_error, strong_etag
from .exchange import (
    MAX_ATTEMPTS,
    RETRIED_STATUS,
    Exchange,
    Head,
    Retryable,
    StallWatch,
    backoff_s,
    failed,
)

_COUNT = r"([0-9]{1,18})"  # of bytes or seconds; more digits are no honest number
PROGRESS_BYTES = 1 << 20  # after which the attempts are counted anew


def fill(
    url: str,
    entry: Entry,
    expected: Expected,
    *,
    progress: bool,
    headers: Mapping[str, str] | None = None,
) -> None:
    """Fills `entry.part` with the expected file, and removes it where the server has another.

    The arguments and errors are `download`'s.

    Raises:
        DownloadError: what came is not the expected file.
    """
    resumed = download(url, entry, expected, progress=progress, headers=headers)
    problem = expected.mismatch(entry.part)
    if problem and resumed:
        # The first half may have been another version's, so it gets one chance in one piece.
        entry.discard_part()
        download(url, entry, expected, progress=progress, headers=headers)
        problem = expected.mismatch(entry.part)
    if problem:
        entry.discard_part()
        raise DownloadError(
            f"{settings.redacted(url)} is not the expected file: {problem}; it was removed, so "
            "try another source or QZOO_MIRROR."
        )


def download(
    url: str,
    entry: Entry,
    expected: Expected,
    *,
    progress: bool,
    headers: Mapping[str, str] | None = None,
) -> bool:
    """Fills `entry.part` with the body of `url`, resuming what is there already.

    Args:
        url: The http(s) url to ask, which may be a mirror of `entry.url`.
        entry: The caller holds its lock.
        expected: Its size bounds the body; the hash is left for the caller to check.
        progress: Whether to draw a bar on stderr.
        headers: Further headers of the request, such as credentials for the url's host.

    Returns:
        Whether the file contains bytes of an earlier, interrupted request.

    Raises:
        DownloadError: the file could not be downloaded or stored.
    """
    import httpx
    from tqdm import tqdm

    headers = {
        "Accept-Encoding": "identity",
        "User-Agent": f"qzoo/{__version__}",
        **(headers or {}),
    }
    watch = StallWatch(settings.timeout_s())
    failures = 0
    with tqdm(
        desc=entry.label,
        unit="B",
        unit_scale=True,
        unit_divisor=1024,
        file=sys.stderr,
        disable=not progress,
    ) as bar:
        while True:
            before = entry.held_bytes()
            try:
                return _attempt(url, headers, entry, expected, watch, bar)
            except (Retryable, httpx.TransportError) as error:
                if isinstance(error, (httpx.UnsupportedProtocol, httpx.LocalProtocolError)):
                    raise failed(url, error) from error
                failures = 1 if entry.held_bytes() - before >= PROGRESS_BYTES else failures + 1
                _pause(url, error, failures, watch)
            except DownloadError:
                if not entry.held_bytes():
                    entry.discard_part()
                raise
            except OSError as error:
                # A disk that cannot hold the file gets its space back.
                with contextlib.suppress(OSError):
                    entry.discard_part()
                raise storage_error(error, entry.part) from error


def _attempt(
    url: str,
    headers: dict[str, str],
    entry: Entry,
    expected: Expected,
    watch: StallWatch,
    bar: Any,
) -> bool:
    """Makes one request; returns whether it continued an earlier one."""
    offset, known = entry.held_bytes(), entry.read_record()
    unknown = known.etag is None and known.total is None
    if offset and (unknown or offset > (known.total or expected.limit)):
        entry.discard_part()  # nothing tells what these bytes were a part of, or they are too many
        offset = 0
    if offset:
        headers = {**headers, "Range": f"bytes={offset}-"}
        if known.etag is not None:
            headers["If-Range"] = known.etag
    # A third, so that a connection which hangs leaves time for another try.
    with Exchange(url, headers, watch.timeout_s / 3) as exchange:
        head: Head = exchange.take(watch)
        total = _total_length(head)
        if head.status == 416 and offset and total == offset == known.total:
            return True  # only the last step of an earlier download was missing
        if head.status == 416 or (head.status == 206 and not _continues(head, offset, known)):
            entry.discard_part()
            raise Retryable("the file changed on the server", wait_s=0)
        _check_head(url, head, total, expected)
        offset = offset if head.status == 206 else 0
        entry.write_record(strong_etag(head.headers.get("ETag", "")), total)
        _check_free(entry, total, offset)
        bar.reset(total)
        bar.update(offset)
        with entry.open_part(append=offset > 0) as file:
            _receive(url, exchange, file, offset, total, expected, watch, bar)
            file.flush()
            os.fsync(file.fileno())
    return offset > 0


def _receive(
    url: str,
    exchange: Exchange,
    file: IO[bytes],
    received: int,
    total: int | None,
    expected: Expected,
    watch: StallWatch,
    bar: Any,
) -> None:
    """Writes the body to `file`, which holds `received` bytes already."""
    while (chunk := exchange.take(watch)) is not None:
        received += len(chunk)
        if received > (expected.limit if total is None else total):
            file.truncate(0)
            raise _too_large(url, received, expected)
        file.write(chunk)
        watch.advance(len(chunk))
        bar.update(len(chunk))
    if total is not None and received < total:
        raise Retryable(f"the server closed the connection after {received} of {total} bytes")


def _check_head(url: str, head: Head, total: int | None, expected: Expected) -> None:
    status, name = head.status, settings.redacted(url)
    if status in RETRIED_STATUS:
        raise Retryable(f"the server answered {status}", wait_s=_retry_after(head))
    if status in (401, 403):
        raise DownloadError(
            f"{name} may not be read (HTTP {status}); check the url and its access."
        )
    if status in (404, 410):
        raise DownloadError(f"{name} does not exist (HTTP {status}); check the url or QZOO_MIRROR.")
    if status not in (200, 206):
        raise DownloadError(f"{name} answered HTTP {status} instead of the file; check the url.")
    encoding = head.headers.get("Content-Encoding", "").strip()
    if encoding.lower() not in ("", "identity"):
        raise DownloadError(
            f"{name} is sent in the encoding {encoding[:40]!r}, which was not asked for; a proxy "
            "or mirror in between must pass the file as it is."
        )
    if total is None:
        return
    if total > expected.limit:
        raise _too_large(url, total, expected)
    if expected.size is not None and total != expected.size:
        raise DownloadError(
            f"{name} has {total} bytes where {expected.size} were expected; the file on the "
            "server is not the published one, so try another source or QZOO_MIRROR."
        )


def _pause(url: str, error: Exception, failures: int, watch: StallWatch) -> None:
    """Waits before the next attempt.

    Raises:
        DownloadError: there were enough attempts, or the wait would end after the deadline.
    """
    wait_s = backoff_s(watch.timeout_s, failures)
    asked_s = error.wait_s if isinstance(error, Retryable) else None
    if asked_s is not None:
        wait_s = asked_s
    if failures >= MAX_ATTEMPTS or wait_s >= watch.left_s():
        raise failed(url, error, failures, asked_s) from error
    time.sleep(wait_s)


def _too_large(url: str, size: int, expected: Expected) -> DownloadError:
    return DownloadError(
        f"{settings.redacted(url)} sends at least {size} bytes where at most {expected.limit} are "
        "accepted; the file on the server is not the published one, so try another source."
    )


def _check_free(entry: Entry, total: int | None, offset: int) -> None:
    free = shutil.disk_usage(entry.part.parent).free
    if total is not None and total - offset > free:
        raise DownloadError(
            f"The disk that holds {entry.part.parent} is full: {entry.label} needs "
            f"{total - offset} bytes more and {free} are free; free some space or set QZOO_HOME "
            "to a directory on another disk."
        )


def _continues(head: Head, offset: int, known: Record) -> bool:
    found = re.match(rf"bytes {_COUNT}-[0-9]+/", head.headers.get("Content-Range", ""))
    if found is None or not offset or int(found[1]) != offset:
        return False
    return known.total is None or _total_length(head) in (None, known.total)


def _total_length(head: Head) -> int | None:
    """Returns the length of the whole file in bytes, where the server tells a possible one."""
    if head.status in (206, 416):
        found = re.search(rf"/{_COUNT}$", head.headers.get("Content-Range", ""))
    else:
        found = re.fullmatch(_COUNT, head.headers.get("Content-Length", ""))
    return int(found[1]) if found else None


def _retry_after(head: Head) -> float | None:
    """Returns the seconds that the server asks to wait, from a number or a date."""
    text = head.headers.get("Retry-After", "").strip()
    if found := re.fullmatch(_COUNT, text):
        return float(found[1])
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time()) if text else None
    except Exception:  # the parser stumbles over bad dates in many ways
        return None
