"""One http(s) url into its partial file: resumed, retried, bounded in size and in time."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import IO, Any

from .._version import __version__
from ..errors import DownloadError
from . import settings
from .cache import Entry, Expected, Record, storage_error, strong_etag
from .exchange import RETRIED_STATUS, Exchange, Head, Retryable, StallWatch, failed

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

    own = {"Accept-Encoding": "identity", "User-Agent": f"qzoo/{__version__}"}
    headers = {**own, **(headers or {})}
    with tqdm(
        desc=entry.label,
        unit="B",
        unit_scale=True,
        unit_divisor=1024,
        file=sys.stderr,
        disable=not progress,
    ) as bar:
        transfer = _Transfer(url, headers, entry, expected, StallWatch(settings.timeout_s()), bar)
        failures = 0
        while True:
            before = entry.held_bytes()
            try:
                return transfer.attempt()
            except (Retryable, httpx.TransportError) as error:
                if isinstance(error, (httpx.UnsupportedProtocol, httpx.LocalProtocolError)):
                    raise failed(url, error) from error
                failures = 1 if entry.held_bytes() - before >= PROGRESS_BYTES else failures + 1
                asked_s = error.wait_s if isinstance(error, Retryable) else None
                if not transfer.watch.pause(failures, asked_s):
                    raise failed(url, error, failures, asked_s) from error
            except DownloadError:
                if not entry.held_bytes():
                    entry.discard_part()
                raise
            except OSError as error:
                # A disk that cannot hold the file gets its space back.
                with contextlib.suppress(OSError):
                    entry.discard_part()
                raise storage_error(error, entry.part) from error


@dataclass(frozen=True)
class _Transfer:
    """What the attempts to download one file share."""

    url: str
    headers: Mapping[str, str]
    entry: Entry
    expected: Expected
    watch: StallWatch
    bar: Any

    def attempt(self) -> bool:
        """Makes one request; returns whether it continued an earlier one."""
        entry, headers = self.entry, dict(self.headers)
        offset, known = entry.held_bytes(), entry.read_record()
        unknown = known.etag is None and known.total is None
        if offset and (unknown or offset > (known.total or self.expected.limit)):
            entry.discard_part()  # nothing tells what these bytes are part of, or they are too many
            offset = 0
        if offset:
            headers["Range"] = f"bytes={offset}-"
            if known.etag is not None:
                headers["If-Range"] = known.etag
        # A third, so that a connection which hangs leaves time for another try.
        with Exchange(self.url, headers, self.watch.timeout_s / 3) as exchange:
            head: Head = exchange.take(self.watch)
            total = _total_length(head)
            if head.status == 416 and offset and total == offset == known.total:
                return True  # only the last step of an earlier download was missing
            if head.status == 416 or (head.status == 206 and not _continues(head, offset, known)):
                entry.discard_part()
                raise Retryable("the file changed on the server", wait_s=0)
            self._check_head(head, total)
            offset = offset if head.status == 206 else 0
            entry.write_record(strong_etag(head.headers.get("ETag", "")), total)
            self._check_free(total, offset)
            self.bar.reset(total)
            self.bar.update(offset)
            with entry.open_part(append=offset > 0) as file:
                self._receive(exchange, file, offset, total)
                file.flush()
                os.fsync(file.fileno())
        return offset > 0

    def _receive(
        self, exchange: Exchange, file: IO[bytes], received: int, total: int | None
    ) -> None:
        """Writes the body to `file`, which holds `received` bytes already."""
        while (chunk := exchange.take(self.watch)) is not None:
            received += len(chunk)
            if received > (self.expected.limit if total is None else total):
                file.truncate(0)
                raise self._too_large(received)
            file.write(chunk)
            self.watch.advance(len(chunk))
            self.bar.update(len(chunk))
        if total is not None and received < total:
            raise Retryable(f"the server closed the connection after {received} of {total} bytes")

    def _check_head(self, head: Head, total: int | None) -> None:
        status, name, wanted = head.status, settings.redacted(self.url), self.expected.size
        if status in RETRIED_STATUS:
            raise Retryable(f"the server answered {status}", wait_s=_retry_after(head))
        if status in (401, 403):
            raise DownloadError(
                f"{name} may not be read (HTTP {status}); check the url and its access."
            )
        if status in (404, 410):
            raise DownloadError(
                f"{name} does not exist (HTTP {status}); check the url or QZOO_MIRROR."
            )
        if status not in (200, 206):
            raise DownloadError(
                f"{name} answered HTTP {status} instead of the file; check the url."
            )
        encoding = head.headers.get("Content-Encoding", "").strip()
        if encoding.lower() not in ("", "identity"):
            raise DownloadError(
                f"{name} is sent in the encoding {encoding[:40]!r}, which was not asked for; a "
                "proxy or mirror in between must pass the file as it is."
            )
        if total is not None and total > self.expected.limit:
            raise self._too_large(total)
        if total is not None and wanted is not None and total != wanted:
            raise DownloadError(
                f"{name} has {total} bytes where {wanted} were expected; the file on the "
                "server is not the published one, so try another source or QZOO_MIRROR."
            )

    def _too_large(self, size: int) -> DownloadError:
        return DownloadError(
            f"{settings.redacted(self.url)} sends at least {size} bytes where at most "
            f"{self.expected.limit} are accepted; the file on the server is not the published "
            "one, so try another source."
        )

    def _check_free(self, total: int | None, offset: int) -> None:
        free = shutil.disk_usage(self.entry.part.parent).free
        if total is not None and total - offset > free:
            raise DownloadError(
                f"The disk that holds {self.entry.part.parent} is full: {self.entry.label} needs "
                f"{total - offset} bytes more and {free} are free; free some space or set "
                "QZOO_HOME to a directory on another disk."
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
