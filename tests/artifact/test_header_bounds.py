"""Every number and name in an artifact from outside has bounds; nothing is read in two ways."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import qzoo
from qzoo._core import strict_json
from qzoo._core.files import File
from qzoo.artifact.layers import LARGEST_SCALE, SMALLEST_SCALE
from qzoo.artifact.tensor_file import read_tensors
from qzoo.artifact.tensors import Tensors
from qzoo.importers.checkpoint import is_float_checkpoint, load_float, save_float
from tests.helpers.artifact_parts import (
    Parts,
    checksum,
    node,
    put_together,
    take_apart,
    tiny_artifact,
)
from tests.helpers.commands import invoke

PRESET = qzoo.transforms.ImageClassification(crop_size=32, resize_size=36).to_dict()
Change = Callable[[Parts], object]


@pytest.fixture(scope="module", params=["version 1", "version 3"])
def content(request: pytest.FixtureRequest) -> bytes:
    return tiny_artifact(old=request.param == "version 1")


def refused(path: Path, content: bytes, word: str | None = None) -> None:
    path.write_bytes(content)
    with pytest.raises(qzoo.ArtifactError, match=word) as caught:
        qzoo.load(path)
    message = str(caught.value)
    assert str(path) in message and len(message) < 1000 and "\n" not in message


def scale(value: Any) -> Change:
    return lambda parts: node(parts, "quant").update(scale=value)


def tensor(what: str, value: float) -> Change:
    def change(parts: Parts) -> None:
        name = next(name for name in parts.tensors if name.endswith(what))
        parts.tensors[name] = torch.full_like(parts.tensors[name], value)

    return change


def header(**fields: Any) -> Change:
    return lambda parts: parts.header.update(fields)


def preset(**fields: Any) -> Change:
    return header(transforms={**PRESET, **fields})


@pytest.mark.parametrize(
    "change",
    [
        *map(scale, (1e-38, 1e-30, 1e-13, 2e12, 1e30, 3e38, 0, -1.0, True, "1", None, [1.0])),
        scale(10**400),
        *(tensor("weight_scale", value) for value in (2e12, 1e30, 3e38, 0.0, -1.0, 1e-45)),
        *(tensor("bias", value) for value in (2e12, -2e12, 3e38, float("inf"), float("nan"))),
        *(preset(crop_size=value) for value in (0, -1, 1025, 8192, 10**9, 32.0, "32", None)),
        *(preset(resize_size=value) for value in (0, 2049, 8192, True, [32])),
        *(preset(std=value) for value in ([1e-46, 1, 1], [1, 1, 0], [1e5, 1, 1], [1, 1], "111")),
        *(preset(mean=value) for value in ([1e5, 0, 0], [0, 0, None], 0.5, {}, [[0], 0, 0])),
        *(preset(antialias=value) for value in (1, "yes", [])),
        *(preset(interpolation=value) for value in (2, None, "cubic", ["bilinear"], {})),
        *(header(transforms=value) for value in ([], "x", {}, {"preset": "ImageClassification"})),
        *(header(metrics=value) for value in ([], {"a": 1}, {"a": {"b": "1"}}, {"a": {"b": 1e10}})),
        header(metrics={"a": {"b": 10**400}}),
        *(header(versions=value) for value in ([], {"a": 1}, {"a": {"b": "c"}}, {"a": None})),
        *(header(classes=value) for value in (3, {}, [1, 2, 3], ["a"], "digits", ["x" * 2000] * 3)),
        *(header(recipe=value) for value in ([], None, 1, "x")),
        *(header(builder_kwargs=value) for value in ([], None, 1, "x", {"groups": "x"})),
        *(header(backend=value) for value in (None, "", "avx", 1, ["x86"], {})),
        *(header(architecture=value) for value in (1, [], {}, "", "x" * 10_000)),
        *(header(layers=value) for value in ([], None, {"a": 1}, {"a": {"op": []}}, {"": {}})),
        header(layers={f"l{i}": {"op": "identity"} for i in range(10_001)}),
        *(header(format=value) for value in (None, 1, [], "qzoo-float")),
    ],
)
def test_what_no_model_needs_is_refused(change: Change, content: bytes, tmp_path: Path) -> None:
    parts = take_apart(content)
    change(parts)
    refused(tmp_path / "m.safetensors", put_together(parts))


def test_older_files_need_an_architecture(tmp_path: Path) -> None:
    parts = take_apart(tiny_artifact(old=True))
    parts.header["architecture"] = None
    refused(tmp_path / "m.safetensors", put_together(parts), "architecture")


@pytest.mark.parametrize(
    "change",
    [
        *map(scale, (SMALLEST_SCALE, LARGEST_SCALE, 1)),
        *(tensor("weight_scale", value) for value in (1.2e-38, 1e-20, LARGEST_SCALE)),
        *(tensor("bias", value) for value in (1e12, -1e12, 0.0)),
        preset(crop_size=1024, resize_size=2048, std=[1e-4, 1 / 255, 255], mean=[-1, 0, 123.7]),
        header(recipe={"a": [{"b": [1, 2.5, None, True, "x"]}]}),
    ],
)
def test_what_a_model_may_need_is_read(change: Change, content: bytes, tmp_path: Path) -> None:
    parts = take_apart(content)
    change(parts)
    path = tmp_path / "m.safetensors"
    path.write_bytes(put_together(parts))
    for backend in ("x86", "fbgemm", "onednn", "qnnpack"):
        model = qzoo.load(path, backend)
        with torch.no_grad():
            model(torch.rand(1, 3, 32, 32))


@pytest.mark.parametrize(
    "dtype",
    ["BF16", "F16", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "BOOL", "C64", "U64", "I64", "U8", "X"],
)
@pytest.mark.parametrize("what", ["weight", "bias", "weight_scale"])
def test_tensors_of_other_dtypes(dtype: str, what: str, content: bytes, tmp_path: Path) -> None:
    """Through the file's own header, with a checksum that is right where a dtype is known."""
    known = {"BF16": torch.bfloat16, "F16": torch.float16, "I64": torch.int64, "U8": torch.uint8}
    parts = take_apart(content)
    name = next(name for name in parts.tensors if name.endswith(what))
    if dtype in known:
        parts.tensors[name] = parts.tensors[name].to(known[dtype])
        refused(tmp_path / "m.safetensors", put_together(parts), "Layer |Node |dtype")
        return
    length = int.from_bytes(content[:8], "little")
    table = json.loads(content[8 : 8 + length])
    table[name]["dtype"] = dtype
    text = json.dumps(table).encode()
    changed = len(text).to_bytes(8, "little") + text + content[8 + length :]
    refused(tmp_path / "m.safetensors", changed, "dtype")


def test_tensors_of_the_newest_dtypes_with_a_right_checksum(content: bytes, tmp_path: Path) -> None:
    parts = take_apart(content)
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64, torch.bool):
        tensors = dict(parts.tensors)
        name = next(name for name in tensors if name.endswith("bias"))
        tensors[name] = tensors[name].to(dtype)
        refused(tmp_path / "m.safetensors", put_together(Parts(parts.header, tensors)), "dtype")


@pytest.mark.parametrize("place", ["top", "layer", "recipe", "kwargs"])
def test_keys_that_are_named_twice(place: str, content: bytes, tmp_path: Path) -> None:
    parts = take_apart(content)
    parts.header["recipe"] = {"deep": [{"er": {"key": 1}}]}
    parts.header["sha256"] = checksum(parts)
    text = json.dumps(parts.header)
    old, new = {
        "top": ('"backend":', '"backend": "fbgemm", "backend":'),
        "layer": ('"zero_point":', '"zero_point": 7, "zero_point":'),
        "recipe": ('{"key": 1}', '{"key": 2, "key": 1}'),
        "kwargs": ('"num_classes":', '"num_classes": 5, "num_classes":'),
    }[place]
    assert old in text
    from safetensors.torch import save

    changed = save(parts.tensors, metadata={"qzoo": text.replace(old, new, 1)})
    refused(tmp_path / "m.safetensors", changed, "twice")
    good = save(parts.tensors, metadata={"qzoo": text})
    (tmp_path / "good.safetensors").write_bytes(good)
    qzoo.load(tmp_path / "good.safetensors")


def test_tensors_that_are_named_twice(content: bytes, tmp_path: Path) -> None:
    """The package safetensors reads the last of them."""
    length = int.from_bytes(content[:8], "little")
    text = content[8 : 8 + length].decode().rstrip()
    name, entry = next(i for i in json.loads(text).items() if i[0] != "__metadata__")
    twice = f'{{"{name}":{json.dumps(entry)},{text[1:]}'.encode()
    changed = len(twice).to_bytes(8, "little") + twice + content[8 + length :]
    refused(tmp_path / "m.safetensors", changed, "twice")


@pytest.mark.parametrize("text", [
    '{"a":1,"a":1}', '{"b":{"a":1,"a":2}}', '[{"a":[{"x":1,"x":1}]}]', '{"a":NaN}', '[Infinity]',
    '[-Infinity]', '[1e400]', '[-1e999]', "[" * 40 + "]" * 40, "[" * 10**5, "", "{", "{'a':1}",
    '["\\ud800', '{"a":1}x', "1" * 5000,
])  # fmt: skip
def test_json_that_is_read_in_no_way(text: str) -> None:
    with pytest.raises(ValueError):
        strict_json.parse(text)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(JSON)
def test_json_that_is_read(value: Any) -> None:
    text = json.dumps(value)
    assert json.dumps(strict_json.parse(text)) == text


def places(holder: Any) -> list[tuple[Any, Any]]:
    """Returns every container of a header with every key or index of it."""
    keys = range(len(holder)) if isinstance(holder, list) else [*holder]
    own = [(holder, key) for key in keys]
    inner = [holder[key] for key in keys if isinstance(holder[key], (dict, list))]
    return own + [place for container in inner for place in places(container)]


@given(JSON, st.integers(0, 10**6))
def test_any_value_anywhere_in_a_header_is_read_or_refused(
    tmp_path: Path, value: Any, number: int
) -> None:
    """The checksum is right, so that the value itself is judged."""
    parts = take_apart(tiny_artifact())
    found = places(parts.header)
    holder, key = found[number % len(found)]
    holder[key] = value
    path = tmp_path / "m.safetensors"
    path.write_bytes(put_together(parts))
    try:
        assert qzoo.Artifact.read(path).layers
    except qzoo.ArtifactError as error:
        assert "\n" not in str(error) and len(str(error)) < 1000


def test_float_checkpoints_are_read_as_strictly(tmp_path: Path) -> None:
    path = tmp_path / "float.safetensors"
    save_float(qzoo.mobilenet_v2(num_classes=2, width_mult=0.25), path)
    content = path.read_bytes()
    assert is_float_checkpoint(path)
    key = b'\\"num_classes\\":'
    assert key in content
    changed = content.replace(key, key + b"3," + key)
    extra = len(changed) - len(content)
    assert extra > 0
    length = int.from_bytes(content[:8], "little") + extra
    path.write_bytes(length.to_bytes(8, "little") + changed[8:])
    with pytest.raises(qzoo.ArtifactError, match="twice"):
        load_float(path)


@pytest.mark.parametrize("claim", [
    {"shape": [-1, -64]}, {"shape": [1 << 62]}, {"shape": [0, 1 << 39, 1 << 39]},
    {"shape": "64"}, {"shape": [64.0]}, {"shape": [True]}, {"shape": [1] * 20}, {"shape": None},
    {"data_offsets": []},
    {"data_offsets": [0, 10**30]}, {"data_offsets": [5, 0]}, {"data_offsets": [-4, 0]},
    {"dtype": 3}, {"dtype": None}, {"extra": 1},
])  # fmt: skip
def test_places_that_tensors_cannot_have(claim: Any, content: bytes, tmp_path: Path) -> None:
    length = int.from_bytes(content[:8], "little")
    table = json.loads(content[8 : 8 + length])
    name = next(name for name in table if name.endswith("bias"))
    table[name].update(claim)
    text = json.dumps(table).encode()
    refused(
        tmp_path / "m.safetensors", len(text).to_bytes(8, "little") + text + content[8 + length :]
    )


def test_tensors_are_those_that_the_package_reads(content: bytes, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "all.safetensors"
    tensors = {
        "none": torch.zeros(0, 3), "one": torch.tensor(3.5), "half": torch.rand(5).half(),
        "brain": torch.rand(3, 2).bfloat16(), "double": torch.rand(2, dtype=torch.float64),
        "bytes": torch.arange(7, dtype=torch.uint8), "long": torch.tensor([1, -(2**60)]),
        "int": torch.tensor([-5], dtype=torch.int32), "large": torch.rand(40_000),
    }  # fmt: skip
    save_file(tensors, path, metadata={"a": "b"})
    with File(path) as file:
        metadata, arrays = read_tensors(file)
    found = dict(Tensors(arrays))
    assert metadata == {"a": "b"} and set(found) == set(tensors)
    tensors["brain"] = tensors["brain"].float()  # NumPy has no bfloat16
    for name, wanted in tensors.items():
        assert found[name].dtype == wanted.dtype and torch.equal(found[name], wanted), name


def test_verify_goes_on_after_any_bad_file(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = take_apart(content)
    name = next(name for name in parts.tensors if name.endswith("bias"))
    tensors = {**parts.tensors, name: parts.tensors[name].bfloat16()}
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "a.safetensors").write_bytes(put_together(Parts(parts.header, tensors)))
    (folder / "b.safetensors").write_bytes(content[:100])
    (folder / "c.safetensors").symlink_to(tmp_path / "gone")
    (folder / "d.pth").write_bytes(b"")
    (folder / "e.safetensors").write_bytes(content)
    (folder / "z.safetensors").write_bytes(content)
    (tmp_path / "empty").mkdir()

    from qzoo.sharing import convert

    check = convert.check_model

    def failing(path: Path) -> str:
        if path.name == "e.safetensors":
            raise MemoryError("a fault of ours")
        return check(path)

    monkeypatch.setattr(convert, "check_model", failing)
    result = invoke("verify", tmp_path / "empty", folder, tmp_path / "missing.pth")
    lines = [line for line in result.output.splitlines() if line.startswith(("ok", "BAD"))]
    assert result.exit_code == 2
    assert [line[:3] for line in lines] == ["BAD"] * 6 + ["ok ", "BAD"], result.output
    assert "MemoryError" in lines[5] and "empty" in lines[0] and "missing" in lines[7]
