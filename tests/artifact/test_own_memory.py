"""What was read and verified does not change when its file does; a read is of one file."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import textwrap
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import qzoo
from qzoo._core.files import File, RefusedError
from qzoo.importers import checkpoint
from qzoo.importers.pth import read_checkpoint
from qzoo.native.model import from_native, to_native
from qzoo.sharing.convert import check_model, read_any, read_model, state_dict_bytes
from tests.helpers.artifact_parts import TINY
from tests.helpers.calling import python
from tests.helpers.zoo import quiet, small_images, uncalibrated


def artifact(seed: int, backend: str = "x86") -> qzoo.Artifact:
    """A tiny model whose biases, too, depend on the seed."""
    torch.manual_seed(seed)
    made = from_native(uncalibrated("mobilenet_v2", backend=backend, **TINY))
    for name, tensor in made.tensors.items():
        if name.endswith(".bias"):
            tensor.normal_()
    return made


def overwrite(path: Path, content: bytes) -> None:
    """As `cp` does: the same file, with other contents."""
    with path.open("r+b") as file:
        file.write(content)
        file.truncate()


def load(path: Path) -> Callable[[Tensor], Tensor]:
    return qzoo.load(path)


def compiled(path: Path) -> Callable[[Tensor], Tensor]:
    return qzoo.compile(str(path), "torch", threads=1)


def read(path: Path) -> Callable[[Tensor], Tensor]:
    made = qzoo.Artifact.read(path)
    return lambda images: to_native(made)(images)


def float_model(path: Path) -> Callable[[Tensor], Tensor]:
    return checkpoint.load_float(path)


@pytest.mark.parametrize("damage", ["overwritten", "cut short"])
@pytest.mark.parametrize("backend", ["x86", "fbgemm", "onednn", "qnnpack"])
@pytest.mark.parametrize("way", [load, compiled, read])
def test_a_loaded_model_does_not_follow_its_file(
    way: Callable[[Path], Any], backend: str, damage: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    first, second = artifact(1, backend), artifact(2, backend)
    first.write(path)
    images = small_images("mobilenet_v2", 2)
    with quiet(), torch.no_grad():
        model = way(path)
        before = model(images)
        overwrite(path, second.to_bytes() if damage == "overwritten" else b"")
        assert torch.equal(model(images), before)
        if isinstance(model, torch.nn.Module):
            assert from_native(model).digest() == first.digest()


def test_onnxruntime_at_a_new_size_of_pictures(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    path = tmp_path / "model.safetensors"
    artifact(1).write(path)
    model = qzoo.compile(str(path), "onnxruntime", threads=1, input_size=32)
    other = qzoo.compile(artifact(1), "onnxruntime", threads=1, input_size=32)
    overwrite(path, b"")
    images = torch.rand(1, 3, 48, 48)
    assert torch.equal(model(images), other(images))


@pytest.mark.parametrize("zipped", [True, False])
def test_checkpoints_have_memory_of_their_own(zipped: bool, tmp_path: Path) -> None:
    path, state = tmp_path / "net.pth", {"w": torch.rand(64, 64, 3, 3), "b": torch.rand(3)}
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    entries = read_checkpoint(path).entries
    overwrite(path, b"")
    assert all(torch.equal(entries[name], state[name]) for name in state)

    float_path = tmp_path / "float.safetensors"
    model = qzoo.mobilenet_v2(**TINY).eval()
    checkpoint.save_float(model, float_path)
    loaded = checkpoint.load_float(float_path)
    overwrite(float_path, b"")
    images = small_images("mobilenet_v2", 1)
    with torch.no_grad():
        assert torch.equal(loaded(images), model(images))


def test_no_file_stays_mapped_or_open(tmp_path: Path) -> None:
    """A file that is cut short would otherwise kill the process (SIGBUS)."""
    if not Path("/proc/self/maps").exists():
        pytest.skip("this system does not list a process's mappings")
    path = tmp_path / "model.safetensors"
    artifact(1).write(path)
    held = [qzoo.load(path), qzoo.Artifact.read(path), read_model(path), check_model(path)]
    assert held and str(path) not in Path("/proc/self/maps").read_text()
    names = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            names.append(str(entry.readlink()))
        except OSError:
            continue
    assert str(path) not in names


def count_opens(path: Path, call: Callable[[], object]) -> int:
    """How often Python opens `path` during the call."""
    seen: list[str] = []
    active = True

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        # Python's open says its mode; the system call below it is an event of its own, without.
        if active and event == "open" and arguments[1] and str(arguments[0]) == str(path):
            seen.append(str(arguments[0]))

    sys.addaudithook(hook)
    try:
        with contextlib.suppress(qzoo.ArgumentError):  # of no model of the zoo: it was read
            call()
    finally:
        active = False
    return len(seen)


def test_reading_opens_a_file_once(tmp_path: Path) -> None:
    made, path = artifact(1), tmp_path / "model.safetensors"
    made.write(path)
    for call in (qzoo.load, qzoo.Artifact.read, read_model, check_model):
        assert count_opens(path, partial(call, path)) == 1, call
    state = tmp_path / "state.pth"
    state.write_bytes(state_dict_bytes(artifact(1)))
    readers: list[Any] = [read_checkpoint, check_model, read_model, read_any]
    for reader in readers:
        assert count_opens(state, partial(reader, state)) == 1, reader
    floats = tmp_path / "float.safetensors"
    checkpoint.save_float(qzoo.mobilenet_v2(**TINY), floats)
    readers = [checkpoint.load_float, checkpoint.is_float_checkpoint, check_model, read_any]
    for reader in readers:
        assert count_opens(floats, partial(reader, floats)) == 1, reader


def test_readers_beside_atomic_writers_see_whole_files(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    both = [artifact(1), artifact(2)]
    digests = {a.digest() for a in both}
    both[0].write(path)
    done = threading.Event()

    def write(made: qzoo.Artifact) -> None:
        while not done.is_set():
            made.write(path)

    writers = [threading.Thread(target=write, args=(a,)) for a in both]
    for writer in writers:
        writer.start()
    try:
        seen = {qzoo.Artifact.read(path).digest() for _ in range(60)}
    finally:
        done.set()
        for writer in writers:
            writer.join()
    assert seen <= digests and list(tmp_path.iterdir()) == [path]


def test_a_file_that_changes_between_its_hash_and_its_contents(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    path.write_bytes(bytes(1000))
    with File(path) as file:
        file.sha256()
        os.utime(path, ns=(1, 1))  # whatever the clock's steps are
        overwrite(path, b"x" * 1000)
        with pytest.raises(RefusedError, match="written to while it was read"):
            file.read_bytes(0, 10)
    with File(path) as file:
        overwrite(path, b"x")
        with pytest.raises(RefusedError, match=r"became shorter|written to"):
            file.read_bytes(0, 1000)


def test_a_file_that_takes_the_name_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    path.write_bytes(b"first")
    with File(path) as file:
        (tmp_path / "other").write_bytes(b"second")
        (tmp_path / "other").replace(path)
        assert file.read_bytes(0, None) == b"first"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_what_is_no_regular_file_is_not_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "model.safetensors"
    os.mkfifo(pipe)
    for call in (qzoo.load, qzoo.Artifact.read, read_model, check_model, checkpoint.load_float):
        with pytest.raises(qzoo.ArtifactError, match=r"no regular file|does not exist"):
            call(pipe)
    assert not checkpoint.is_float_checkpoint(pipe)


def test_cutting_a_loaded_file_short_kills_no_process(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    artifact(1, "onednn").write(path)
    shutil.copy(path, tmp_path / "kept.safetensors")
    code = f"""
        import os, torch, qzoo
        model = qzoo.load({str(path)!r})
        artifact = qzoo.Artifact.read({str(path)!r})
        os.truncate({str(path)!r}, 0)
        model(torch.rand(1, 3, 32, 32))
        qzoo.save(model, {str(path)!r})
        artifact.write({str(path)!r})
        print("alive")
    """
    assert "alive" in python("-W", "ignore", "-c", textwrap.dedent(code)).stdout
    assert path.read_bytes() == (tmp_path / "kept.safetensors").read_bytes()
