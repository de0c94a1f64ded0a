"""Whatever lies in the cache and whatever a server says: nothing hangs, nothing outside changes.

Each place of a download is taken by each kind of thing that does not belong there, and each header
by values that no honest server sends. The next download must bring the file, or one sentence.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from qzoo import hub
from qzoo.errors import DownloadError
from qzoo.hub import cache, fetch
from qzoo.hub.repository import HubFile

pytestmark = [
    pytest.mark.timeout(60),  # what must not hang is ended where it does
    pytest.mark.skipif(os.name != "posix", reason="pipes and links are made as on Unix"),
]
HUB_URL = "hf://qzoo-test/tiny/int8/model.safetensors"
DATA = b"0123456789" * 3000


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder of the user's that nothing may change."""
    folder = tmp_path / "outside"
    (folder / "in" / "it").mkdir(parents=True)
    (folder / "file").write_bytes(b"mine")
    (folder / "in" / "it" / "file").write_bytes(b"mine, too")
    return folder


def contents(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def _folder(path: Path, outside: Path) -> None:
    (path / "full" / "of").mkdir(parents=True)
    (path / "full" / "of" / "things").write_bytes(b"x")


def _socket(path: Path, outside: Path) -> None:
    before = Path.cwd()
    os.chdir(path.parent)  # the names of sockets may not be long
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(before)


def _huge(path: Path, outside: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


#: What may lie where a file belongs.
KINDS: dict[str, Callable[[Path, Path], object]] = {
    "pipe": lambda path, outside: os.mkfifo(path),
    "socket": _socket,
    "folder": _folder,
    "link to a file": lambda path, outside: path.symlink_to(outside / "file"),
    "link to a new file": lambda path, outside: path.symlink_to(outside / "new"),
    "link to a folder": lambda path, outside: path.symlink_to(outside / "in"),
    "link to a device": lambda path, outside: path.symlink_to("/dev/zero"),
    "link to itself": lambda path, outside: path.symlink_to(path.name),
    "second name": lambda path, outside: os.link(outside / "file", path),
    "huge": _huge,
    "no text": lambda path, outside: path.write_bytes(b"\xff\xfe\x00"),
}
#: Those that may lie where a folder belongs.
NO_FOLDERS = ["pipe", "link to a file", "link to a folder", "link to itself", "no text"]


def fetch_unharmed(url: str, outside: Path) -> list[str]:
    """Fetches, checks that nothing outside was touched, and returns the warnings."""
    before = contents(outside)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        path = fetch(url, sha256=hashlib.sha256(DATA).hexdigest(), progress=False)
        assert path.read_bytes() == DATA
        assert fetch(url, progress=False) == path
    assert contents(outside) == before
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize("place", ["final", "part", "record", "lock"])
@pytest.mark.parametrize("kind", KINDS)
def test_in_the_place_of_a_file(server, outside, place, kind):
    url = server.add("/a.pth", DATA)
    entry = cache.entry_for(url)
    entry.final.parent.mkdir(parents=True)
    path = getattr(entry, place)
    KINDS[kind](path, outside)
    said = fetch_unharmed(url, outside)
    # A record and the lock's content are nobody's loss; what is removed or damaged is named.
    if place == "final" or (place in ("part", "lock") and kind not in ("huge", "no text")):
        assert any(str(path) in text for text in said), said
    assert hub.list_cache()[0].size == len(DATA) and len(hub.clear_cache()) == 1
    assert not hub.list_cache() and contents(outside)["file"] == b"mine"


@pytest.mark.parametrize("place", ["files", "host", "key"])
@pytest.mark.parametrize("kind", NO_FOLDERS)
def test_in_the_place_of_a_folder(server, home, outside, place, kind):
    url = server.add("/a.pth", DATA)
    key = cache.entry_for(url).final.parent
    path = {"files": home / "files", "host": key.parent, "key": key}[place]
    path.parent.mkdir(parents=True)
    KINDS[kind](path, outside)
    hub.clear_cache()  # sees nothing of what lies behind a link
    assert any(str(path) in text for text in fetch_unharmed(url, outside))


@pytest.mark.parametrize("place", ["final", "part"])
@pytest.mark.parametrize("kind", KINDS)
def test_listed_and_cleared(server, outside, place, kind):
    entry = cache.entry_for(server.add("/a.pth", DATA))
    entry.final.parent.mkdir(parents=True)
    path = getattr(entry, place)
    KINDS[kind](path, outside)
    before = contents(outside)
    assert [file.path for file in hub.list_cache()] == [path]
    assert [file.path for file in hub.clear_cache()] == [path]
    assert not hub.list_cache() and contents(outside) == before
    assert not path.exists() and not path.is_symlink()


def test_the_user_may_keep_the_cache_elsewhere(server, home, outside, monkeypatch):
    (outside / "disk").mkdir()
    home.symlink_to(outside / "disk")
    path = fetch(server.add("/a.pth", DATA), progress=False)
    assert path.read_bytes() == DATA and (outside / "disk" / "files").is_dir()


RECORDS = {
    "deep": b"[" * 100_000,
    "no JSON": b"{",
    "no text": b"\xff\xfe\x80",
    "empty": b"",
    "a list": b"[1]",
    "null": b"null",
    "huge": b'{"url": "' + b"x" * (1 << 21) + b'"}',
    "types": b'{"url": 1, "etag": ["a"], "total": "x"}',
    "bool": b'{"etag": null, "total": true}',
    "negative": b'{"etag": null, "total": -5}',
    "digits": b'{"etag": null, "total": ' + b"9" * 5000 + b"}",
    "float": b'{"etag": null, "total": 1e999}',
    "NaN": b'{"etag": null, "total": NaN}',
    "twice": b'{"total": 1, "total": 10, "etag": "a"}',
    "etag without quotes": b'{"etag": "abc"}',
    "etag not ASCII": '{"etag": "\\"ü\\""}'.encode(),
    "etag with a line": b'{"etag": "\\"a\\r\\nHost: evil\\""}',
    "etag of surrogates": b'{"etag": "\\"\\ud800\\""}',
    "etag too long": b'{"etag": "\\"' + b"a" * 60_000 + b'\\""}',
    "etag of another": b'{"etag": "\\"other\\"", "total": 30000}',
}


@pytest.mark.parametrize("content", RECORDS.values(), ids=RECORDS)
def test_records(server, outside, content):
    url = server.add("/a.pth", DATA)
    entry = cache.entry_for(url)
    entry.final.parent.mkdir(parents=True)
    entry.record.write_bytes(content)
    assert hub.list_cache() == []
    entry.part.write_bytes(DATA[:1000])
    assert len(hub.list_cache()) == 1
    assert fetch_unharmed(url, outside) == []


HUB_PLACES = [
    "hf",
    "folder",
    "blobs",
    "refs",
    "snapshots",
    "commit",
    "int8",
    "blob",
    "incomplete",
    "record",
    "ref",
    "pointer",
    "lock",
]


@pytest.mark.parametrize("place", HUB_PLACES)
@pytest.mark.parametrize("kind", ["pipe", "folder", "link to a folder"])
def test_in_the_hubs_part(hub_server, outside, place, kind):
    commit = hub_server.commit("main", "int8/model.safetensors", DATA)
    file = HubFile.parse(HUB_URL)
    folder, etag = file.folder, hashlib.sha256(DATA).hexdigest()
    path = {
        "hf": folder.parent,
        "folder": folder,
        "blobs": folder / "blobs",
        "refs": folder / "refs",
        "snapshots": folder / "snapshots",
        "commit": folder / "snapshots" / commit,
        "int8": folder / "snapshots" / commit / "int8",
        "blob": folder / "blobs" / etag,
        "incomplete": folder / "blobs" / f"{etag}.incomplete",
        "record": folder / "blobs" / f".{etag}.json",
        "ref": file.ref,
        "pointer": file.pointer(commit),
        "lock": cache.hub_lock(folder),
    }[place]
    path.parent.mkdir(parents=True)
    if place == "pointer":  # where it is known from before
        file.ref.parent.mkdir(parents=True)
        file.ref.write_text(commit)
    KINDS[kind](path, outside)
    fetch_unharmed(HUB_URL, outside)
    assert hub.clear_cache() and not hub.list_cache() and outside.exists()


@pytest.mark.parametrize(
    "text",
    [b"../../../outside", b"/etc", b"\xff", b"a" * 100_000, b"a" * 40 + b"\n", b""],
)
def test_refs_that_name_no_commit(hub_server, outside, text):
    hub_server.commit("main", "int8/model.safetensors", DATA)
    file = HubFile.parse(HUB_URL)
    file.ref.parent.mkdir(parents=True)
    file.ref.write_bytes(text)
    assert not hub.is_cached(HUB_URL)
    assert fetch_unharmed(HUB_URL, outside) == []


@pytest.mark.parametrize("kind", ["pipe", "folder", "link to a folder", "no text"])
def test_clearing_what_is_no_repository(home, outside, kind):
    path = home / "hf" / "models--a--b"
    path.parent.mkdir(parents=True)
    KINDS[kind](path, outside)
    before = contents(outside)
    hub.clear_cache()
    assert contents(outside) == before and not path.exists() and not path.is_symlink()


ETAGS = {
    "not ASCII": '"ü"',
    "UTF-8": '"é"'.encode().decode("latin-1"),
    "C1": '"\x9b2J"',
    "long": '"' + "a" * 5000 + '"',
    "quotes within": '"a"b"',
    "a tab": '"a\tb"',
    "one quote": '"',
    "empty": "",
    "weak and odd": 'W/"ü"',
    "a path": '"../../../evil"',
}


@pytest.mark.parametrize("etag", ETAGS.values(), ids=ETAGS)
def test_a_broken_download_goes_on_whatever_the_etag(server, outside, etag, monkeypatch):
    monkeypatch.setenv("QZOO_TIMEOUT", "0.9")
    url = server.add("/a.pth", DATA, cuts=[1000] * 8, etag=etag)
    with pytest.raises(DownloadError, match="closed connection"):
        fetch(url, progress=False)
    server.routes["/a.pth"].cuts = []
    assert fetch_unharmed(url, outside) == []


_DIGITS = "9" * 5000
#: A status, a header that counts with it, and values that no honest server sends.
HEADERS = [
    (416, "Content-Range", [f"bytes */{d}" for d in (_DIGITS, "-1", "x", "", "²", "30000 ")]),
    (206, "Content-Range", [f"bytes 0-0/{_DIGITS}", f"bytes {_DIGITS}-1/1", "bytes 1000-1/*", "ü"]),
    (503, "Retry-After", [_DIGITS, "-1", "nan", "ü", "²", "Mon, 01 Jan 9999 99:99:99 +9999"]),
    (429, "Retry-After", [f"Mon, {_DIGITS} Jan 1 00:00:00", f"Mon, 1 Jan {_DIGITS} 00:00:00"]),
    (301, "Location", ["", "http://[", "file:///etc/passwd", f"http://a:{_DIGITS}", "//"]),
    (307, "Location", ["javascript:alert(1)", "\x9b", "ü://ü", "http://%00/", "x" * 20_000]),
    (404, "Set-Cookie", [f"\x9b=\x9b; expires={_DIGITS}"]),
    (500, "Content-Disposition", ["attachment; filename=../../evil", "\x9b"]),
]


@pytest.mark.parametrize(
    ("status", "name", "value"),
    [(status, name, value) for status, name, values in HEADERS for value in values],
    ids=lambda value: str(value)[:24],
)
def test_headers(server, outside, monkeypatch, status, name, value):
    monkeypatch.setenv("QZOO_TIMEOUT", "0.5")
    url = server.add("/a.pth", DATA, statuses=[(status, {name: value})])
    entry = cache.entry_for(url)
    entry.final.parent.mkdir(parents=True)
    entry.part.write_bytes(DATA[:1000])
    entry.write_record('"v1"', len(DATA))
    with pytest.raises(DownloadError) as caught:
        fetch(url, sha256="0" * 64, progress=False)
    message = str(caught.value)
    assert message.isprintable() and message.endswith(".") and len(message) < 30_000
    server.routes["/a.pth"].statuses = []
    monkeypatch.setenv("QZOO_TIMEOUT", "3")
    assert fetch_unharmed(url, outside) == []


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Length": "9" * 5000},
        {"Content-Length": "-1"},
        {"Content-Length": "1, 2"},
        {"Content-Length": "²"},
        {"Content-Length": "0x10"},
        {"Content-Encoding": "gzip"},
        {"Content-Encoding": "\x9b31m"},
        {"Content-Encoding": "x" * 20_000},
        {"Transfer-Encoding": "gzip, chunked"},
        {"Transfer-Encoding": "\x9b"},
        {"Transfer-Encoding": "chunked"},
    ],
    ids=lambda headers: " ".join(f"{k} {v[:9]}" for k, v in headers.items()),
)
def test_lengths_and_encodings(server, outside, headers):
    url = server.add("/a.pth", DATA, declared=-1, headers=headers)
    with pytest.raises(DownloadError) as caught:
        fetch(url, progress=False)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 1000
    server.add("/a.pth", DATA, headers={"Content-Encoding": " "})
    assert fetch_unharmed(url, outside) == []


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Linked-Etag": '"../../../evil"'},
        {"X-Linked-Etag": '"/tmp/evil"'},
        {"X-Linked-Etag": '"\x9b"'},
        {"X-Repo-Commit": "../../evil"},
        {"X-Repo-Commit": "\x9b" * 40},
        {"X-Linked-Size": "9" * 5000},
        {"X-Linked-Size": "-1"},
        {"X-Linked-Size": "9" * 30},
        {"X-Error-Code": "\x9b", "X-Error-Message": "\x9b2J\x85"},
        {"Content-Disposition": 'attachment; filename="\x9b2J"'},
        {"Location": "http://[", "X-Linked-Etag": "é"},
    ],
    ids=str,
)
def test_headers_of_a_hub(hub_server, home, outside, headers, capsys):
    commit = hub_server.commit("main", "int8/model.safetensors", DATA)
    answer = hub_server.answer
    lying = True

    def lie(handler) -> None:
        """Answers as the Hub does, but with other headers where they are among these."""
        send = handler.send_header

        def send_header(name: str, value: str) -> None:
            send(name, headers.get(name, value) if lying else value)

        handler.send_header = send_header
        answer(handler)

    hub_server.answer = lie
    route = hub_server.files[commit, "int8/model.safetensors"]
    route.headers.update({k: v for k, v in headers.items() if not k.startswith("X-")})
    try:
        fetch(HUB_URL, progress=True)
    except DownloadError as error:
        assert str(error).isprintable()
    assert "\x9b" not in capsys.readouterr().err
    lying = False
    route.headers.clear()
    fetch_unharmed(HUB_URL, outside)
    assert {path.name for path in home.parent.iterdir()} == {"home", "outside"}


def test_a_hub_that_changes_its_answer(hub_server, home, outside):
    """What was checked once is what is used: the second answer cannot name another place."""
    commit = hub_server.commit("main", "int8/model.safetensors", DATA)
    answer, asked = hub_server.answer, []

    def turn(handler) -> None:
        asked.append(handler.command)
        if len(asked) > 1:
            hub_server.files[commit, "int8/model.safetensors"].etag = '"../../../../evil"'
        answer(handler)

    hub_server.answer = turn
    path = fetch(HUB_URL, progress=False)
    assert path.read_bytes() == DATA and asked == ["HEAD", "GET"]
    path.resolve().write_bytes(b"damaged")
    with (
        pytest.raises(DownloadError, match="HF_ENDPOINT"),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        fetch(f"{HUB_URL}@{commit}", progress=False)
    assert {p.name for p in home.parent.iterdir()} == {"home", "outside"}


def test_json_of_the_records_is_as_it_was(server):
    url = server.add("/a.pth?secret=1", DATA)
    server.add("/a.pth", DATA)
    path = fetch(url, progress=False)
    record = json.loads(path.with_name(".a.pth.json").read_bytes())
    assert record == {"url": url.split("?", 1)[0], "etag": '"v1"', "total": len(DATA)}
