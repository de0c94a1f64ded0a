"""`read_arrays` gives in numpy what PyTorch reads."""

from __future__ import annotations

import contextlib
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qzoo.importers.pth import QuantizedArray, in_arrays, read_arrays, read_checkpoint
from tests.helpers.pth import pickled, write
from tests.importers.test_pth_hostile import tensor

FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
WEIGHT = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
SCALES = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
#: Types that numpy lacks, and integers of their size.
LACKING = {
    torch.bfloat16: torch.int16,
    torch.float8_e4m3fn: torch.int8,
    torch.float8_e5m2: torch.int8,
}


def state() -> dict[str, Any]:
    channels = torch.quantize_per_channel(WEIGHT, SCALES, torch.arange(4), 0, torch.qint8)
    dtypes = (
        *(torch.float64, torch.float32, torch.float16, torch.int64, torch.int32, torch.int16),
        *(torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64),
        *(torch.complex64, torch.complex128, torch.bfloat16),
    )
    return {
        **{str(dtype): torch.arange(5).to(dtype) for dtype in dtypes},
        "bool": torch.tensor([True, False]),
        "per channel": channels,
        "along 1": torch.quantize_per_channel(
            WEIGHT, torch.arange(1.0, 7), torch.zeros(6).long(), 1, torch.quint8
        ),
        "per tensor": torch.quantize_per_tensor(WEIGHT, 0.1, 3, torch.quint8),
        "bias": torch.quantize_per_tensor(WEIGHT[0], 0.01, 0, torch.qint32),
        "packed": (channels, torch.nn.Parameter(torch.ones(4))),
        "no bias": (channels, None),
        "view": channels[1:3],
        "channels last": torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        "transposed": torch.arange(12).reshape(3, 4).T[1:],
        "strided": torch.arange(12.0)[1::3],
        "expanded": torch.arange(6.0)[:3].expand(2, 3),
        "empty": torch.zeros(0, 3),
        "nothing": torch.zeros(0),
        "scalar": torch.tensor(2.5),
        **{f"scalar {dtype}": torch.tensor(2.5).to(dtype) for dtype in LACKING},
        "empty bfloat16": torch.zeros(0, 3).bfloat16(),
        "number": 3,
        "dtype": torch.qint8,
        "none": None,
    }


def assert_same(ours: Any, theirs: Any) -> None:
    if isinstance(theirs, QuantizedArray):
        assert isinstance(ours, QuantizedArray) and ours.axis == theirs.axis
        for part in ("values", "scale", "zero_point"):
            assert_same(getattr(ours, part), getattr(theirs, part))
    elif isinstance(theirs, torch.Tensor):
        assert type(ours) is np.ndarray
        wanted = (theirs.float() if theirs.dtype in LACKING else theirs).numpy()
        ours = in_arrays(ours)
        assert type(ours) is np.ndarray
        assert ours.dtype == wanted.dtype and ours.shape == wanted.shape
        np.testing.assert_array_equal(ours, wanted)
    elif isinstance(theirs, tuple):
        for one, other in zip(ours, theirs, strict=True):
            assert_same(one, other)
    else:
        assert type(ours) is type(theirs) and ours == theirs


@FORMATS
def test_arrays_hold_what_tensors_hold(zipped: bool, tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    ours = read_arrays(tmp_path / "x.pth")
    theirs = read_checkpoint(tmp_path / "x.pth")
    assert list(ours.entries) == list(theirs.entries)
    for key, value in theirs.entries.items():
        assert_same(ours.entries[key], value)
        assert_same(in_arrays(value), value)


@pytest.mark.parametrize("dtype", LACKING, ids=str)
def test_types_that_numpy_lacks_become_float32_exactly(dtype: torch.dtype, tmp_path: Path) -> None:
    bits = LACKING[dtype]
    limits = torch.iinfo(bits)
    every = torch.arange(limits.min, limits.max + 1).to(bits).view(dtype)
    torch.save({"w": every, "part": every[3:9:2]}, tmp_path / "x.pth")
    entries: Any = read_arrays(tmp_path / "x.pth").entries
    for stored, theirs in ((entries["w"], every), (entries["part"], every[3:9:2])):
        assert stored.dtype.names == (str(dtype).removeprefix("torch."),)
        ours: Any = in_arrays(stored)
        wanted = theirs.float().numpy()
        assert ours.dtype == np.float32
        np.testing.assert_array_equal(ours, wanted)
        zero = ours == 0  # of which there are two
        np.testing.assert_array_equal(np.signbit(ours[zero]), np.signbit(wanted[zero]))
        assert ours.size < 9 or (np.isnan(ours).any() and (ours == 0).sum() == 2)


@pytest.mark.parametrize("kind", ["BFloat16Storage", "HalfStorage"])
def test_bytes_that_are_named_many_times_are_held_once(kind: str, tmp_path: Path) -> None:
    storage, count = bytes(2 << 20), 400
    views = {
        f"a.{i}": tensor(0, (1 << 20,), (1,), kind=getattr(torch, kind), numel=1 << 20)
        for i in range(count)
    }
    path = write(tmp_path / "x.pth", pickled(views), storage=storage)
    tracemalloc.start()
    try:
        entries = read_arrays(path).entries
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(entries) == count and peak < 16 << 20


def test_tied_weights_share_memory(tmp_path: Path) -> None:
    weight = torch.randn(4)
    torch.save({"a": weight, "b": weight, "half": weight[2:]}, tmp_path / "x.pth")
    entries: Any = read_arrays(tmp_path / "x.pth").entries
    assert entries["a"] is entries["b"]
    entries["a"][2] = 7
    assert entries["half"][0] == 7


@pytest.mark.parametrize("read", [read_arrays, read_checkpoint])
@pytest.mark.parametrize(
    ("shape", "stride", "offset", "wanted"),
    [
        ((1, 2), (1 << 60, 2), 1, [[1.0, 3.0]]),
        ((2, 1), (0, 1 << 61), 3, [[3.0], [3.0]]),
        ((0, 4), (1, 1), 9, np.zeros((0, 4)).tolist()),
        ((), (), 2, 2.0),
    ],
)
def test_odd_strides(
    read: Any, shape: Any, stride: Any, offset: int, wanted: Any, tmp_path: Path
) -> None:
    """Of a dimension of size 1 the stride is never walked, however large it is."""
    storage = np.arange(4, dtype=np.float32).tobytes()
    path = write(tmp_path / "x", pickled({"a": tensor(offset, shape, stride)}), storage=storage)
    assert read(path).entries["a"].tolist() == wanted


def test_nothing_is_warned_of_odd_numbers(tmp_path: Path) -> None:
    """Not even of NaNs that signal, which processors report at every step."""
    signalling = torch.tensor([0x7F80_0001], dtype=torch.int32).view(torch.float32)
    with contextlib.suppress(ValueError):
        signalling.double()
    torch.save({"a.scale": signalling, "b": signalling.bfloat16()}, tmp_path / "x.pth")
    assert np.isnan(read_arrays(tmp_path / "x.pth").entries["a.scale"]).all()
