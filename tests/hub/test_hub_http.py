"""Downloads over HTTP: what a good server gives, and every way in which a bad one may fail."""

from __future__ import annotations

import logging
import os
import random
import time
import warnings
from functools import partial

import httpx
import pytest

from qzoo import hub
from qzoo.errors import ArgumentError, DownloadError
from qzoo.hub import cache, fetch
from tests.helpers.servers import finals, parts, sha

SIZE = 600_000


@pytest.fixture
def data(make_payload) -> bytes:
    return make_payload(SIZE)


def fails(url: str, **expected) -> str:
    """Fetches, requires the one error, and returns its sentence."""
    with pytest.raises(DownloadError) as caught:
        fetch(url, progress=False, **expected)
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".")
    return message


def test_downloads_once_and_verifies_every_time(server, data, home):
    url = server.add("/models/a_0123.pth", data)
    path = fetch(url, sha256=sha(data).upper(), size=SIZE, progress=False)
    assert path.read_bytes() == data
    assert path.name == "a_0123.pth" and home in path.parents
    assert fetch(url, sha256_prefix=sha(data)[:8], progress=False) == path
    assert len(server.seen) == 1
    assert hub.is_cached(url) and not hub.is_cached(url + "x")
    assert not parts(home)


def test_without_a_hash_the_length_is_checked(server, data):
    assert fetch(server.add("/a", data), progress=False).read_bytes() == data
    assert fetch(server.add("/b", data, declared=-1), progress=False).read_bytes() == data
    assert fetch(server.add("/empty", b""), progress=False).read_bytes() == b""


def test_same_name_from_two_urls_does_not_collide(server):
    one, two = server.add("/x/a.pth", b"one"), server.add("/y/a.pth", b"two")
    assert fetch(one, progress=False) != fetch(two, progress=False)
    assert fetch(one + "?v=2", progress=False) != fetch(one, progress=False)


def test_progress_goes_to_stderr_only_when_wanted(server, data, capsys):
    fetch(server.add("/silent.bin", data), progress=False)
    assert capsys.readouterr() == ("", "")
    fetch(server.add("/loud.bin", data), progress=True)
    out, err = capsys.readouterr()
    assert out == "" and "loud.bin" in err and "100%" in err


def test_no_side_effects(server, data):
    url = server.add("/a", data, statuses=[(503, {"X-Once": "1"})])
    before = (
        random.getstate(),
        list(warnings.filters),
        dict(os.environ),
        list(logging.root.handlers),
    )
    fetch(url, progress=False)
    after = (
        random.getstate(),
        list(warnings.filters),
        dict(os.environ),
        list(logging.root.handlers),
    )
    assert len(server.seen) == 2
    assert before == after


@pytest.mark.parametrize("etag", ['"v1"', None, 'W/"weak"'])
def test_resumes_after_an_early_close(server, data, etag):
    url = server.add("/a", data, cuts=[200_000, 100_000], etag=etag)
    assert fetch(url, sha256=sha(data), progress=False).read_bytes() == data
    ranges = [seen.headers.get("Range") for seen in server.seen]
    assert ranges == [None, "bytes=200000-", "bytes=300000-"]
    strong = etag if etag == '"v1"' else None
    assert server.seen[1].headers.get("If-Range") == strong


def test_starts_over_when_the_server_ignores_range(server, data):
    url = server.add("/a", data, cuts=[200_000], ranges=False)
    assert fetch(url, sha256=sha(data), progress=False).read_bytes() == data
    assert len(server.seen) == 2


def interrupted(server, url, path, data, **options) -> None:
    """Leaves the first half of a download in the cache."""
    server.add(path, data, cuts=[len(data) // 2], statuses=[], **options)
    server.routes[path].cuts += [0] * 10
    fails(url)


def test_a_later_call_resumes(server, data, home):
    url = server.base + "/a"
    interrupted(server, url, "/a", data)
    assert parts(home)[0].stat().st_size == SIZE // 2 and not finals(home)
    (file,) = hub.list_cache()
    assert (file.complete, file.size, file.url) == (False, SIZE // 2, url)
    server.add("/a", data)
    assert fetch(url, sha256=sha(data), progress=False).read_bytes() == data
    assert server.seen[-1].headers["Range"] == f"bytes={SIZE // 2}-"
    assert not parts(home)


@pytest.mark.parametrize("etag", ['"v2"', None])
@pytest.mark.parametrize("size", [SIZE - 1000, SIZE // 4, SIZE])
def test_starts_over_when_the_file_changed(server, data, make_payload, etag, size):
    url = server.base + "/a"
    interrupted(server, url, "/a", data, etag=None if etag is None else '"v1"')
    new = make_payload(size, seed=1)
    server.add("/a", new, etag=etag)
    assert fetch(url, sha256=sha(new), progress=False).read_bytes() == new


def test_only_the_last_step_was_missing(server, data, home):
    url = server.base + "/a"
    interrupted(server, url, "/a", data)
    parts(home)[0].write_bytes(data)
    server.add("/a", data)
    before = len(server.seen)
    assert fetch(url, sha256=sha(data), progress=False).read_bytes() == data
    assert len(server.seen) == before + 1  # answered 416, nothing was sent again


def test_a_part_of_unknown_origin_is_not_trusted(server, data, home):
    url = server.base + "/a"
    interrupted(server, url, "/a", data)
    for record in (home / "files").glob("*/*/.*.json"):
        record.write_text("[not a record")
    parts(home)[0].write_bytes(b"x" * 1000)
    server.add("/a", data)
    assert fetch(url, progress=False).read_bytes() == data


def test_wrong_bytes(server, data, home):
    url = server.add("/a", data[:-1] + b"!")
    message = fails(url, sha256=sha(data))
    assert sha(data) in message and sha(data[:-1] + b"!") in message
    assert not finals(home) and not parts(home)
    message = fails(url, sha256_prefix=sha(data)[:8])
    assert f"where {sha(data)[:8]} was expected" in message


def test_wrong_length(server, data, home):
    url = server.add("/a", data)
    assert f"has {SIZE} bytes where {SIZE + 1} were expected" in fails(url, size=SIZE + 1)
    assert f"at most {SIZE - 1} are accepted" in fails(url, size=SIZE - 1)
    # A server that claims more than it sends, and one that claims nothing and sends too much.
    assert "could not be downloaded" in fails(
        server.add("/b", data, declared=SIZE + 5, ranges=False)
    )
    assert "are accepted" in fails(server.add("/c", data, declared=-1), size=1000)
    assert "has 600000 bytes" in fails(server.add("/d", data, declared=-1), size=SIZE + 1)
    assert not finals(home)


def test_a_body_without_bound_is_refused(server, data, monkeypatch, home):
    monkeypatch.setattr(cache, "MAX_BYTES", 100_000)
    assert "at most 100000 are accepted" in fails(server.add("/a", data))
    assert "at most 100000 are accepted" in fails(server.add("/b", data, declared=-1))
    assert not finals(home) and not parts(home)


def test_redirects(server, data):
    for i in range(5):
        server.add(f"/r{i}", statuses=[(302, {"Location": f"/r{i + 1}"})])
    server.add("/r5", data, cuts=[1000])
    assert fetch(server.base + "/r0", sha256=sha(data), progress=False).name == "r0"


def test_redirect_loop_and_foreign_schemes(server, home):
    server.add("/loop", statuses=[(301, {"Location": "/loop", "X": "1"})] * 99)
    assert "redirects more than 10 times" in fails(server.base + "/loop")
    server.add("/file", statuses=[(302, {"Location": "file:///etc/passwd"})])
    fails(server.base + "/file")
    server.add("/nowhere", statuses=[(302, {})])
    assert "HTTP 302" in fails(server.base + "/nowhere")
    assert not finals(home)


def test_https_to_http_is_refused(monkeypatch):
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(str(request.url))
        return httpx.Response(302, headers={"Location": "http://example.test/a"})

    client = partial(httpx.Client, transport=httpx.MockTransport(answer))
    monkeypatch.setattr(httpx, "Client", client)
    assert "refused" in fails("https://example.test/a")
    assert asked == ["https://example.test/a"]


@pytest.mark.parametrize("status", [500, 502, 503, 429])
def test_tries_again_after_a_failing_server(server, data, status):
    url = server.add("/a", data, statuses=[(status, {}), (status, {"X-Once": "1"})])
    assert fetch(url, sha256=sha(data), progress=False).read_bytes() == data
    assert len(server.seen) == 3


def test_gives_up_on_a_server_that_keeps_failing(server):
    assert "after 4 attempts" in fails(server.add("/a", statuses=[(500, {})]))
    assert len(server.seen) == 4


def test_honours_retry_after_within_the_deadline(server, data):
    url = server.add("/a", data, statuses=[(429, {"Retry-After": "1", "X-Once": "1"})])
    start = time.monotonic()
    fetch(url, progress=False)
    assert 1.0 <= time.monotonic() - start < 3
    start = time.monotonic()
    server.add("/b", statuses=[(503, {"Retry-After": "Fri, 31 Dec 2100 23:59:59 GMT"})])
    assert "asks to wait" in fails(server.base + "/b")
    assert "asks to wait 600 s" in fails(server.add("/c", statuses=[(429, {"Retry-After": "600"})]))
    assert time.monotonic() - start < 2.8


@pytest.mark.parametrize(
    ("status", "word"), [(404, "exist"), (403, "may not be read"), (418, "418")]
)
def test_answers_that_no_retry_mends(server, status, word):
    assert word in fails(server.add("/a", statuses=[(status, {})]))
    assert len(server.seen) == 1


def test_an_encoded_body_is_refused(server, data):
    url = server.add("/a", data, headers={"Content-Encoding": "gzip"})
    assert "encoding 'gzip'" in fails(url)
    assert server.seen[0].headers["Accept-Encoding"] == "identity"


def test_a_hanging_server_ends_at_the_timeout(server, monkeypatch):
    monkeypatch.setenv("QZOO_TIMEOUT", "1")
    start = time.monotonic()
    message = fails(server.add("/a", hang=True))
    assert 0.9 < time.monotonic() - start < 4
    assert "QZOO_TIMEOUT" in message and "need no download" in message
    assert len(server.seen) > 1  # it was tried again within that time


def test_a_trickling_server_ends_at_the_timeout(server, data, home, monkeypatch):
    monkeypatch.setenv("QZOO_TIMEOUT", "1")
    url = server.add("/a", data, slice_bytes=10, slice_s=0.05)
    start = time.monotonic()
    fails(url)
    assert 0.9 < time.monotonic() - start < 4
    assert not finals(home)


def test_a_slow_server_that_gets_on_is_not_cut_off(server, data, monkeypatch):
    monkeypatch.setenv("QZOO_TIMEOUT", "1")
    url = server.add("/a", data, slice_bytes=SIZE // 15, slice_s=0.1)
    start = time.monotonic()
    assert fetch(url, progress=False).read_bytes() == data
    assert time.monotonic() - start > 1.4


def test_a_name_lookup_that_hangs_ends_at_the_timeout(monkeypatch):
    monkeypatch.setenv("QZOO_TIMEOUT", "0.5")
    monkeypatch.setattr("socket.getaddrinfo", lambda *args, **kwargs: time.sleep(3))
    start = time.monotonic()
    fails("http://example.test/a")
    assert time.monotonic() - start < 2.8


def test_no_network(server):
    url = server.add("/a")
    server.close()
    message = fails(url)
    assert "could not be reached" in message and "need no download" in message


def test_mirror(server, data, monkeypatch):
    monkeypatch.setenv("QZOO_MIRROR", server.base + "/mirror/")
    server.add("/mirror/models/a.pth", data)
    url = "https://example.test/models/a.pth?key=1"
    path = fetch(url, sha256=sha(data), progress=False)
    assert server.seen[0].path == "/mirror/models/a.pth?key=1"
    # The cache belongs to the url, so the mirror may come and go.
    monkeypatch.delenv("QZOO_MIRROR")
    assert fetch(url, sha256=sha(data), progress=False) == path
    monkeypatch.setenv("QZOO_MIRROR", server.base + "/mirror")
    server.add("/mirror/models/b.pth", b"forged")
    message = fails("https://example.test/models/b.pth", sha256=sha(data))
    assert "is not the expected file" in message


def test_settings_that_cannot_be(server, monkeypatch):
    url = server.add("/a", b"a")
    for value in ("soon", "0", "-1", "nan", "inf"):
        monkeypatch.setenv("QZOO_TIMEOUT", value)
        assert "QZOO_TIMEOUT" in fails(url)
    monkeypatch.delenv("QZOO_TIMEOUT")
    monkeypatch.setenv("QZOO_MIRROR", "ftp://example.test")
    assert "QZOO_MIRROR" in fails(url)
    monkeypatch.setenv("QZOO_MIRROR", "")
    assert fetch(url, progress=False).read_bytes() == b"a"


def test_arguments_that_cannot_be(server):
    url = server.add("/a", b"a")
    for wrong in ({"sha256": "abc"}, {"sha256_prefix": "xyzxyzxy"}, {"size": -1}):
        with pytest.raises(ArgumentError):
            fetch(url, progress=False, **wrong)
    for bad in ("", "a.pth", "ftp://example.test/a", "http:///a", "http://[::1/a", "http://a:b/c"):
        fails(bad)


def test_secrets_of_a_url_are_not_shown(server, data):
    url = server.add("/a", data).replace("://", "://user:pass@") + "?X-Signature=secret"
    fetch(url, progress=False)
    assert server.seen[0].path.endswith("?X-Signature=secret")
    (file,) = hub.list_cache()
    assert file.url == server.base + "/a"
    message = fails(url.replace("/a?", "/missing?"))
    assert "secret" not in message and "pass@" not in message
