"""What the environment says about downloads, read at every call and never changed.

`QZOO_HOME`      the cache directory; default `<torch.hub.get_dir()>/qzoo`
`QZOO_TIMEOUT`   seconds without progress after which a download fails; default 30
`QZOO_OFFLINE`   1: use no network at all
`QZOO_MIRROR`    base url that takes the place of scheme and host of every http(s) url; also of
                 the Hub's, for `hf://` without `HF_ENDPOINT`, and then no token is sent
`HF_ENDPOINT`, `HF_HUB_OFFLINE`, `HF_TOKEN`: as huggingface_hub documents them, for `hf://`
"""

from __future__ import annotations

import math
import os
from urllib.parse import SplitResult, urlsplit, urlunsplit

from ..errors import DownloadError

DEFAULT_TIMEOUT_S = 30.0
_YES = {"1", "true", "yes", "on"}
_NO = {"", "0", "false", "no", "off"}


def timeout_s() -> float:
    """Returns the seconds without progress after which a download fails (`QZOO_TIMEOUT`).

    Raises:
        DownloadError: the variable is no positive number.
    """
    text = os.environ.get("QZOO_TIMEOUT", "").strip()
    if not text:
        return DEFAULT_TIMEOUT_S
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds > 0):
        raise DownloadError(
            f"QZOO_TIMEOUT must be a positive number of seconds, but it is {text!r}."
        )
    return seconds


def is_offline(*, hub: bool = False) -> bool:
    """Says whether no network may be used (`QZOO_OFFLINE`; for `hf://` also `HF_HUB_OFFLINE`)."""
    return offline_variable(hub=hub) is not None


def offline_variable(*, hub: bool = False) -> str | None:
    """Returns the name of the variable that switches the network off, or None."""
    # Anything but a clear no switches the network off.
    if os.environ.get("QZOO_OFFLINE", "").strip().lower() not in _NO:
        return "QZOO_OFFLINE"
    # The Hub's client goes by this list.
    if hub and os.environ.get("HF_HUB_OFFLINE", "").strip().lower() in _YES:
        return "HF_HUB_OFFLINE"
    return None


def split_url(url: str) -> SplitResult:
    """Splits a url into its parts.

    Raises:
        DownloadError: it is malformed.
    """
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises where it is no number
    except ValueError as error:
        raise DownloadError(f"{redacted(url)!r} is not a valid url: {error}.") from error
    return parts


def mirror() -> str | None:
    """Returns the base url that `QZOO_MIRROR` names, without a slash at its end, or None.

    Raises:
        DownloadError: it is no http(s) url.
    """
    base = os.environ.get("QZOO_MIRROR", "").strip()
    if not base:
        return None
    parts = split_url(base)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise DownloadError(
            f"QZOO_MIRROR must be an http:// or https:// url, but it is {redacted(base)!r}."
        )
    return urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/"), "", ""))


def mirrored(url: str) -> str:
    """Returns the http(s) url to ask: `url` itself, or its path and query below `QZOO_MIRROR`.

    Raises:
        DownloadError: `QZOO_MIRROR` is no http(s) url.
    """
    base = mirror()
    if base is None:
        return url
    parts = split_url(url)
    query = f"?{parts.query}" if parts.query else ""
    return f"{base}/{parts.path.lstrip('/')}{query}"


def redacted(url: str) -> str:
    """Returns the url without user name, password, query and fragment, for messages and records.

    Signed urls carry their secret in the query.
    """
    head, separator, rest = url.partition("://")
    if not separator:
        return url
    rest = rest.split("#", 1)[0].split("?", 1)[0]
    host, slash, path = rest.partition("/")
    return head + separator + host.rpartition("@")[2] + slash + path
