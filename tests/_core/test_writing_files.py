"""How files are written: whole or not at all, through links, with the right mode."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import qzoo
from qzoo._core.files import write_atomically, write_files
from qzoo.importers.checkpoint import save_float
from tests.helpers.zoo import uncalibrated

TINY = {"num_classes": 3, "inverted_residual_setting": [[1, 8, 1, 2]], "width_mult": 0.25}


def save(path: Path) -> None:
    qzoo.save(uncalibrated("mobilenet_v2", **TINY), path)


def folder(path: Path) -> None:
    qzoo.save_pretrained(uncalibrated("mobilenet_v2", **TINY), path.parent)


def onnx(path: Path) -> None:
    pytest.importorskip("onnx")
    from qzoo.export.onnx import export_onnx

    export_onnx(uncalibrated("mobilenet_v2", **TINY), path, input_size=32)


def floats(path: Path) -> None:
    save_float(qzoo.mobilenet_v2(**TINY), path)


def openvino(path: Path) -> None:
    pytest.importorskip("openvino")
    from qzoo.export.openvino import export_openvino

    export_openvino(uncalibrated("mobilenet_v2", **TINY), path, input_size=32)


def plain(path: Path) -> None:
    write_atomically(path, b"new")


WRITERS = [
    pytest.param(plain, "file", id="write_atomically"),
    pytest.param(save, "m.safetensors", id="save"),
    pytest.param(floats, "m.safetensors", id="save_float"),
    pytest.param(folder, "model.safetensors", id="save_pretrained"),
    pytest.param(onnx, "m.onnx", id="export_onnx"),
    pytest.param(openvino, "m.xml", id="export_openvino"),
]
EVERY_WRITER = pytest.mark.parametrize(("write", "name"), WRITERS)


@EVERY_WRITER
@pytest.mark.parametrize("exists", [True, False])
def test_a_link_stays_a_link(
    write: Callable[[Path], None], name: str, exists: bool, tmp_path: Path
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "links").mkdir()
    real, link = tmp_path / "real" / f"other-{name}", tmp_path / "links" / name
    if exists:
        real.write_bytes(b"old")
    (tmp_path / "hop").symlink_to(real)
    link.symlink_to(tmp_path / "hop")  # a link to a link
    write(link)
    assert link.is_symlink() and (tmp_path / "hop").is_symlink() and not real.is_symlink()
    assert len(real.read_bytes()) > 3 or real.read_bytes() == b"new"


@EVERY_WRITER
@pytest.mark.parametrize("mask", [0o077, 0o027, 0o002])
def test_new_files_get_the_mode_that_the_umask_allows(
    write: Callable[[Path], None], name: str, mask: int, tmp_path: Path
) -> None:
    (tmp_path / "m").mkdir()
    before = os.umask(mask)
    try:
        write(tmp_path / "m" / name)
    finally:
        os.umask(before)
    written = [path for path in (tmp_path / "m").iterdir() if path.is_file()]
    assert written
    assert {stat.S_IMODE(path.stat().st_mode) for path in written} == {0o666 & ~mask}


@EVERY_WRITER
def test_a_file_that_is_replaced_keeps_its_mode(
    write: Callable[[Path], None], name: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(b"old")
    path.chmod(0o640)
    write(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640 and path.read_bytes() != b"old"


@EVERY_WRITER
@pytest.mark.parametrize("linked", [False, True])
def test_a_read_only_file_is_refused(
    write: Callable[[Path], None], name: str, linked: bool, tmp_path: Path
) -> None:
    """Also for root, who may write everything."""
    (tmp_path / "m").mkdir()
    path = real = tmp_path / "m" / name
    if linked:
        real = tmp_path / "real"
        path.symlink_to(real)
    real.write_bytes(b"old")
    real.chmod(0o444)
    with pytest.raises(qzoo.ArtifactError, match=r"Cannot write .*: it is read-only; make it"):
        write(path)
    assert real.read_bytes() == b"old" and stat.S_IMODE(real.stat().st_mode) == 0o444
    assert [p.name for p in (tmp_path / "m").iterdir()] == [name], "something was left behind"


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(qzoo.ArtifactError, match="no regular file"):
            write_atomically(tmp_path / "pipe", b"new")
        assert (tmp_path / "pipe").is_fifo()
    (tmp_path / "round").symlink_to(tmp_path / "round")
    (tmp_path / "folder").mkdir()
    (tmp_path / "to-folder").symlink_to(tmp_path / "folder")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone" / "file")
    for name in ("round", "folder", "to-folder", "nowhere", "a\0b", "x" * 300):
        with pytest.raises(qzoo.ArtifactError, match="Cannot write") as caught:
            write_atomically(tmp_path / name, b"new")
        assert len(str(caught.value)) < 1000
    assert (tmp_path / "round").is_symlink() and (tmp_path / "nowhere").is_symlink()


def test_long_names_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("ä" * 120)  # 240 bytes; most systems allow 255
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"


def test_several_files_are_written_together_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_bytes(b"old")
    second.write_bytes(b"old")
    second.chmod(0o444)
    with pytest.raises(qzoo.ArtifactError, match=f"Cannot write {second}"):
        write_files({first: b"new", second: b"new"})
    assert first.read_bytes() == b"old"
    second.chmod(0o644)
    sync, calls = os.fsync, [0]

    def full(descriptor: int) -> None:
        calls[0] += 1
        if calls[0] == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(qzoo.ArtifactError, match="No space left"):
            write_files({first: b"new", second: b"new"})
    assert first.read_bytes() == second.read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]
    write_files({first: b"1", second: b"2"})
    assert (first.read_bytes(), second.read_bytes()) == (b"1", b"2")


def test_a_link_to_a_folder_stays_one(tmp_path: Path) -> None:
    model = uncalibrated("mobilenet_v2", **TINY)
    for number, real in enumerate((tmp_path / "real", tmp_path / "new")):
        if number == 0:
            real.mkdir()
        link = tmp_path / f"link{number}"
        link.symlink_to(real)
        qzoo.save_pretrained(model, link)
        assert link.is_symlink() and (real / "model.safetensors").is_file()
        images = torch.rand(1, 3, 32, 32)
        with torch.no_grad():
            assert torch.equal(qzoo.from_pretrained(link)(images), model(images))
