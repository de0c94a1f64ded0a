"""The artifact file: what is written, and that whatever is wrong with one ends in a clear error."""

from __future__ import annotations

import copy
import errno
import hashlib
import json
import math
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor
from zoo_cases import eager_ptq, float_model, quiet, small_images, uncalibrated

import qzoo
from qzoo.artifact import format as artifact_format
from qzoo.artifact.native import from_native, to_native

#: A MobileNet V2 of two blocks: every kind of layer in 20 kB.
TINY = {"num_classes": 3, "inverted_residual_setting": [[1, 8, 1, 2], [2, 8, 2, 1]],
        "width_mult": 0.25}  # fmt: skip


class Parts(NamedTuple):
    """An artifact file taken apart."""

    header: dict[str, Any]
    tensors: dict[str, Tensor]


def take_apart(content: bytes) -> Parts:
    length = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + length])["__metadata__"]
    return Parts(json.loads(metadata["qzoo"]), load(content))


def checksum(parts: Parts) -> str:
    """Returns the checksum as docs/artifact.md describes it, for any reader to compute."""
    header = {k: v for k, v in parts.header.items() if k != "sha256"}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False)
    sha = hashlib.sha256(text.encode("utf-8", "surrogatepass"))
    for name in sorted(parts.tensors):
        tensor = parts.tensors[name].contiguous()
        sha.update(f"{name}:{tensor.dtype}:{list(tensor.shape)}".encode())
        sha.update(bytes(tensor.reshape(-1).view(torch.uint8).tolist()))
    return sha.hexdigest()


def put_together(parts: Parts) -> bytes:
    """Writes a file whose checksum is right, so that only the contents can be wrong."""
    header = {**parts.header, "sha256": checksum(parts)}
    return save(parts.tensors, metadata={"qzoo": json.dumps(header)})


@pytest.fixture(scope="module")
def content() -> bytes:
    """The bytes of a small calibrated artifact."""
    torch.manual_seed(0)
    images = small_images("mobilenet_v2")
    return from_native(eager_ptq(float_model("mobilenet_v2", **TINY), images)).to_bytes()


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
        "recipe", "metrics", "layers", "versions", "sha256",
    }  # fmt: skip
    assert parts.header["format"] == "qzoo-int8" and parts.header["version"] == 1
    assert parts.header["sha256"] == checksum(parts)
    assert parts.header["builder_kwargs"] == TINY
    dtypes = {n.rpartition(".")[2]: t.dtype for n, t in parts.tensors.items()}
    assert dtypes["weight"] == torch.int8 and dtypes["bias"] == torch.float32
    assert dtypes["weight_scale"] in (torch.float32, torch.float64)
    for name, layer in parts.header["layers"].items():
        assert (f"{name}.weight" in parts.tensors) is (layer["op"] in ("conv2d", "linear"))


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
    parts.header["version"] = 2
    parts.header["field_of_the_future"] = {}
    assert_refused(path, put_together(parts), str(path), "version 2 is newer", "upgrade qzoo")


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
    with pytest.raises(qzoo.ArtifactError, match="No such file"):
        qzoo.load(path)


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(qzoo.ArtifactError, match="Is a directory"):
        qzoo.load(tmp_path)


def test_unreadable(path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_bytes(content)

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "open", refuse)  # root, which tests may run as, can read anything
    with pytest.raises(qzoo.ArtifactError, match=r"Cannot read .*Permission denied"):
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


HOSTILE_KWARGS: dict[str, dict[str, Any]] = {
    "gigantic width": {**TINY, "width_mult": 1e9},
    "infinite width": {**TINY, "width_mult": 1e308},
    "a billion blocks": {**TINY, "inverted_residual_setting": [[6, 16, 10**9, 1]]},
    "many rows": {**TINY, "inverted_residual_setting": [[6, 16, 30_000, 1]] * 1000},
    "nested": {**TINY, "inverted_residual_setting": [[[[[1]]]]]},
    "a billion classes": {**TINY, "num_classes": 10**9},
    "more classes than memory": {**TINY, "num_classes": 10**18},
    "more classes than int64": {**TINY, "num_classes": 10**30},
    "negative classes": {**TINY, "num_classes": -3},
    "no classes": {**TINY, "num_classes": 0},
    "text": {**TINY, "num_classes": "3"},
    "rounding to 0": {**TINY, "round_nearest": 0},
    "a block by name": {**TINY, "block": "os.system"},
    "a norm by name": {**TINY, "norm_layer": "os.system"},
    "self": {**TINY, "self": 1},
    "dunder": {**TINY, "__class__": "x"},
    "no number": {**TINY, "dropout": "all"},
    "unknown": {**TINY, "depth": 3},
    "not a keyword": {**TINY, "a b\ud800": 3},
    "dropout above 1": {**TINY, "dropout": 7.0},
}


@pytest.mark.parametrize("name", HOSTILE_KWARGS)
def test_hostile_builder_arguments(name: str, content: bytes, path: Path) -> None:
    parts = take_apart(content)
    parts.header["builder_kwargs"] = HOSTILE_KWARGS[name]
    start = time.monotonic()
    assert_refused(path, put_together(parts))
    assert time.monotonic() - start < 10


DTYPES = (torch.int8, torch.uint8, torch.int64, torch.half, torch.float32, torch.float64,
          torch.bool)  # fmt: skip
WORDS = ("conv2d", "linear", "identity", "dequantize", "quantize", "hardswish", "functional",
         "dropout", "qnnpack", "onednn", "fbgemm", "imagenet-1k", "mobilenet_v2",
         "quantized_mobilenet_v2", "MobileNet_V2", "shufflenet_v2_x0_5", "resnet18")  # fmt: skip


class Mutator:
    """Changes artifacts at random, from a seed, in ways that damage or malice would."""

    def __init__(self, content: bytes, seed: int) -> None:
        self.content = content
        self.parts = take_apart(content)
        self.random = random.Random(seed)

    def bytes_of_the_file(self) -> bytes:
        """Flips, cuts, repeats or overwrites raw bytes, in the JSON part half of the time."""
        data, rnd = bytearray(self.content), self.random
        end = len(data) if rnd.random() < 0.5 else 8 + int.from_bytes(data[:8], "little")
        for _ in range(rnd.choice((1, 1, 1, 2, 8))):
            at, length = rnd.randrange(end), rnd.choice((1, 1, 2, 8, 200))
            match rnd.randrange(5):
                case 0:
                    data[at % len(data)] ^= 1 << rnd.randrange(8)
                case 1:
                    data[at : at + length] = rnd.randbytes(length)
                case 2:
                    del data[at : at + length]
                case 3:
                    data[at:at] = data[at : at + length]
                case 4:
                    data = data[: max(1, at)]
            end = min(end, len(data)) or 1
        return bytes(data)

    def header(self) -> bytes:
        """Changes values of the header and makes the checksum right again."""
        header = copy.deepcopy(self.parts.header)
        for _ in range(self.random.choice((1, 1, 1, 2, 5))):
            self._change_somewhere(header)
        return put_together(Parts(header, self.parts.tensors))

    def tensors(self) -> bytes:
        """Changes tensors and makes the checksum right again."""
        tensors = dict(self.parts.tensors)
        rnd = self.random
        for _ in range(rnd.choice((1, 1, 2))):
            name = rnd.choice(sorted(tensors) or ["none"])
            tensor = tensors.pop(name, torch.zeros(1))
            changed = self._changed_tensor(tensor)
            if changed is not None:
                tensors[rnd.choice((name, name, name, name + "x", "quant.weight", ""))] = changed
        return put_together(Parts(self.parts.header, tensors))

    def _changed_tensor(self, tensor: Tensor) -> Tensor | None:
        rnd = self.random
        with quiet():
            match rnd.randrange(9):
                case 0:
                    return None
                case 1:
                    return tensor.to(rnd.choice(DTYPES))
                case 2:
                    return tensor.reshape(-1)
                case 3:
                    return tensor[None]
                case 4:
                    return tensor[:0] if tensor.dim() else tensor
                case 5:
                    return torch.cat([tensor, tensor]) if tensor.dim() else tensor
                case 6:
                    return torch.full_like(tensor, rnd.choice((0, -1, 1, 127)))
                case 7 if tensor.is_floating_point():
                    return torch.full_like(
                        tensor, rnd.choice((math.nan, math.inf, 1e-45, 3e38, 1e-30, -0.0))
                    )
                case _:
                    return tensor.flip(0) if tensor.dim() else tensor + 1

    def _change_somewhere(self, header: dict[str, Any]) -> None:
        rnd = self.random
        places = [(header, k) for k in header if k != "sha256"]
        # Layers are most of the header: start from the top, so that all of it gets its share.
        owner, key = rnd.choice(places)
        while isinstance(owner[key], (dict, list)) and owner[key] and rnd.random() < 0.8:
            inner = owner[key]
            keys = list(inner) if isinstance(inner, dict) else range(len(inner))
            owner, key = inner, rnd.choice(keys)
        match rnd.randrange(7):
            case 0:
                del owner[key]
            case 1 if isinstance(owner, dict):
                owner[self._name(header)] = owner.pop(key)
            case 2 if isinstance(owner, dict):
                owner[self._name(header)] = copy.deepcopy(owner[key])
            case 3:
                owner[key] = [owner[key]]
            case _:
                owner[key] = self._value(header, owner[key])

    def _name(self, header: dict[str, Any]) -> str:
        known = [*(header["layers"] if isinstance(header.get("layers"), dict) else ())]
        odd = ["", ".", "features", "features.0", "features.0.0.weight", "quant.quant", "self",
               "training", "_modules", "__class__", "\ud800", "a\nb", "x" * 3000]  # fmt: skip
        return self.random.choice(odd + known[:3] + known[-3:])

    def _value(self, header: dict[str, Any], old: Any) -> Any:
        rnd = self.random
        if type(old) in (int, float) and rnd.random() < 0.5:
            return rnd.choice((old + 1, -old, old * 2, old // 3, old * 10**6, int(old)))
        if isinstance(old, str) and rnd.random() < 0.5:
            return rnd.choice(WORDS)
        if isinstance(old, dict) and rnd.random() < 0.3:
            return copy.deepcopy(rnd.choice([*HOSTILE_KWARGS.values()]))
        return rnd.choice((
            None, True, False, 0, 1, -1, 255, 256, 2**31, 2**63, 10**400, 0.5, -0.0, 1e-320, 1e308,
            "", "x", "\ud800", "\x00", "x" * 5000, [], {}, [1, 1], [2, 2], [0, 0], [-1, 10**9],
            ["a", "b", "c"], ["a"] * 1000, [[]], [None], {"a": {"b": 1}}, {"op": "identity"},
            self._name(header),
        ))  # fmt: skip


def ends_cleanly(path: Path, content: bytes) -> bool:
    """Reads and builds an artifact; True if it is one, False if a QzooError refused it."""
    path.write_bytes(content)
    try:
        artifact = qzoo.Artifact.read(path)
        model = to_native(artifact)
    except qzoo.QzooError as error:
        message = str(error)
        assert message and len(message) < 1500
        message.encode()  # it can be printed
        return False
    with quiet(), torch.no_grad():
        assert model(small_images("mobilenet_v2", 1)).dim() == 2
    return True


@pytest.mark.parametrize(
    ("kind", "count", "fewest_accepted"),
    [("bytes_of_the_file", 4000, 0), ("header", 4500, 100), ("tensors", 1500, 100)],
)
def test_ten_thousand_mutated_artifacts(
    kind: str, count: int, fewest_accepted: int, content: bytes, path: Path
) -> None:
    mutator = Mutator(content, seed=2026)
    mutate: Callable[[], bytes] = getattr(mutator, kind)
    accepted = 0
    for number in range(count):
        mutated = mutate()
        try:
            accepted += ends_cleanly(path, mutated)
        except BaseException:
            print(f"{kind} number {number} got through")
            raise
    # Mutations that stop at the checksum, or at the first field, would prove little.
    assert fewest_accepted <= accepted < count
