"""The real huggingface_hub client against a server that speaks the Hub's download protocol."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from qzoo import hub
from qzoo.errors import DownloadError
from qzoo.hub import cache, fetch, huggingface
from qzoo.hub.huggingface import HubFile
from tests.helpers.servers import sha

SIZE = 2_000_000
URL = "hf://qzoo-test/tiny/int8/model.safetensors"


@pytest.fixture
def data(make_payload) -> bytes:
    return make_payload(SIZE)


def test_downloads_into_the_one_cache(hub_server, data, home):
    commit = hub_server.commit("main", "int8/model.safetensors", data)
    path = fetch(URL, sha256=sha(data), size=SIZE, progress=False)
    assert path.read_bytes() == data and home / "hf" in path.parents
    assert fetch(URL, sha256_prefix=sha(data)[:8], progress=False) == path
    assert len(hub_server.gets()) == 1  # the second time it was only asked whether main moved
    assert hub.is_cached(URL) and not hub.is_cached(URL + "x")
    (file,) = hub.list_cache()
    assert (file.path, file.size, file.url) == (path, SIZE, f"{URL}@{commit}")
    assert hub.clear_cache() == [file]
    assert hub.list_cache() == [] and not path.exists()


def test_revisions(hub_server, data, make_payload):
    old = hub_server.commit("main", "int8/model.safetensors", data)
    hub_server.revisions["v1"] = old
    new_data = make_payload(SIZE, seed=1)
    new = hub_server.commit("main", "int8/model.safetensors", new_data)
    assert fetch(URL, progress=False).read_bytes() == new_data
    assert fetch(f"{URL}@v1", progress=False).read_bytes() == data
    pinned = fetch(f"{URL}@{old}", sha256=sha(data), progress=False)
    assert pinned.read_bytes() == data
    asked = len(hub_server.seen)
    assert fetch(f"{URL}@{old}", progress=False) == pinned
    assert fetch(f"{URL}@{new}", progress=False).read_bytes() == new_data
    assert len(hub_server.seen) == asked  # a commit never changes, so nobody is asked


@pytest.mark.parametrize("variable", ["QZOO_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_from_the_cache(hub_server, data, monkeypatch, variable):
    hub_server.commit("main", "int8/model.safetensors", data)
    path = fetch(URL, progress=False)
    asked = len(hub_server.seen)
    monkeypatch.setenv(variable, "1")
    assert fetch(URL, sha256=sha(data), progress=False) == path
    with pytest.raises(DownloadError, match=f"not in the cache and {variable} is set"):
        fetch("hf://qzoo-test/tiny/other.safetensors", progress=False)
    path.resolve().write_bytes(b"damaged")
    with pytest.raises(DownloadError, match=f"is damaged .* and {variable} is set"):
        fetch(URL, progress=False)
    assert len(hub_server.seen) == asked


def test_unreachable_hub_falls_back_to_the_cache(hub_server, data):
    hub_server.commit("main", "int8/model.safetensors", data)
    path = fetch(URL, progress=False)
    hub_server.close()
    assert fetch(URL, progress=False) == path
    with pytest.raises(DownloadError, match=r"could not be fetched .* need no download"):
        fetch("hf://qzoo-test/tiny/other.safetensors", progress=False)


def test_interrupted_and_resumed(hub_server, make_payload, capsys):
    data = make_payload(12 << 20)
    hub_server.commit("main", "int8/model.safetensors", data, cuts=[11 << 20])
    assert fetch(URL, sha256=sha(data), progress=True).read_bytes() == data
    ranges = [seen.headers.get("Range") for seen in hub_server.gets()]
    assert ranges == [None, f"bytes={11 << 20}-"]
    assert "model.safetensors" in capsys.readouterr().err


def test_killed_in_mid_download(hub_server, data, home, spawn, until):
    commit = hub_server.commit("main", "int8/model.safetensors", data, slice_s=0.05)
    process = spawn(f"fetch({URL!r}, progress=False)")
    until(lambda: hub_server.gets() and list((home / "hf").glob("*/blobs/*.incomplete")))
    process.kill()
    process.wait()
    assert not hub.is_cached(URL)
    (file,) = hub.list_cache()
    assert not file.complete
    hub_server.files[commit, "int8/model.safetensors"].slice_s = 0
    assert fetch(URL, sha256=sha(data), progress=False).read_bytes() == data
    assert hub_server.gets()[-1].headers["Range"] == f"bytes={file.size}-"
    assert len(list((home / "hf").glob("*/blobs/*"))) == 1  # nothing unfinished is left


def test_four_processes_download_once(hub_server, data, spawn):
    hub_server.commit("main", "int8/model.safetensors", data, slice_s=0.04)
    processes = [spawn(f"print(fetch({URL!r}, progress=False))") for _ in range(4)]
    answers = [process.communicate(timeout=60) for process in processes]
    assert len({out for out, _ in answers}) == 1 and answers[0][0].strip(), answers
    assert Path(answers[0][0].strip()).read_bytes() == data
    assert len(hub_server.gets()) == 1


def test_wrong_bytes(hub_server, data, home):
    commit = hub_server.commit("main", "int8/model.safetensors", data)
    with pytest.raises(DownloadError, match=f"{sha(data)} where {'0' * 64} was expected"):
        fetch(URL, sha256="0" * 64, progress=False)
    assert not hub.is_cached(URL)
    # The Hub names the hash of a large file, so that one is checked even where nobody gave any.
    hub_server.files[commit, "int8/model.safetensors"].data = data[:-1] + b"!"
    with pytest.raises(DownloadError, match=f"where {sha(data)} was expected"):
        fetch(URL, progress=False)
    assert not hub.is_cached(URL) and not hub.list_cache()


def test_a_damaged_file_is_downloaded_again(hub_server, data):
    commit = hub_server.commit("main", "int8/model.safetensors", data)
    for url in (URL, f"{URL}@{commit}"):
        path = fetch(url, progress=False)
        path.resolve().write_bytes(b"damaged")
        with pytest.warns(UserWarning, match="is damaged .* downloaded again"):
            assert fetch(url, progress=False).read_bytes() == data


def test_wrong_length(hub_server, data):
    hub_server.commit("main", "int8/model.safetensors", data)
    with pytest.raises(DownloadError, match=f"at most {SIZE - 1} are accepted"):
        fetch(URL, size=SIZE - 1, progress=False)
    with pytest.raises(DownloadError, match=f"{SIZE} bytes where {SIZE + 1} were expected"):
        fetch(URL, size=SIZE + 1, progress=False)
    assert not hub.is_cached(URL)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("hf://qzoo-test/other/a.bin", "no repository qzoo-test/other"),
        (f"{URL}@v9", "has no revision 'v9'"),
        ("hf://qzoo-test/tiny/other.bin", "has no file 'other.bin'"),
    ],
)
def test_what_is_not_there(hub_server, data, url, words):
    hub_server.commit("main", "int8/model.safetensors", data)
    with pytest.raises(DownloadError, match=words) as caught:
        fetch(url, progress=False)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("how", [{"hang": True}, {"slice_bytes": 1, "slice_s": 0.2}])
def test_a_hanging_hub_ends_at_the_timeout(hub_server, monkeypatch, how):
    monkeypatch.setenv("QZOO_TIMEOUT", "1")
    hub_server.commit("main", "int8/model.safetensors", b"x" * 1000, **how)
    start = time.monotonic()
    with pytest.raises(DownloadError, match="no progress for 1 s"):
        fetch(URL, progress=False)
    assert time.monotonic() - start < 5


def test_a_failing_hub_is_asked_again(hub_server, data):
    commit = hub_server.commit("main", "int8/model.safetensors", data)
    route = hub_server.files[commit, "int8/model.safetensors"]
    route.statuses = [(503, {}), (502, {"X-Once": "1"})]
    assert fetch(URL, progress=False).read_bytes() == data
    route.statuses = [(503, {})]
    assert fetch(URL, progress=False).read_bytes() == data  # the cache will do
    hub_server.commit("main", "other", data, statuses=[(503, {})])
    with pytest.raises(DownloadError, match="503"):
        fetch("hf://qzoo-test/tiny/other", progress=False)


def test_answers_that_name_paths_are_refused(hub_server, data, home):
    hub_server.commit("main", "int8/model.safetensors", data, etag='"../../../evil"')
    with pytest.raises(DownloadError, match="HF_ENDPOINT"):
        fetch(URL, progress=False)
    assert not home.exists() and len(hub_server.seen) == 1


def check_read_only(hub_server, make_payload, make_read_only) -> None:
    data = make_payload(1000)
    old = hub_server.commit("main", "int8/model.safetensors", data)
    path = fetch(URL, sha256=sha(data), progress=False)
    make_read_only()
    assert fetch(URL, sha256=sha(data), progress=False) == path
    assert fetch(f"{URL}@{old}", progress=False) == path
    hub_server.commit("main", "int8/model.safetensors", make_payload(1000, seed=1))
    with pytest.warns(UserWarning, match="cannot be written, so the older .* 'main' moved"):
        assert fetch(URL, progress=False) == path
    hub_server.commit("other", "other.bin", data)
    with pytest.raises(DownloadError, match="set QZOO_HOME"):
        fetch("hf://qzoo-test/tiny/other.bin@other", progress=False)


def test_read_only_cache_for_real(hub_server, make_payload, small_disk):
    check_read_only(hub_server, make_payload, lambda: small_disk("ro"))
    small_disk("rw")


def test_read_only_cache_by_a_failing_lock(hub_server, make_payload, monkeypatch):
    def refuse(*args, **kwargs):
        raise cache.ReadOnlyCacheError("It cannot be written; set QZOO_HOME.")

    check_read_only(
        hub_server, make_payload, lambda: monkeypatch.setattr(huggingface, "locked", refuse)
    )


def test_full_disk_for_real(hub_server, data, small_disk):
    hub_server.commit("main", "int8/model.safetensors", data)
    with pytest.raises(DownloadError, match=r"The disk that holds .* is full"):
        fetch(URL, progress=False)
    assert not hub.list_cache()
    small_disk("size=8m")
    assert fetch(URL, progress=False).read_bytes() == data


def test_parse():
    assert HubFile.parse("hf://a/b/c.bin") == HubFile("a/b", "c.bin", "main")
    assert HubFile.parse("hf://a/b/d/c.bin@refs/pr/1") == HubFile("a/b", "d/c.bin", "refs/pr/1")
    for wrong in (
        *("hf://", "hf://a", "hf://a/b", "hf://a/b/", "hf://a/b//c", "hf://a/b/c@", "hf://../b/c"),
        *("hf://a/b/../c", "hf://a/b/c@../x", "hf://a--x/b/c", "hf://a/b/c\\d", "hf://a/b/c@/x"),
    ):
        with pytest.raises(DownloadError, match="hf://org/repo/path/to/file@revision"):
            HubFile.parse(wrong)
