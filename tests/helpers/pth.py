"""Builders of hostile `torch.save` files, and the check that one is refused."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qzoo.errors import ArtifactError
from qzoo.importers.pth import read_arrays, read_checkpoint


class Call:
    """Pickles as a call of `function` with `arguments`."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.parts = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.parts


class Stored:
    """Pickles as the persistent id of a storage."""

    def __init__(self, kind: type, numel: Any, key: Any = "0", *view: Any) -> None:
        self.saved = ("storage", kind, key, "cpu", numel, *view)


class Pickler(pickle.Pickler):
    def persistent_id(self, obj: Any) -> Any:
        return obj.saved if isinstance(obj, Stored) else None


def pickled(value: object) -> bytes:
    buffer = io.BytesIO()
    Pickler(buffer, protocol=2).dump(value)
    return buffer.getvalue()


def write(
    path: Path, data: bytes, zipped: bool = True, storage: bytes | None = None, itemsize: int = 4
) -> Path:
    """A file with `data` as its pickle and, under the key "0", one storage."""
    if zipped:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a/data.pkl", data)
            if storage is not None:
                archive.writestr("a/data/0", storage)
    else:
        head = [pickle.dumps(x, 2) for x in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
        tail = [pickle.dumps([], 2)]
        if storage is not None:
            count = struct.pack("<q", len(storage) // itemsize)
            tail = [pickle.dumps(["0"], 2), count, storage]
        path.write_bytes(b"".join([*head, data, *tail]))
    return path


def refused(path: Path, *words: str) -> str:
    """Requires that a file is refused in one sentence, by both ways of reading it alike."""
    with pytest.raises(ArtifactError) as caught:
        read_checkpoint(path)
    message = str(caught.value)
    with pytest.raises(ArtifactError) as again:
        read_arrays(path)
    assert str(again.value) == message
    assert message.startswith(f"{path} ")
    assert "cannot be read (" not in message, "the net of last resort caught it"
    assert len(message.removeprefix(str(path))) < 300
    assert "\n" not in message
    for word in words:
        assert word in message
    return message
