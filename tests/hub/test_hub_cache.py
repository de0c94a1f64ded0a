"""The cache: processes at once, kills, damage, full and read-only disks, names, offline, file://."""

from __future__ import annotations

import errno
import io
import os
import sys
import time
from pathlib import Path

import pytest
import torch.hub

from qzoo import hub
from qzoo.errors import DownloadError
from qzoo.hub import cache, fetch
from tests.helpers.servers import finals, parts, sha

SIZE = 2_000_000


@pytest.fixture
def data(make_payload) -> bytes:
    return make_payload(SIZE)


def test_cache_dir(home, monkeypatch, tmp_path):
    assert hub.cache_dir() == home and not home.exists()
    monkeypatch.setenv("QZOO_HOME", "~/somewhere")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert hub.cache_dir() == tmp_path / "somewhere"
    monkeypatch.delenv("QZOO_HOME")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    assert hub.cache_dir() == tmp_path / "torch" / "hub" / "qzoo"
    assert not (tmp_path / "torch").exists()


def test_killed_in_mid_download_and_resumed_by_another(server, data, home, spawn, until):
    url = server.add("/a.pth", data, slice_s=0.05)
    process = spawn(f"fetch({url!r}, sha256={sha(data)!r}, progress=False)")
    until(lambda: parts(home) and parts(home)[0].stat().st_size > 300_000)
    process.kill()
    process.wait()
    assert not finals(home)
    held = parts(home)[0].stat().st_size
    server.add("/a.pth", data)
    start = time.monotonic()
    assert fetch(url, sha256=sha(data), progress=False).read_bytes() == data
    assert time.monotonic() - start < 5  # the dead process's lock holds nobody up
    assert server.seen[-1].headers["Range"] == f"bytes={held}-"
    assert not parts(home)


def test_eight_processes_download_once(server, data, home, spawn):
    url = server.add("/a.pth", data, slice_s=0.04)
    code = f"""
        import hashlib
        path = fetch({url!r}, sha256={sha(data)!r}, size={SIZE})
        print(path, hashlib.sha256(path.read_bytes()).hexdigest())
    """
    processes = [spawn(code) for _ in range(8)]
    answers = [process.communicate(timeout=60) for process in processes]
    (final,) = finals(home)
    assert {out.strip() for out, _ in answers} == {f"{final} {sha(data)}"}, answers
    assert len(server.seen) == 1
    assert any("waiting for another process to fetch a.pth" in err for _, err in answers)


def test_waiting_for_a_stuck_process_ends(server, data, spawn, monkeypatch):
    monkeypatch.setattr(cache.settings, "timeout_s", lambda: -4.6)  # a patience of 0.8 s
    url = server.add("/a.pth", data)
    lock = cache.entry_for(url).lock
    lock.parent.mkdir(parents=True)
    process = spawn(f"""
        import filelock, time
        with filelock.FileLock({str(lock)!r}):
            print("held", flush=True)
            time.sleep(30)
    """)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    start = time.monotonic()
    with pytest.raises(DownloadError, match=r"Another process has held .* without progress"):
        fetch(url, progress=False)
    assert time.monotonic() - start < 6
    assert not server.seen


def test_a_damaged_file_is_downloaded_again(server, data, home):
    url = server.add("/a.pth", data)
    path = fetch(url, sha256=sha(data), progress=False)
    path.write_bytes(data[:-1] + b"!")
    with pytest.warns(UserWarning, match=r"a\.pth is damaged .* downloaded again"):
        assert fetch(url, sha256=sha(data), progress=False) == path
    assert path.read_bytes() == data
    path.write_bytes(data[:100])
    server.routes.clear()
    with (
        pytest.warns(UserWarning, match="is damaged"),
        pytest.raises(DownloadError, match="does not exist"),
    ):
        fetch(url, size=SIZE, progress=False)
    assert not finals(home)  # better none than a damaged one


def test_offline(server, data, monkeypatch):
    url = server.add("/a.pth", data)
    path = fetch(url, sha256=sha(data), progress=False)
    monkeypatch.setenv("QZOO_OFFLINE", "1")
    assert fetch(url, sha256=sha(data), progress=False) == path
    with pytest.raises(DownloadError, match=r"/b\.pth is not in the cache and QZOO_OFFLINE is set"):
        fetch(server.base + "/b.pth", progress=False)
    path.write_bytes(b"damaged")
    with pytest.raises(DownloadError, match=r"is damaged in the cache .* QZOO_OFFLINE"):
        fetch(url, sha256=sha(data), progress=False)
    assert len(server.seen) == 1
    monkeypatch.setenv("QZOO_OFFLINE", "0")
    with pytest.warns(UserWarning, match="damaged"):
        fetch(url, sha256=sha(data), progress=False)


class FullDisk(io.FileIO):
    """Takes the first 100 kB."""

    def write(self, data) -> int:
        if self.tell() > 100_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)


def test_full_disk_by_a_failing_write(server, data, home, monkeypatch):
    url = server.add("/a.pth", data)
    opened = Path.open

    def full(path, mode="r", *args, **kwargs):
        if path.name.endswith(".part"):
            return FullDisk(str(path), mode.replace("b", ""))
        return opened(path, mode, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        with pytest.raises(DownloadError, match=r"The disk that holds .* is full; free some space"):
            fetch(url, sha256=sha(data), progress=False)
    assert not finals(home) and not parts(home)
    assert fetch(url, sha256=sha(data), progress=False).read_bytes() == data


@pytest.mark.parametrize("declared", [None, -1])
def test_full_disk_for_real(server, data, small_disk, declared):
    url = server.add("/a.pth", data, declared=declared)
    with pytest.raises(DownloadError, match=r"The disk that holds .* is full"):
        fetch(url, sha256=sha(data), progress=False)
    root = hub.cache_dir()
    assert not finals(root) and not parts(root)
    small_disk("size=8m")
    assert fetch(url, sha256=sha(data), progress=False).read_bytes() == data


def test_read_only_cache_for_real(server, data, small_disk):
    url = server.add("/a.pth", data[:1000])
    path = fetch(url, sha256=sha(data[:1000]), progress=False)
    small_disk("ro")
    assert fetch(url, sha256=sha(data[:1000]), progress=False) == path
    with pytest.raises(DownloadError, match="set QZOO_HOME to a directory that you may write"):
        fetch(server.add("/b.pth", data[:1000]), progress=False)
    with pytest.raises(DownloadError, match=r"a\.pth is damaged .* set QZOO_HOME"):
        fetch(url, sha256=sha(b"another file"), progress=False)
    with pytest.raises(DownloadError, match="cannot be accessed"):
        hub.clear_cache()
    small_disk("rw")


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_read_only_cache_by_a_failing_open(server, data, monkeypatch, code):
    url = server.add("/a.pth", data)
    path = fetch(url, sha256=sha(data), progress=False)
    os_open = os.open

    def read_only(name, flags, *args, **kwargs):
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(code, os.strerror(code), name)
        return os_open(name, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", read_only)
    assert fetch(url, sha256=sha(data), progress=False) == path
    other = server.add("/b.pth", data)
    monkeypatch.setattr(Path, "mkdir", lambda *args, **kwargs: None)
    with pytest.raises(DownloadError, match="QZOO_HOME"):
        fetch(other, progress=False)
    assert len(server.seen) == 1


def test_home_that_is_a_file(server, home):
    home.write_text("not a directory")
    with pytest.raises(DownloadError, match="QZOO_HOME"):
        fetch(server.add("/a.pth", b"a"), progress=False)


@pytest.mark.parametrize(
    "path",
    [
        "/../../evil",
        "/..%2f..%2fevil",
        "/%2e%2e",
        "/..",
        "/",
        "",
        "/a%00b",
        "/.hidden.part",
        "/con%5C..%5Cevil.pth",
        "/%F0%9F%92%A5.pth",
        "/" + "long" * 200 + ".safetensors",
        "/a;rm -rf",
    ],
)
def test_names_stay_inside_the_cache(home, path):
    entry = cache.entry_for("http://Example.Test:80" + path)
    assert (home / "files" / "example.test") == entry.final.parent.parent
    assert entry.final.resolve() == entry.final  # no step in it leads elsewhere
    for name in (entry.final, entry.part, entry.record, entry.lock):
        assert len(name.name) < 200 and name.name.isascii()
    assert not entry.final.name.startswith(".")
    if path.endswith(".safetensors"):
        assert entry.final.suffix == ".safetensors"


def test_file_name_argument(server, home, data):
    url = server.add("/blob/1234", data)
    path = fetch(url, file_name="../../resnet18.pth", progress=False)
    assert home in path.resolve().parents and path.name.endswith("resnet18.pth")
    assert hub.is_cached(url, file_name="../../resnet18.pth") and not hub.is_cached(url)


def test_list_and_clear(server, data, home, spawn):
    assert hub.list_cache() == [] and hub.clear_cache() == []
    url = server.add("/a.pth", data)
    fetch(url, progress=False)
    (home / "mine.txt").write_text("not the cache's")
    (file,) = hub.list_cache()
    assert (file.size, file.url, file.complete) == (SIZE, url, True)
    lock = cache.entry_for(url).lock
    process = spawn(f"""
        import filelock
        with filelock.FileLock({str(lock)!r}):
            print("held", flush=True)
            sys.stdin.read() if False else __import__("time").sleep(30)
    """)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    assert hub.clear_cache() == []  # another process is at it
    process.kill()
    process.wait()
    assert hub.clear_cache() == [file]
    assert hub.list_cache() == [] and not file.path.exists() and (home / "mine.txt").exists()
    assert fetch(url, progress=False).read_bytes() == data


def test_file_urls_are_used_in_place(tmp_path, data, home, monkeypatch):
    path = tmp_path / "a file with %25 and ü.pth"
    path.write_bytes(data)
    url = path.as_uri()
    assert "%20" in url
    monkeypatch.setenv("QZOO_OFFLINE", "1")
    assert fetch(url, sha256=sha(data), size=SIZE, progress=False) == path
    assert fetch(url.replace("file://", "file://localhost"), progress=False) == path
    assert hub.is_cached(url) and not hub.is_cached(url + "x")
    with pytest.raises(DownloadError, match="is not the expected file: its sha256 is"):
        fetch(url, sha256_prefix="00000000", progress=False)
    for wrong in (url + "x", tmp_path.as_uri()):
        with pytest.raises(DownloadError, match="There is no file"):
            fetch(wrong, progress=False)
    with pytest.raises(DownloadError, match="another machine"):
        fetch("file://elsewhere/a.pth", progress=False)
    assert path.read_bytes() == data and not home.exists()


@pytest.mark.parametrize(
    "variables",
    [{}, {"TORCH_HOME": "/somewhere"}, {"XDG_CACHE_HOME": "/x"}, {"TORCH_HOME": "~/t"},
     {"TORCH_HOME": "", "XDG_CACHE_HOME": "/x"}, {"XDG_CACHE_HOME": ""}],
    ids=str,
)  # fmt: skip
def test_the_cache_lies_below_torch_hubs_folder_without_torch(variables, monkeypatch):
    for name in ("QZOO_HOME", "TORCH_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with_torch = Path(torch.hub.get_dir()).absolute() / "qzoo"
    monkeypatch.setitem(sys.modules, "torch", None)
    assert hub.cache_dir() == with_torch
