"""The commands that run int8 models work without PyTorch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qzoo.artifact.format import Artifact
from qzoo.artifact.interpret import interpret
from qzoo.pictures.images import load_image
from qzoo.pictures.preset import Preset
from tests.helpers.places import DIGITS, EMBEDDED, INT8
from tests.helpers.without_torch import python, qzoo

pytestmark = pytest.mark.lite

NAMED = ("--model", "shufflenet_v2_x0_5", "--weights", "DIGITS_X86_V1")
V3_SMALL = EMBEDDED / "mobilenet_v3_small_digits_x86.safetensors"


def said(*words: object, **environment: Any) -> Any:
    """Returns what a command says for programs."""
    return json.loads(qzoo(*words, "--json", **environment))


def best(artifact: Path, picture: Path) -> str:
    """Returns the class that the numpy interpreter finds in a picture."""
    held = Artifact.read(artifact)
    x = Preset.from_dict(held.info.transforms)(load_image(picture))
    assert held.info.classes is not None
    return held.info.classes[int(interpret(held.graph, x[None]).argmax())]


def test_demo_classifies_and_compares() -> None:
    found = said("demo")
    assert [p["label"] for p in found["pictures"]] == [f.name.split("-")[1] for f in DIGITS]
    assert sum(p["label"] == p["prediction"] for p in found["pictures"]) >= len(DIGITS) - 1
    assert "onnxruntime" in found["runtimes"]
    assert "torch" not in found["runtimes"]
    assert "int8 ran on" in qzoo("demo")


@pytest.mark.parametrize("model", [NAMED, ("--model", INT8), ("--model", V3_SMALL)])
def test_classify_finds_what_the_interpreter_finds(model: tuple[object, ...]) -> None:
    artifact = V3_SMALL if V3_SMALL in model else INT8
    found = said("classify", *DIGITS[:3], *model, "--topk", 2, "--runtime", "onnxruntime")
    assert [Path(row["file"]) for row in found] == DIGITS[:3]
    for row, picture in zip(found, DIGITS[:3], strict=True):
        first, second = row["predictions"]
        assert first["name"] == best(artifact, picture)
        assert first["probability"] >= second["probability"]


def test_classify_refuses_what_is_no_picture(tmp_path: Path) -> None:
    (tmp_path / "no.png").write_text("no picture")
    assert "no.png" in qzoo("classify", tmp_path / "no.png", "--model", INT8, exit_code=2)


def test_list_and_info() -> None:
    assert len({row["model"] for row in said("list")}) == 19
    assert "IMAGENET1K_FBGEMM_V2" in qzoo("info", "resnet50")
    info = said("info", INT8)
    assert info["architecture"] == "shufflenet_v2_x0_5"


def test_convert_brings_files_of_version_1_to_today(tmp_path: Path) -> None:
    code = """
import json, sys
from pathlib import Path
from safetensors.numpy import load, save
import hashlib
from qzoo.artifact.format import Artifact
held = Artifact.read(sys.argv[1])
header = {"format": "qzoo-int8", "version": 1, **held.info.to_dict(),
          "layers": {name: layer.to_json() for name, layer in held.layers.items()},
          "versions": held.versions}
sha = hashlib.sha256(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode())
names = {"int8": "torch.int8", "float32": "torch.float32", "float64": "torch.float64",
         "int64": "torch.int64", "uint8": "torch.uint8"}
for name, array in sorted(held.arrays.items()):
    sha.update(f"{name}:{names[str(array.dtype)]}:{list(array.shape)}".encode() + array.tobytes())
text = json.dumps({**header, "sha256": sha.hexdigest()})
Path(sys.argv[2]).write_bytes(save(dict(held.arrays), metadata={"qzoo": text}))
"""
    old, new = tmp_path / "old.safetensors", tmp_path / "new.safetensors"
    python(code, INT8, old)
    assert b'version\\":1' in old.read_bytes().replace(b" ", b"")
    qzoo("convert", old, new)
    assert b'version\\":3' in new.read_bytes().replace(b" ", b"")
    expected, got = Artifact.read(INT8), Artifact.read(new)
    assert got.info == expected.info
    x = np.random.default_rng(0).normal(size=(2, 3, 64, 64)).astype(np.float32)
    np.testing.assert_array_equal(interpret(got.graph, x), interpret(expected.graph, x))


def test_verify_tells_good_files_from_bad(tmp_path: Path) -> None:
    assert all(row["ok"] for row in said("verify", EMBEDDED))
    content = bytearray(INT8.read_bytes())
    content[-100] ^= 1
    (tmp_path / "bad.safetensors").write_bytes(content)
    assert "1 of the files are bad" in qzoo("verify", tmp_path, exit_code=2)


def test_cache_and_download(tmp_path: Path) -> None:
    assert said("cache", QZOO_HOME=str(tmp_path)) in ([], {"files": []})
    words = ("download", "shufflenet_v2_x0_5", "--weights", "DIGITS_X86_V1")
    (row,) = said(*words, QZOO_HOME=str(tmp_path))
    assert Path(row["file"]).read_bytes() == INT8.read_bytes()


@pytest.mark.parametrize("form", ["onnx", "openvino"])
def test_export_writes_what_answers_as_the_interpreter(form: str, tmp_path: Path) -> None:
    if form == "openvino":
        pytest.importorskip("openvino", reason="OpenVINO is not installed here")
    ending = {"onnx": ".onnx", "openvino": ".xml"}[form]
    out = tmp_path / f"digits{ending}"
    qzoo("export", INT8, "--to", form, "-o", out)
    code = """
import sys, numpy as np
x = np.load(sys.argv[2])
if sys.argv[1].endswith(".onnx"):
    import onnxruntime
    session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
    logits = session.run(None, {"input": x})[0]
else:
    import openvino
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    logits = openvino.Core().compile_model(sys.argv[1], "CPU", options)(x)[0]
np.save(sys.argv[3], logits)
"""
    artifact = Artifact.read(INT8)
    preset = Preset.from_dict(artifact.info.transforms)
    x = np.stack([preset(load_image(file)) for file in DIGITS])
    np.save(tmp_path / "x.npy", x)
    python(code, out, tmp_path / "x.npy", tmp_path / "logits.npy")
    expected, found = interpret(artifact.graph, x), np.load(tmp_path / "logits.npy")
    # A step here and there along the way; the next class is far away.
    assert np.abs(found - expected).max() <= 0.1 * np.abs(expected).max()
    assert (found.argmax(1) == expected.argmax(1)).all()


def test_benchmark_measures_the_runtimes_that_are_here() -> None:
    rows = said("benchmark", INT8, "--rounds", 1, "--runtimes", "onnxruntime", "--size", 64)
    assert [row["runtime"] for row in rows] == ["onnxruntime"]
    assert rows[0]["median_ms"] > 0
    assert rows[0]["peak_mib"] > 0
