"""The artifact file: what is written, and that whatever is wrong with one ends in a clear error."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

import qzoo
from qzoo.artifact import format as artifact_format
from qzoo.native.model import from_native
from tests.helpers.artifact_parts import (
    HOSTILE_KWARGS,
    TINY,
    checksum,
    put_together,
    take_apart,
    tiny_artifact,
)
from tests.helpers.zoo import quiet, small_images, uncalibrated


@pytest.fixture(scope="module")
def content() -> bytes:
    return tiny_artifact()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def assert_refused(path: Path, content: bytes, *words: str) -> None:
    """Checks for one clear ArtifactError from `qzoo.load` that names the file."""
    path.write_bytes(content)
    with pytest.raises(qzoo.ArtifactError) as caught:
        qzoo.load(path)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert len(message) < 1000 and "\n" not in message
    assert caught.value.__context__ is None or caught.value.__suppress_context__


def test_layout_is_the_documented_one(content: bytes) -> None:
    parts = take_apart(content)
    assert set(parts.header) == {
        "format", "version", "architecture", "builder_kwargs", "backend", "classes", "transforms",
        "recipe", "metrics", "input_size", "nodes", "versions", "sha256",
    }  # fmt: skip
    assert parts.header["format"] == "qzoo-int8" and parts.header["version"] == 3
    assert parts.header["sha256"] == checksum(parts)
    assert parts.header["builder_kwargs"] == TINY
    dtypes = {n.rpartition(".")[2]: t.dtype for n, t in parts.tensors.items()}
    assert dtypes["weight"] == torch.int8 and dtypes["bias"] == torch.float32
    assert dtypes["weight_scale"] in (torch.float32, torch.float64)
    seen = {"input"}
    for node in parts.header["nodes"]:
        name, op = node["name"], node["op"]
        assert (f"{name}.weight" in parts.tensors) is (op in ("conv2d", "linear"))
        assert ({"scale", "zero_point", "low", "high"} <= set(node)) is (op != "dequantize")
        assert set(node["inputs"]) <= seen and name not in seen
        seen.add(name)


def test_put_together_again_it_loads(content: bytes, path: Path) -> None:
    path.write_bytes(put_together(take_apart(content)))
    images = small_images("mobilenet_v2")
    with quiet():
        logits = qzoo.load(path)(images)
    path.write_bytes(content)
    with quiet():
        assert torch.equal(qzoo.load(path)(images), logits)
    assert qzoo.Artifact.read(path).to_bytes() == content


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 9, 100, 0.1, 0.5, 0.9, -1])
def test_truncated(kept: float, content: bytes, path: Path) -> None:
    size = int(kept * len(content)) if isinstance(kept, float) else kept
    assert_refused(path, content[:size], str(path))


def test_longer_than_it_says(content: bytes, path: Path) -> None:
    assert_refused(path, content + b"\0", str(path))


def test_of_a_later_version(content: bytes, path: Path) -> None:
    parts = take_apart(content)
    parts.header["version"] = 4
    parts.header["field_of_the_future"] = {}
    assert_refused(path, put_together(parts), str(path), "version 4 is newer", "upgrade qzoo")


@pytest.mark.parametrize("version", [0, -1, 1.0, "1", None, True, [1]])
def test_of_no_version(version: object, content: bytes, path: Path) -> None:
    parts = take_apart(content)
    parts.header["version"] = version
    assert_refused(path, put_together(parts), "names no format version")


@pytest.mark.parametrize("architecture", ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5"])
def test_for_another_architecture(architecture: str, content: bytes, path: Path) -> None:
    parts = take_apart(content)
    parts.header.update(architecture=architecture, builder_kwargs={"num_classes": 3})
    assert_refused(path, put_together(parts), "another")


def test_for_an_unknown_architecture(content: bytes, path: Path) -> None:
    parts = take_apart(content)
    parts.header["architecture"] = "mobilenet_v9"
    assert_refused(path, put_together(parts), "unknown here", "Did you mean")


def test_for_other_builder_arguments(content: bytes, path: Path) -> None:
    parts = take_apart(content)
    parts.header["builder_kwargs"] = {**TINY, "num_classes": 5}
    assert_refused(path, put_together(parts), "'classifier.1'", "weight shape")


def test_with_a_changed_tensor(content: bytes, path: Path) -> None:
    changed = bytearray(content)
    changed[-3] ^= 1
    assert_refused(path, bytes(changed), str(path), "do not match their checksum")


def test_with_a_changed_header_value(content: bytes, path: Path) -> None:
    backend = content.index(b'backend\\":\\"') + len(b'backend\\":\\"')
    assert content[backend : backend + 3] == b"x86"
    changed = content[:backend] + b"x87" + content[backend + 3 :]
    assert_refused(path, changed, str(path), "do not match their checksum")


@pytest.mark.parametrize(
    "other",
    [
        b"not an artifact at all",
        b"PK\x03\x04" + bytes(200),
        b"\x80\x02}q\x00." + bytes(200),
        bytes(64),
        save({"weight": torch.zeros(2)}),
        save({"weight": torch.zeros(2)}, metadata={"qzoo": "{}"}),
        save({"weight": torch.zeros(2)}, metadata={"qzoo": "null"}),
        save({"weight": torch.zeros(2)}, metadata={"qzoo": "{'a'"}),
        save({"weight": torch.zeros(2)}, metadata={"qzoo": "[" * 100_000}),
        save({"weight": torch.zeros(2)}, metadata={"qzoo": '{"a":' * 5000 + "1" + "}" * 5000}),
    ],
    ids=["text", "zip", "pickle", "zeros", "float", "empty", "null", "json", "deep", "closed"],
)
def test_not_an_artifact(other: bytes, path: Path) -> None:
    assert_refused(path, other, str(path))


def test_missing(path: Path) -> None:
    with pytest.raises(qzoo.ArtifactError, match="does not exist; check the path"):
        qzoo.load(path)


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(qzoo.ArtifactError, match="is a folder"):
        qzoo.load(tmp_path)


def test_unreadable(path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_bytes(content)

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "open", refuse)  # root, which tests may run as, can read anything
    with pytest.raises(qzoo.ArtifactError, match=r"cannot be opened \(Permission denied\)"):
        qzoo.load(path)


def test_a_target_in_no_folder(tmp_path: Path, content: bytes) -> None:
    artifact = from_native(uncalibrated("mobilenet_v2", **TINY))
    with pytest.raises(qzoo.ArtifactError, match=r"Cannot write .*No such file"):
        artifact.write(tmp_path / "no" / "model.safetensors")
    with pytest.raises(qzoo.ArtifactError, match="Cannot write"):
        artifact.write(tmp_path)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(qzoo.ArtifactError, match=r"Cannot write .*Not a directory"):
        artifact.write(tmp_path / "file" / "model.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file(
    step: str, content: bytes, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_bytes(content)

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    model = uncalibrated("mobilenet_v2", **TINY)
    with monkeypatch.context() as patch:
        patch.setattr(*((os, "fsync", full) if step == "fsync" else (Path, "replace", full)))
        with pytest.raises(qzoo.ArtifactError, match=r"Cannot write .*No space left"):
            qzoo.save(model, path)
    assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path], "a temporary file was left behind"


def test_an_interrupted_write_leaves_no_temporary_file(
    content: bytes, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_bytes(content)

    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        artifact_format.write_atomically(path, b"new")
    assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("name", HOSTILE_KWARGS)
def test_hostile_builder_arguments(name: str, content: bytes, path: Path) -> None:
    parts = take_apart(content)
    parts.header["builder_kwargs"] = HOSTILE_KWARGS[name]
    start = time.monotonic()
    assert_refused(path, put_together(parts))
    assert time.monotonic() - start < 10
