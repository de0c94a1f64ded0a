"""10,000 mutated files: each is read or refused with one ArtifactError, within bounds."""

from __future__ import annotations

import io
import random
import resource
import tracemalloc
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qzoo.errors import ArtifactError
from qzoo.importers.pth import QuantizedArray, read_arrays, read_checkpoint

INTERESTING = (0, 1, 0x7F, 0x80, 0xFF, *b".(cR)b}]Qq\x85\x81\x8a\x93\x94uXht")


def base_state() -> dict[str, Any]:
    weight = torch.arange(24, dtype=torch.float32).reshape(4, 6) / 10
    scales = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    channels = torch.quantize_per_channel(weight, scales, torch.arange(4), 0, torch.qint8)
    state = OrderedDict(
        {
            "conv.weight": channels,
            "conv.bias": torch.nn.Parameter(torch.ones(4)),
            "conv.scale": torch.tensor(0.5),
            "conv.zero_point": torch.tensor(3),
            "linear": torch.quantize_per_tensor(weight, 0.1, 2, torch.quint8).T,
            "fc._packed_params.dtype": torch.qint8,
            "fc._packed_params._packed_params": (channels, None),
            "flags": torch.tensor([True, False]),
        }
    )
    state._metadata = OrderedDict({"": {"version": 1}, "fc": {"version": 3}})  # type: ignore[attr-defined]
    return state


def saved(zipped: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save(base_state(), buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def mutated(data: bytes, rng: random.Random, end: int) -> bytes:
    """`data` with one to four changes in its first `end` bytes."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        place = rng.randrange(max(1, min(end, len(out))))
        other = rng.randrange(max(1, min(end, len(out))))
        length = rng.randrange(1, 24)
        match rng.randrange(7):
            case 0:
                out[place] ^= 1 << rng.randrange(8)
            case 1:
                out[place] = rng.choice(INTERESTING)
            case 2:
                out[place : place + 4] = rng.choice((b"\xff" * 4, bytes(4), b"\xff\xff\xff\x7f"))
            case 3:
                del out[place : place + length]
            case 4:
                out[place:place] = out[other : other + length]
            case 5:
                out[place : place + length] = out[other : other + length]
            case _:
                out[place:place] = bytes(rng.choice(INTERESTING) for _ in range(length))
    return bytes(out)


def rebuilt(entries: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return buffer.getvalue()


class Mutator:
    """Makes mutated files, in turn: in the pickle of a sound zip, raw bytes, legacy format."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.zip, self.legacy = saved(True), saved(False)
        with zipfile.ZipFile(io.BytesIO(self.zip)) as archive:
            self.entries = {name: archive.read(name) for name in archive.namelist()}
        self.pickle_name = next(name for name in self.entries if name.endswith("data.pkl"))
        self.small_zip = rebuilt(self.entries)

    def make(self, index: int) -> bytes:
        rng = self.rng
        kind = index % 8
        if kind < 4:
            data = self.entries[self.pickle_name]
            return rebuilt({**self.entries, self.pickle_name: mutated(data, rng, len(data))})
        if kind == 4:
            data = self.small_zip  # headers and directory weigh more than in torch's own
            return mutated(data, rng, len(data))
        if kind == 5:
            return mutated(self.zip, rng, len(self.zip))
        return mutated(self.legacy, rng, len(self.legacy))


def read_all(value: object) -> int:
    """Touches every number, so that a view outside of its memory would show; counts tensors."""
    if isinstance(value, QuantizedArray):
        assert str(value.values.dtype).removeprefix("torch.") in ("int8", "uint8", "int32")
        return sum(map(read_all, (value.values, value.scale, value.zero_point)))
    if isinstance(value, (torch.Tensor, np.ndarray)):
        (value.copy if isinstance(value, np.ndarray) else value.clone)()
        return 1
    if isinstance(value, dict):
        return sum(map(read_all, value.values()))
    if isinstance(value, (tuple, list)):
        return sum(map(read_all, value))
    assert value is None or isinstance(value, (int, float, str))
    return 0


def outcome(path: Path) -> bool:
    """Whether the file was read; fails on anything but a clean load or a clean refusal."""
    try:
        arrays = read_arrays(path)
    except ArtifactError as error:
        # Every refusal is a decision of the reader: the net of last resort stays empty.
        assert "cannot be read (" not in str(error), str(error)
        return False
    read_all(arrays.metadata)
    assert read_all(arrays.entries) == read_all(read_checkpoint(path).entries)
    return True


def test_base_files_are_sound(tmp_path: Path) -> None:
    for data in (saved(True), saved(False), Mutator(0).small_zip):
        (tmp_path / "x.pth").write_bytes(data)
        assert outcome(tmp_path / "x.pth")


@pytest.mark.parametrize("count", [2000, pytest.param(10_000, marks=pytest.mark.extended)])
def test_mutations(count: int, tmp_path: Path) -> None:
    mutator = Mutator(seed=20)
    path = tmp_path / "x.pth"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    read = 0
    for index in range(count):
        path.write_bytes(mutator.make(index))
        read += outcome(path)
    # Some mutations are harmless; if none or nearly all were, the test would test nothing.
    assert count // 50 < read < count // 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 128 << 10  # KiB
    assert [p.name for p in tmp_path.iterdir()] == ["x.pth"]


@pytest.mark.parametrize("seed", [1, 2])
def test_allocation_per_file(seed: int, tmp_path: Path) -> None:
    mutator = Mutator(seed)
    path = tmp_path / "x.pth"
    tracemalloc.start()
    try:
        for index in range(500):
            path.write_bytes(mutator.make(index))
            tracemalloc.reset_peak()
            start = tracemalloc.get_traced_memory()[0]
            outcome(path)
            assert tracemalloc.get_traced_memory()[1] - start < 1 << 20
    finally:
        tracemalloc.stop()
