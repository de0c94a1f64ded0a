"""Servers on loopback that behave badly on purpose, and a cache of its own for every test."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest


def payload(size: int, seed: int = 0) -> bytes:
    """Returns bytes that differ everywhere, so that a shifted or repeated piece is noticed."""
    block = b"".join(hashlib.sha256(f"{seed}:{i}".encode()).digest() for i in range(64))
    return (block * (size // len(block) + 1))[: max(0, size - 8)] + b"the end."[: min(8, size)]


@dataclass
class Route:
    """How the server answers one path.

    Attributes:
        statuses: (status, headers) of the first answers, before the file is sent.
        cuts: Bytes after which the first bodies break off.
        declared: A Content-Length to claim instead of the true one; -1 sends none.
        slice_bytes, slice_s: Sends in slices with a pause after each.
        hang: Accepts the request and never answers.
    """

    data: bytes = b""
    etag: str | None = '"v1"'
    ranges: bool = True
    headers: dict[str, str] = field(default_factory=dict)
    statuses: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    cuts: list[int] = field(default_factory=list)
    declared: int | None = None
    slice_bytes: int = 1 << 16
    slice_s: float = 0.0
    hang: bool = False


@dataclass
class Seen:
    """One request as the server saw it."""

    method: str
    path: str
    headers: dict[str, str]


class FileServer:
    """An HTTP server in a thread; `routes` may be changed while it runs."""

    def __init__(self) -> None:
        self.routes: dict[str, Route] = {}
        self.seen: list[Seen] = []
        self.closing = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args: Any) -> None:
                pass

            def do_GET(self) -> None:
                outer.answer(self)

            def do_HEAD(self) -> None:
                outer.answer(self)

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False
            request_queue_size = 64

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # clients are killed and hang up here all the time

        self._server = Server(("127.0.0.1", 0), Handler)
        self.base = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()

    def add(self, path: str, data: bytes = b"", **options: Any) -> str:
        """Serves `data` at `path` and returns the url."""
        self.routes[path] = Route(data, **options)
        return self.base + path

    def route_of(self, handler: BaseHTTPRequestHandler) -> Route | None:
        return self.routes.get(handler.path.split("?", 1)[0])

    def gets(self) -> list[Seen]:
        return [seen for seen in self.seen if seen.method == "GET"]

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        self.seen.append(Seen(handler.command, handler.path, dict(handler.headers.items())))
        route = self.route_of(handler)
        if route is None:
            route = Route(statuses=[(404, {})])
        if route.hang:
            self.closing.wait(30)
            return
        if route.statuses:
            status, headers = route.statuses[0]
            if len(route.statuses) > 1 or "X-Once" in headers:
                route.statuses.pop(0)
            handler.send_response(status)
            for name, value in headers.items():
                handler.send_header(name, value)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        self.send_file(handler, route)

    def send_file(self, handler: BaseHTTPRequestHandler, route: Route) -> None:
        data, start = route.data, 0
        asked = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
        if_range = handler.headers.get("If-Range")
        if route.ranges and asked and if_range in (None, route.etag):
            start = int(asked[1])
            if start >= len(data):
                handler.send_response(416)
                handler.send_header("Content-Range", f"bytes */{len(data)}")
                handler.send_header("Content-Length", "0")
                handler.end_headers()
                return
            handler.send_response(206)
            handler.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        else:
            handler.send_response(200)
        body = data[start:]
        if route.declared != -1:
            handler.send_header("Content-Length", str(route.declared or len(body)))
        if route.etag:
            handler.send_header("ETag", route.etag)
        for name, value in route.headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        if handler.command == "HEAD":
            return
        if route.cuts:
            body = body[: route.cuts.pop(0)]
        for first in range(0, len(body), route.slice_bytes):
            handler.wfile.write(body[first : first + route.slice_bytes])
            if route.slice_s and self.closing.wait(route.slice_s):
                return


class HubServer(FileServer):
    """Speaks the part of the Hub's protocol that a download needs: HEAD and GET of /resolve/."""

    def __init__(self) -> None:
        super().__init__()
        self.files: dict[tuple[str, str], Route] = {}  # by commit and path
        self.revisions: dict[str, str] = {}  # branch or tag to commit
        self.repo = "qzoo-test/tiny"

    def commit(self, revision: str, path: str, data: bytes, **options: Any) -> str:
        """Puts a file at a new commit to which `revision` points; returns the commit."""
        commit = hashlib.sha1(f"{revision}{path}".encode() + data).hexdigest()
        options.setdefault("etag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.files[commit, path] = Route(data, **options)
        self.revisions[revision] = commit
        return commit

    def route_of(self, handler: BaseHTTPRequestHandler) -> Route | None:
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", handler.path)
        code = "RepoNotFound"
        if match is not None and match[1] == self.repo:
            commit = self.revisions.get(match[2], match[2])
            code = "RevisionNotFound"
            if any(commit == known for known, _ in self.files):
                code = "EntryNotFound"
                if route := self.files.get((commit, match[3])):
                    route.headers.update(
                        {
                            "X-Repo-Commit": commit,
                            "X-Linked-Etag": route.etag or "",
                            "X-Linked-Size": str(len(route.data)),
                        }
                    )
                    return route
        return Route(statuses=[(404, {"X-Error-Code": code})])


@pytest.fixture
def server() -> Iterator[FileServer]:
    running = FileServer()
    yield running
    running.close()


@pytest.fixture
def hub_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    running = HubServer()
    monkeypatch.setenv("HF_ENDPOINT", running.base)
    yield running
    running.close()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and none of the variables that would change a download."""
    proxies = [f"{kind}_proxy" for kind in ("http", "https", "all")]
    for name in (
        *("QZOO_OFFLINE", "QZOO_MIRROR", "HF_HUB_OFFLINE", "HF_ENDPOINT", "HF_TOKEN"),
        *proxies,
        *map(str.upper, proxies),
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("QZOO_TIMEOUT", "3")
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
    monkeypatch.setenv("QZOO_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def sha(data: bytes) -> str:
    """Returns the hash by which a file is verified."""
    return hashlib.sha256(data).hexdigest()


def finals(home: Path) -> list[Path]:
    """Returns every file of the cache under a final name."""
    return [path for path in (home / "files").glob("*/*/*") if not path.name.startswith(".")]


def parts(home: Path) -> list[Path]:
    """Returns every unfinished download of the cache."""
    return list((home / "files").glob("*/*/.*.part"))
