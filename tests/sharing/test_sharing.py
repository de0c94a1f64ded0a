"""Shared folders, and the real huggingface_hub client between qzoo and a loopback Hub."""

from __future__ import annotations

import base64
import dataclasses
import errno
import hashlib
import json
import os
import re
import unicodedata
from http.server import BaseHTTPRequestHandler
from typing import Any

import huggingface_hub
import pytest
import torch
import yaml  # type: ignore[import-untyped]
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

import qzoo
from qzoo import ArgumentError, ArtifactError, DownloadError, UploadError
from qzoo.native.model import from_native
from qzoo.safe_text import printable
from qzoo.sharing import pretrained
from qzoo.sharing.model_card import make_card

FILES = {"model.safetensors", "config.json", "README.md"}
PRESET = {
    "preset": "ImageClassification",
    "crop_size": 64,
    "resize_size": 72,
    "interpolation": "bilinear",
    "antialias": True,
    "mean": [0.5, 0.5, 0.5],
    "std": [0.25, 0.25, 0.25],
}
INFO: dict[str, Any] = {
    "classes": ["cat", "dog | fox", "x: 'y'\n---"],
    "metrics": {"ImageNet-1K": {"acc@1": 71.5, "acc@5": 90.25}, "our | own": {"acc@1": 12.0}},
    "recipe": {"method": "PTQ", "images": 512, "note": "```\nend"},
    "transforms": PRESET,
}


@pytest.fixture(scope="module")
def model() -> Any:
    with pytest.warns(qzoo.UncalibratedWarning):
        return qzoo.shufflenet_v2_x0_5(quantize=True, backend="fbgemm", num_classes=3)


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def front_matter(card: str) -> Any:
    found = re.match(r"---\n(.*?)\n---\n", card, re.S)
    assert found
    return yaml.safe_load(found[1])


# Folders


def test_folder_round_trip(model, x, tmp_path):
    folder = tmp_path / "deep" / "my-model"
    model.save_pretrained(folder, **INFO)
    assert {path.name for path in folder.iterdir()} == FILES
    assert [path.name for path in folder.parent.iterdir()] == ["my-model"]
    loaded = qzoo.from_pretrained(folder)
    assert torch.equal(loaded(x), model(x))
    config = json.loads((folder / "config.json").read_text())
    content = (folder / "model.safetensors").read_bytes()
    assert config["architecture"] == "shufflenet_v2_x0_5"
    assert (config["format"], config["format_version"]) == ("qzoo-int8", 3)
    assert (config["num_classes"], config["classes"]) == (3, INFO["classes"])
    assert config["sha256"] == hashlib.sha256(content).hexdigest()
    assert config["file_size_bytes"] == len(content)
    assert qzoo.from_pretrained(folder, sha256=config["sha256"]) is not None
    with pytest.raises(DownloadError, match="was expected"):
        qzoo.from_pretrained(folder, sha256="0" * 64)
    # What came back can be shared again without saying anything twice.
    loaded.save_pretrained(tmp_path / "again" / "my-model")
    for name in FILES:
        assert (tmp_path / "again" / "my-model" / name).read_bytes() == (folder / name).read_bytes()


def test_card(model, tmp_path):
    model.save_pretrained(tmp_path / "my-model", **INFO)
    text = (tmp_path / "my-model" / "README.md").read_text()
    meta = front_matter(text)
    assert meta["library_name"] == "qzoo" and meta["pipeline_tag"] == "image-classification"
    assert {"int8", "shufflenet_v2_x0_5", "fbgemm"} <= set(meta["tags"])
    assert meta["datasets"] == ["imagenet-1k"]
    found = {
        (result["dataset"]["name"], metric["name"]): metric["value"]
        for result in meta["model-index"][0]["results"]
        for metric in result["metrics"]
    }
    assert found == {
        ("ImageNet-1K", "acc@1"): 71.5,
        ("ImageNet-1K", "acc@5"): 90.25,
        ("our | own", "acc@1"): 12.0,
    }
    assert ModelCard(text).data.to_dict()["library_name"] == "qzoo"
    size = (tmp_path / "my-model" / "model.safetensors").stat().st_size
    assert f"{size / 1e6:.2f} MB" in text and "| our \\| own | acc@1 | 12.0 |" in text
    assert "3, named in `config.json`" in text and '"images": 512' in text


@pytest.mark.parametrize("info", [INFO, {}])
def test_the_cards_code_works(model, tmp_path, info, monkeypatch, capsys):
    model.save_pretrained(tmp_path / "my-model", **info)
    code = re.search(
        r"```python\n(.*?)```", (tmp_path / "my-model" / "README.md").read_text(), re.S
    )
    assert code
    monkeypatch.chdir(tmp_path)
    exec(code[1], {})
    assert ("cat: " in capsys.readouterr().out) == bool(info)


def test_cards_say_what_is_not_known(model, tmp_path):
    model.save_pretrained(tmp_path / "bare")
    text = (tmp_path / "bare" / "README.md").read_text()
    assert "model-index" not in front_matter(text) and "datasets" not in front_matter(text)
    assert "accuracy was not recorded" in text and "3, not named" in text


HOSTILE = [
    "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "[click](javascript:alert(1)) ![x](https://evil.test/pixel.png) <https://evil.test>",
    "**bold** _it_ `code` ``` ~~~ https://evil.test www.evil.test",
    "a | b\n\n# heading\n---\nlicense: evil\n---\n- item",
    "\x1b[2J\x9b\u202eexe\u2028\u2066",
    "'\"}: &a *a !!python/object:os.system [x] {y} #z",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_text_in_a_card_is_text(model, tmp_path, text):
    """The card has the same parts as one with harmless text, and the front matter the same keys."""
    cards = []
    for word in ("harmless", text):
        artifact = from_native(
            model,
            classes=[word, "b", "c"],
            metrics={word: {word: 1.0}},
            recipe={word: [word, {word: word}]},
        )
        made = dataclasses.replace(artifact, versions={word: word})
        card = make_card(made, made.to_bytes(), word)
        assert all(c == "\n" or unicodedata.category(c) not in ("Cc", "Cf", "Zl") for c in card)
        meta, body = ModelCard(card).data.to_dict(), card.split("\n---\n", 1)[1]
        (result,) = front_matter(card)["model-index"][0]["results"]
        assert result["dataset"]["name"] == printable(word)
        tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(body)
        inner = [child for token in tokens for child in token.children or ()]
        kinds = (
            [token.type for token in tokens],
            [child.type for child in inner if not child.type.startswith("text")],
        )
        shown = "".join(c.content for c in inner)
        assert " ".join(printable(word).split()) in shown
        cards.append((sorted(meta), kinds))
    assert cards[0] == cards[1]


class Worded(int):
    """A number that is shown as hostile text."""

    def __repr__(self) -> str:
        return "``<b>|\n</td>``"


def test_a_keyword_in_a_card_is_code(model):
    artifact = from_native(model)
    content = artifact.to_bytes()
    object.__setattr__(artifact.info, "builder_kwargs", {"num_classes": Worded(3)})
    (line,) = (
        line
        for line in make_card(artifact, content, "m").splitlines()
        if line.startswith("| architecture")
    )
    reader = MarkdownIt("commonmark", {"html": True}).enable("table")
    _, _, name, cell = (t for t in reader.parse(f"| | |\n|--|--|\n{line}") if t.type == "inline")
    assert name.content == "architecture"
    kinds = [child.type for child in cell.children or ()]
    assert kinds == ["code_inline", "text", "code_inline"]
    assert cell.children[2].content == r"num_classes=``<b>|\n</td>``"


def test_saving_over_a_folder_keeps_other_files(model, x, tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "notes.txt").write_text("mine")
    (tmp_path / "m" / "README.md").write_text("old")
    model.save_pretrained(tmp_path / "m")
    assert {path.name for path in (tmp_path / "m").iterdir()} == {*FILES, "notes.txt"}
    assert (tmp_path / "m" / "notes.txt").read_text() == "mine"
    assert torch.equal(qzoo.from_pretrained(str(tmp_path / "m"))(x), model(x))


@pytest.mark.parametrize("exists", [True, False])
def test_a_failure_leaves_nothing_behind(model, tmp_path, monkeypatch, exists):
    folder = tmp_path / "m"
    if exists:
        model.save_pretrained(folder)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    sync, calls = os.fsync, []

    def full_disk(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(ArtifactError, match="No space left"):
        model.save_pretrained(folder, recipe={"new": True})
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    assert folder.exists() == exists


def test_what_cannot_be_saved(model, tmp_path):
    with pytest.raises(ArtifactError, match="still float"):
        qzoo.resnet18().save_pretrained(tmp_path / "m")
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="is a file: name a folder"):
        model.save_pretrained(tmp_path / "file")
    with pytest.raises(ArtifactError, match="Cannot write"):
        model.save_pretrained(tmp_path / "file" / "m")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_cannot_be_loaded(model, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtifactError, match=r"holds no model\.safetensors"):
        qzoo.from_pretrained(tmp_path / "empty")
    model.save_pretrained(tmp_path / "m")
    with pytest.raises(ArgumentError, match="has no revisions"):
        qzoo.from_pretrained(tmp_path / "m", revision="main")
    with pytest.raises(ArgumentError, match=r"load a single file with qzoo\.load"):
        qzoo.from_pretrained(tmp_path / "m" / "model.safetensors")
    for wrong in ("resnet18", "a/b/c", "./gone", "/gone/away", "~/gone", "", "https://x/a/b"):
        with pytest.raises(ArgumentError, match="neither an existing folder nor the name"):
            qzoo.from_pretrained(wrong)
    monkeypatch.setattr(pretrained, "MAX_FILE_BYTES", 1000)
    with pytest.raises(ArtifactError, match="more than the 1000"):
        qzoo.from_pretrained(tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").write_bytes(b"\x80\x02pickle")
    with pytest.raises(ArtifactError):
        qzoo.from_pretrained(tmp_path / "m")


def test_nothing_but_the_artifact_is_read(model, x, tmp_path):
    model.save_pretrained(tmp_path / "m")
    (tmp_path / "m" / "config.json").write_text('{"auto_map": {"AutoModel": "evil.Model"}}')
    (tmp_path / "m" / "evil.py").write_text("raise SystemExit('ran')")
    (tmp_path / "m" / "README.md").unlink()
    assert torch.equal(qzoo.from_pretrained(tmp_path / "m")(x), model(x))


# The Hub


class Hub:
    """The endpoints that a push needs, in front of the downloads of the fixture's server."""

    def __init__(self, server: Any) -> None:
        self.server = server
        self.objects: dict[str, bytes] = {}
        self.commits: list[dict[str, Any]] = []
        self.status: dict[str, int] = {}  # part of a path to the error to answer it with
        handler: Any = server._server.RequestHandlerClass
        handler.do_POST = lambda request: self.post(request)
        handler.do_PUT = lambda request: self.put(request)

    def reply(self, request: BaseHTTPRequestHandler, value: Any, status: int = 200) -> None:
        body = json.dumps(value).encode()
        request.send_response(status)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    def body(self, request: BaseHTTPRequestHandler) -> bytes:
        return request.rfile.read(int(request.headers.get("Content-Length", 0)))

    def put(self, request: BaseHTTPRequestHandler) -> None:
        data = self.body(request)
        oid = request.path.rsplit("/", 1)[-1]
        assert hashlib.sha256(data).hexdigest() == oid
        self.objects[oid] = data
        self.reply(request, {})

    def post(self, request: BaseHTTPRequestHandler) -> None:
        data, base, repo = self.body(request), self.server.base, self.server.repo
        refused = [status for part, status in self.status.items() if part in request.path]
        if refused:
            self.reply(request, {"error": "no"}, refused[0])
        elif request.path == "/api/repos/create":
            asked = json.loads(data)
            assert f"{asked['organization']}/{asked['name']}" == repo
            self.reply(request, {"url": f"{base}/{repo}"})
        elif request.path == "/api/validate-yaml":
            self.reply(request, {"errors": [], "warnings": []})
        elif request.path == f"/api/models/{repo}/preupload/main":
            kinds = {True: "lfs", False: "regular"}
            files = [
                {
                    "path": file["path"],
                    "uploadMode": kinds[file["path"].endswith(".safetensors")],
                    "shouldIgnore": False,
                }
                for file in json.loads(data)["files"]
            ]
            self.reply(request, {"files": files})
        elif request.path == f"/{repo}.git/info/lfs/objects/batch":
            objects = [
                {**wanted, "actions": {"upload": {"href": f"{base}/lfs/{wanted['oid']}"}}}
                for wanted in json.loads(data)["objects"]
            ]
            self.reply(request, {"transfer": "basic", "objects": objects})
        else:
            assert request.path == f"/api/models/{repo}/commit/main", request.path
            self.commit([json.loads(line) for line in data.splitlines()])
            commit = self.server.revisions["main"]
            url = f"{base}/{repo}/commit/{commit}"
            self.reply(request, {"commitUrl": url, "commitOid": commit})

    def commit(self, lines: list[dict[str, Any]]) -> None:
        files: dict[str, Any] = {}
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.objects[value["oid"]]
        self.commits.append(files)
        for name, content in files.items():
            self.server.commit("main", name, content)  # one after the other; the last one counts


@pytest.fixture
def pushing(hub_server, monkeypatch) -> Hub:
    # The LFS protocol instead of the chunked one, which needs a storage service of its own.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    return Hub(hub_server)


def test_push_and_load_again(model, x, pushing, hub_server, monkeypatch):
    url = model.push_to_hub(hub_server.repo, token="hf_test", **INFO)
    (files,) = pushing.commits
    assert set(files) == FILES
    assert url == f"{hub_server.base}/{hub_server.repo}/commit/{hub_server.revisions['main']}"
    card = files["README.md"].decode()
    assert f'qzoo.from_pretrained("{hub_server.repo}")' in card
    commit = hub_server.commit("main", "model.safetensors", files["model.safetensors"])
    for revision in (None, "main", commit):
        loaded = qzoo.from_pretrained(hub_server.repo, revision=revision, progress=False)
        assert torch.equal(loaded(x), model(x))
    assert len(hub_server.gets()) == 1
    monkeypatch.setenv("QZOO_OFFLINE", "1")
    assert qzoo.from_pretrained(f"hf://{hub_server.repo}", progress=False) is not None
    with pytest.raises(UploadError, match="QZOO_OFFLINE is set"):
        model.push_to_hub(hub_server.repo, token="hf_test")


def test_repositories_without_a_model(hub_server):
    hub_server.commit("main", "pytorch_model.bin", b"x")
    with pytest.raises(DownloadError, match=r"has no file 'model\.safetensors'"):
        qzoo.from_pretrained(hub_server.repo, progress=False)
    hub_server.commit("main", "model.safetensors", b"not an artifact, whatever it is called")
    with pytest.raises(ArtifactError):
        qzoo.from_pretrained(hub_server.repo, progress=False)
    with pytest.raises(DownloadError, match="no repository"):
        qzoo.from_pretrained("qzoo-test/none", progress=False)


@pytest.mark.parametrize("part", ["create", "preupload", "batch", "commit"])
def test_refused_pushes_commit_nothing(model, pushing, hub_server, part):
    pushing.status[part] = 403
    with pytest.raises(UploadError, match="hf auth login") as caught:
        model.push_to_hub(hub_server.repo, token="hf_test")
    assert "\n" not in str(caught.value) and not pushing.commits


def test_pushes_that_cannot_be(model, hub_server):
    with pytest.raises(ArgumentError, match="cannot be the name of a repository"):
        model.push_to_hub("a/b/c")
    with pytest.raises(ArtifactError, match="still float"):
        qzoo.resnet18().push_to_hub(hub_server.repo)
    hub_server.close()
    with pytest.raises(UploadError, match="check the network"):
        model.push_to_hub(hub_server.repo, token="hf_test")
