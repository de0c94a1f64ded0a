"""Damaged and hostile containers: zip archives, truncated files, files of another kind."""

from __future__ import annotations

import os
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from qzoo.importers.pth import read_checkpoint
from tests.helpers.pth import refused

FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


def archive(path: Path, *entries: tuple[str, bytes], **options: Any) -> Path:
    with zipfile.ZipFile(path, "w", **options) as file:
        for name, content in entries:
            file.writestr(name, content)
    return path


EMPTY = ("a/data.pkl", b"\x80\x02}.")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("entries", "word"),
    [
        ([EMPTY, ("/etc/x", b"")], "unsafe name"),
        ([EMPTY, ("a/../../x", b"")], "unsafe name"),
        ([EMPTY, ("C:x", b"")], "unsafe name"),
        ([EMPTY, EMPTY], "two entries"),
        ([EMPTY, ("b/data.pkl", b"")], "no data.pkl"),
        ([("data.pkl", EMPTY[1])], "no data.pkl"),
        ([], "begins with neither"),
        ([EMPTY, ("a/constants.pkl", b"")], "TorchScript"),
        ([EMPTY, ("a/code/x.py", b"")], "TorchScript"),
        ([EMPTY, ("a/byteorder", b"big")], "big-endian"),
    ],
)
def test_bad_archives(entries: list[tuple[str, bytes]], word: str, tmp_path: Path) -> None:
    refused(archive(tmp_path / "x.pth", *entries), word)


def test_zip_bomb(tmp_path: Path) -> None:
    path = archive(
        tmp_path / "x", EMPTY, ("a/data/0", bytes(1 << 24)), compression=zipfile.ZIP_DEFLATED
    )
    refused(path, "compressed zip entry")


def patched(path: Path, start: int, new: bytes) -> Path:
    data = bytearray(path.read_bytes())
    data[start : start + len(new)] = new
    path.write_bytes(data)
    return path


def test_patched_archives(tmp_path: Path) -> None:
    def fresh() -> tuple[Path, bytes, int]:
        path = archive(tmp_path / "x.pth", EMPTY, ("a/data/0", b"1234"))
        data = path.read_bytes()
        return path, data, data.index(b"PK\x01\x02")

    path, data, first = fresh()
    second = data.index(b"PK\x01\x02", first + 1)
    # Two directory entries that point at one local header.
    refused(patched(path, second + 42, bytes(4)), "overlap")
    path, *_ = fresh()
    refused(patched(path, first + 24, b"\xf0\xff\xff\xff"), "compressed")
    path, *_ = fresh()
    refused(patched(path, first + 20, b"\xf0\xff\xff\xff\xf0\xff\xff\xff"), "outside of the file")
    path, *_ = fresh()
    refused(patched(path, first + 20, b"\xff" * 8), "zip64")
    path, *_ = fresh()
    refused(patched(path, first + 8, b"\x01"), "encrypted")
    path, *_ = fresh()
    refused(patched(path, first + 42, b"\x01"), "wrong header")
    path, *_ = fresh()
    refused(patched(path, first + 28, b"\xff\xff"), "cut short")
    path, *_ = fresh()
    refused(patched(path, len(data) - 12, b"\xff\xff\xff"), "cut short")
    path, *_ = fresh()
    refused(patched(path, data.index(b"\x80\x02}") + 2, b"]"), "checksum")
    path, *_ = fresh()
    path.write_bytes(path.read_bytes() + b"x")
    refused(path, "appended")


@FORMATS
def test_truncations(zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save({"a": torch.ones(99)}, path, _use_new_zipfile_serialization=zipped)
    data = path.read_bytes()
    read_checkpoint(path)
    for size in range(0, len(data), 7):
        path.write_bytes(data[:size])
        refused(path)
    path.write_bytes(data + b"\n")
    refused(path, "appended")


def test_other_kinds_of_file(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    refused(path, "does not exist")
    refused(tmp_path, "is a directory")
    for content, word in {
        b"": "empty",
        b"\n<!DOCTYPE html><title>Log in</title>": "web page",
        b"version https://git-lfs.github.com/spec/v1\n": "git lfs pull",
        b"\x40\0\0\0\0\0\0\0" + b'{"a":{}}': "safetensors",
        bytes(257) + b"ustar\0": "tar archive",
        b"hello": "no file of torch.save",
        pickle.dumps({"a": 1}, 2): "torch.save did not write",
    }.items():
        path.write_bytes(content)
        refused(path, word)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(torch.nn.Linear(1, 1)).save(str(path))
    refused(path, "TorchScript")
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "no regular file")
