"""One GET request that cannot outlive its deadline.

Timeouts of sockets alone cannot hold a deadline: they do not cover the name lookup, and a server
that sends one byte a second never meets them. So the network side runs in a thread of its own and
hands chunks over a queue. That thread owns no file and no lock: one which is left behind in a dead
connection harms nobody until its socket times out.
"""

from __future__ import annotations

import queue
import random
import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import DownloadError
from . import settings

if TYPE_CHECKING:
    import httpx

MAX_ATTEMPTS = 4
MAX_REDIRECTS = 10
RETRIED_STATUS = {408, 425, 429, 500, 502, 503, 504, 507, 509, 520, 521, 522, 523, 524}
MIN_RATE = 1024  # bytes per second; a server that sends less stands still
EMBEDDED_HINT = "(weights that are embedded in the package need no download)"
_jitter = random.Random()  # an instance: the caller's random state is not ours to advance


class Retryable(Exception):
    """A request failed in a way that the next one may not.

    Args:
        reason: Part of a sentence.
        wait_s: Seconds to wait, where the server or the case tells them.
    """

    def __init__(self, reason: str, *, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


class Head(NamedTuple):
    """How a server began its answer."""

    status: int
    headers: httpx.Headers


class StallWatch:
    """Keeps the time at which a download counts as standing still.

    Args:
        timeout_s: Seconds within which `MIN_RATE * timeout_s` bytes must arrive.
    """

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._pending = 0
        self.deadline = time.monotonic() + timeout_s

    def advance(self, count: int) -> None:
        """Notes that `count` bytes arrived."""
        self._pending += count
        if self._pending >= MIN_RATE * self.timeout_s:
            self._pending = 0
            self.deadline = time.monotonic() + self.timeout_s

    def left_s(self) -> float:
        """Returns the seconds that are left, at least 0."""
        return max(0.0, self.deadline - time.monotonic())

    def pause(self, failures: int, asked_s: float | None = None) -> bool:
        """Waits before the next attempt, 0.5, 1 and 2 s at the default timeout.

        Each wait is cut by up to a half, so that the clients that a server lost together do not
        come back together.

        Args:
            failures: How many attempts have failed.
            asked_s: Seconds that the server asked to wait instead.

        Returns:
            False, without waiting, where there were enough attempts or the time would run out.
        """
        wait_s = self.timeout_s / 60 * 2.0 ** (failures - 1) * _jitter.uniform(0.5, 1)
        if asked_s is not None:
            wait_s = asked_s
        if failures >= MAX_ATTEMPTS or wait_s >= self.left_s():
            return False
        time.sleep(wait_s)
        return True


class Exchange:
    """One GET request with its redirects, whose response is read in a daemon thread."""

    def __init__(self, url: str, headers: dict[str, str], timeout_s: float) -> None:
        self._url, self._headers, self._timeout_s = url, headers, timeout_s
        self._queue: queue.Queue[Any] = queue.Queue(maxsize=16)
        self._stop = threading.Event()
        threading.Thread(target=self._pump, name="qzoo-download", daemon=True).start()

    def __enter__(self) -> Exchange:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()

    def take(self, watch: StallWatch) -> Any:
        """Returns the next item: a `Head`, then chunks, then None; raises what the thread raised.

        Raises:
            DownloadError: nothing came before the watch ran out.
        """
        try:
            item = self._queue.get(timeout=watch.left_s())
        except queue.Empty:
            raise DownloadError(
                f"{host_of(self._url)} made no progress for {watch.timeout_s:g} s while "
                f"fetching {settings.redacted(self._url)}; check the network, try again later or "
                f"set QZOO_TIMEOUT to more seconds {EMBEDDED_HINT}."
            ) from None
        if isinstance(item, Exception):
            raise item
        return item

    def _pump(self) -> None:
        import httpx

        try:
            self._exchange()
        except (DownloadError, httpx.TransportError) as error:
            self._put(error)
        except Exception as error:  # a bad proxy variable, an unusable url, a missing CA file
            self._put(failed(self._url, error))

    def _exchange(self) -> None:
        import httpx

        with httpx.Client(timeout=self._timeout_s, follow_redirects=False) as client:
            request = client.build_request("GET", self._url, headers=self._headers)
            for _ in range(MAX_REDIRECTS + 1):
                response = client.send(request, stream=True)
                if response.next_request is None:
                    break
                # httpx drops the credentials here when the host changes.
                request = response.next_request
                response.close()
                _refuse_downgrade(response.url, request.url)
            else:
                raise DownloadError(
                    f"{settings.redacted(self._url)} redirects more than {MAX_REDIRECTS} times; "
                    "check the url or QZOO_MIRROR."
                )
            try:
                self._put(Head(response.status_code, response.headers))
                # Raw: what is hashed and resumed are the bytes as they were transferred.
                for chunk in response.iter_raw():
                    if not self._put(chunk):
                        return
                self._put(None)
            finally:
                response.close()

    def _put(self, item: object) -> bool:
        """Hands an item over; False once nobody listens any more."""
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=0.2)
                return True
            except queue.Full:
                continue
        return False


def _refuse_downgrade(origin: httpx.URL, target: httpx.URL) -> None:
    if target.scheme == "https" or (target.scheme == "http" and origin.scheme == "http"):
        return
    raise DownloadError(
        f"{settings.redacted(str(origin))} redirects to {settings.redacted(str(target))}, which "
        f"is refused because {target.scheme}:// is not as safe as {origin.scheme}://; use another "
        "source."
    )


def failed(
    url: str, error: Exception, failures: int = 1, asked_s: float | None = None
) -> DownloadError:
    """Returns the sentence for a request that will not be tried again."""
    import httpx

    reason = str(error) or type(error).__name__
    times = f" after {failures} attempts" if failures > 1 else ""
    wait = f", and asks to wait {asked_s:.0f} s" if asked_s else ""
    if isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError)):
        return DownloadError(
            f"{host_of(url)} could not be reached{times} ({reason}), so {settings.redacted(url)} "
            f"was not downloaded; check the network or set QZOO_MIRROR {EMBEDDED_HINT}."
        )
    return DownloadError(
        f"{settings.redacted(url)} could not be downloaded{times} ({reason}{wait}); try again "
        "later, or set QZOO_MIRROR to another server."
    )


def host_of(url: str) -> str:
    """Returns the host name of a url."""
    return settings.split_url(url).hostname or settings.redacted(url)
