"""Files made to harm: each is refused with one ArtifactError, and nothing in it runs."""

from __future__ import annotations

import os
import struct
import tracemalloc
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from qzoo.errors import ArtifactError
from qzoo.importers.pth import inert, read_checkpoint
from tests.helpers.pth import Call, Stored, pickled, refused, write

FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


def forbidden() -> list[tuple[str, object]]:
    touch = "touch ran"
    return [
        (f"{os.system.__module__}.system", Call(os.system, touch)),
        ("__builtin__.eval", Call(eval, "open('ran', 'w')")),
        ("__builtin__.getattr", Call(getattr, OrderedDict(), "popitem")),
        ("torch.serialization.load", Call(torch.load, "other.pth")),
        ("torch._utils._rebuild_sparse_tensor", Call(torch._utils._rebuild_sparse_tensor, 1, 2)),
        ("torch.nn.modules.linear.Linear", torch.nn.Linear(1, 1)),
        ("copy_reg._reconstructor", Call(__import__("copyreg")._reconstructor, object, object, 0)),
    ]


@FORMATS
@pytest.mark.parametrize(("name", "value"), forbidden(), ids=[n for n, _ in forbidden()])
def test_forbidden_globals(
    name: str, value: object, zipped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # Last in the dict, so that all that comes before has been read.
    path = write(tmp_path / "x.pth", pickled({"a": 1, "b": [value]}), zipped)
    refused(path, name, "never runs")
    assert [p.name for p in tmp_path.iterdir()] == ["x.pth"]


RAW = {
    "inst": (b"(S'true'\nios\nsystem\n.", "STRING"),
    "inst call": (b"(ios\nsystem\n.", "os.system"),
    "obj": (b"(cos\nsystem\no.", "os.system"),
    "newobj": (b"cos\nsystem\n)\x81.", "os.system"),
    "newobj_ex": (b"N)}\x92.", "NEWOBJ_EX"),
    "stack global": (b"\x8c\x02os\x8c\x06system\x93.", "os.system"),
    "dotted": (b"\x8c\x05torch\x8c\x12serialization.load\x93.", "torch.serialization.load"),
    "dotted allowed": (b"\x8c\x05torch\x8c\x0d_utils.system\x93.", "torch._utils.system"),
    "ext": (b"\x82\x01.", "EXT1"),
    "persid": (b"Pos.system\n.", "PERSID"),
    "persistent": (b"NQ.", "no storage"),
    "module": (b"\x8c\x06module\x85Q.", "whole module"),
    "bytes": (b"C\x01x.", "SHORT_BINBYTES"),
    "buffer": (b"\x97.", "NEXT_BUFFER"),
    "unknown": (b"\xff.", "0xff"),
    "call a number": (b"K\x01)R.", "no function"),
    "call a dtype": (b"ctorch\nqint8\n)R.", "no function"),
    "call a storage": (b"ctorch\nFloatStorage\n)R.", "no function"),
    "wrong arguments": (b"ctorch._utils\n_rebuild_qtensor\n)R.", "0 arguments"),
    "build on dict": (b"}}b.", "sets attributes"),
    "build attribute": (b"ccollections\nOrderedDict\n)R}\x8c\x08__dict__Nsb.", "__dict__"),
    "build function": (b"cargparse\nNamespace\n}b.", "sets attributes"),
    "type as value": (b"}\x8c\x01actorch\nFloatStorage\ns.", "a type"),
    "huge put": (b"Nr\xff\xff\xff\xff.", "NoneType"),
    "unknown get": (b"j\xff\xff\xff\xff.", "makes no sense"),
    "huge string": (b"X\xff\xff\xff\xff.", "cut short"),
    "huge bytes": (b"\x96\xff\xff\xff\xff\xff\xff\xff\x7f.", "BYTEARRAY8"),
    "long4": (b"\x8b\xff\xff\xff\x7f.", "LONG4"),
    "long integer": (b"\x8a\xff" + b"\x01" * 255 + b".", "255 bytes"),
    "no text": (b"X\x01\0\0\0\xff.", "makes no sense"),
    "long name": (b"c" + b"x" * 1000 + b"\n.", "unreasonable length"),
    "control text": (b"c\x1b[2J\ny\n.", r"\x1b[2J.y"),
    "empty stack": (b"R.", "makes no sense"),
    "no result": (b".", "middle of an object"),
    "open mark": (b"N(N.", "middle of an object"),
    "tuple key": (b"})Ns.", "dict key"),
    "colliding keys": (b"}\x8a\x0d" + ((1 << 61) - 1).to_bytes(13, "little") + b"Ns.", "dict key"),
    "number keys": (b"}K\x01Ns.", "keys are numbers"),
    "no dict": (b"]N\x61.", "instead of a state dict"),
    "loop": (b"}q\0\x8c\x01ah\0s.", "contains itself"),
    "list loop": (b"}\x8c\x01a]q\0h\0as.", "contains itself"),
    "deep": (b"}\x8c\x01a)" + b"\x85" * 100_000 + b"s.", "nests more than"),
    "billion laughs": (
        b"}\x8c\x01a)q\0"
        + b"".join(bytes([0x68, i, 0x86, 0x71, i + 1]) for i in range(60))
        + b"s.",
        "enormous",
    ),
    "protocol 9": (b"\x80\x09N.", "protocol 9"),
}


@FORMATS
@pytest.mark.parametrize("case", RAW)
def test_raw_instructions(case: str, zipped: bool, tmp_path: Path) -> None:
    data, word = RAW[case]
    refused(write(tmp_path / "x.pth", b"\x80\x02" + data, zipped), word)


def tensor(*geometry: Any, kind: type = torch.FloatStorage, numel: Any = 4, **extra: Any) -> Call:
    storage = Stored(kind, numel, **extra)
    return Call(torch._utils._rebuild_tensor_v2, storage, *geometry, False, OrderedDict())


def quantized(*qparams: Any, shape: tuple[int, ...] = (2, 2)) -> Call:
    stride = (2, 1)[-len(shape) :]
    storage = Stored(torch.QInt8Storage, 16)
    return Call(
        torch._utils._rebuild_qtensor, storage, 0, shape, stride, qparams, False, OrderedDict()
    )


AFFINE, CHANNELS = torch.per_tensor_affine, torch.per_channel_affine
NUMBERS: dict[str, tuple[object, str]] = {
    "negative stride": (tensor(3, (4,), (-1,)), "negative"),
    "negative size": (tensor(0, (-4,), (1,)), "negative"),
    "negative offset": (tensor(-1, (1,), (1,)), "begins outside"),
    "offset": (tensor(1, (4,), (1,)), "reaches outside"),
    "stride": (tensor(0, (2, 2), (3, 1)), "reaches outside"),
    "too many": (tensor(0, (5,), (1,)), "more elements"),
    "expanded": (tensor(0, (1 << 40,), (0,)), "more elements"),
    "overflow": (tensor(0, (1 << 32, 1 << 32), (0, 0)), "more elements"),
    "huge empty": (tensor(0, (0, 1 << 61, 1 << 61), (0, 0, 0)), "enormous"),
    "huge stride": (tensor(0, (2,), (1 << 70,)), "enormous"),
    "dimensions": (tensor(0, (1,) * 40, (1,) * 40), "no proper shape"),
    "strides": (tensor(0, (2, 2), (1,)), "do not belong"),
    "boolean size": (tensor(0, (True,), (1,)), "enormous size"),
    "float size": (tensor(0, (1.0,), (1,)), "enormous size"),
    "shape as text": (tensor(0, "ab", (1,)), "no proper shape"),
    "storage size": (tensor(0, (4,), (1,), numel=5), "5"),
    "storage negative": (tensor(0, (4,), (1,), numel=-1), "-1 elements"),
    "storage huge": (tensor(0, (4,), (1,), numel=1 << 62), "elements"),
    "storage missing": (tensor(0, (4,), (1,), key="7"), "damaged"),
    "two kinds": (
        [tensor(0, (4,), (1,)), tensor(0, (4,), (1,), kind=torch.IntStorage)],
        "two ways",
    ),
    "unquantized": (tensor(0, (4,), (1,), kind=torch.QInt32Storage), "not quantized"),
    "bare storage": (Stored(torch.FloatStorage, 4), "bare storage"),
    "view": (
        Call(
            torch._utils._rebuild_tensor, Stored(torch.FloatStorage, 4, "0", ("1", 0, 2)), 0, (), ()
        ),
        "views of storages",
    ),
    "conjugate": (
        Call(
            torch._utils._rebuild_tensor_v2,
            *(Stored(torch.FloatStorage, 4), 0, (4,), (1,), False, OrderedDict(), {"conj": True}),
        ),
        "conjugation",
    ),
    "scale 0": (quantized(AFFINE, 0.0, 0), "scale"),
    "scale negative": (quantized(AFFINE, -1.0, 0), "scale"),
    "scale nan": (quantized(AFFINE, float("nan"), 0), "scale"),
    "scale inf": (quantized(AFFINE, float("inf"), 0), "scale"),
    "scale text": (quantized(AFFINE, "1", 0), "do not fit"),
    "zero point range": (quantized(AFFINE, 1.0, 128), "zero point"),
    "zero point huge": (quantized(AFFINE, 1.0, 1 << 64), "do not fit"),
    "zero point real": (quantized(AFFINE, 1.0, 0.5), "do not fit"),
    "axis": (quantized(CHANNELS, [1.0] * 2, [0] * 2, 2), "axis"),
    "axis negative": (quantized(CHANNELS, [1.0] * 2, [0] * 2, -1), "axis"),
    "channels": (quantized(CHANNELS, [1.0] * 3, [0] * 3, 0), "do not fit"),
    "channel scale": (quantized(CHANNELS, [1.0, 0.0], [0] * 2, 0), "scale"),
    "channel zero point": (quantized(CHANNELS, [1.0] * 2, [0, -129], 0), "zero point"),
    "scheme": (quantized(torch.per_channel_symmetric, [1.0] * 2, [0] * 2, 0), "symmetric"),
    "no scheme": (quantized(), "no scheme"),
}


@FORMATS
@pytest.mark.parametrize("case", NUMBERS)
def test_bad_numbers(case: str, zipped: bool, tmp_path: Path) -> None:
    value, word = NUMBERS[case]
    itemsize = 1 if b"QInt8Storage" in pickled(value) else 4
    path = write(tmp_path / "x.pth", pickled({"a": value}), zipped, bytes(16), itemsize)
    if case in ("storage missing", "two kinds", "storage size"):
        word = "damaged"
    refused(path, word)


def test_channel_parameters_of_pytorch_1_3(tmp_path: Path) -> None:
    value = quantized(CHANNELS, [0.5, 0.25], [0, 3], 1)
    array: Any = read_checkpoint(
        write(tmp_path / "x.pth", pickled({"a": value}), storage=bytes(16))
    ).entries["a"]
    assert array.scale.tolist() == [0.5, 0.25]
    assert array.zero_point.tolist() == [0, 3]


def test_truth_values(tmp_path: Path) -> None:
    value = {"a": tensor(0, (4,), (1,), kind=torch.BoolStorage)}
    refused(write(tmp_path / "x.pth", pickled(value), storage=b"\0\1\2\0"), "truth value")


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"}\x94" * 500_000, id="dicts"),
        pytest.param(b"N" + b"\x94" * 500_000, id="memo"),
        pytest.param(b"}K\x01Ns" * 125_000, id="items"),
        pytest.param(
            b"}X"
            + struct.pack("<I", (8 << 20) - 64)
            + "😀".encode()
            + b"a" * ((8 << 20) - 68)
            + b"Ns.",
            id="text",
        ),
    ],
)
def test_memory_of_containers_is_bounded(body: bytes, tmp_path: Path) -> None:
    path = write(tmp_path / "x.pth", b"\x80\x02" + body)
    tracemalloc.start()
    try:
        read_checkpoint(path)
    except ArtifactError as error:
        assert str(inert.MAX_INSTRUCTIONS) in str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 128 << 20
