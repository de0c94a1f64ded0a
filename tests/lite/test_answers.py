"""Without PyTorch, commands and compiled models answer as the numpy interpreter does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from qzoo.artifact.format import Artifact
from qzoo.artifact.interpret import interpret
from qzoo.pictures.images import load_image
from qzoo.pictures.preset import Preset
from tests.helpers.places import DIGITS, EMBEDDED, INT8
from tests.helpers.without_torch import python, qzoo

pytestmark = pytest.mark.lite

V3_SMALL = EMBEDDED / "mobilenet_v3_small_digits_x86.safetensors"


def best(artifact: Path, picture: Path) -> str:
    """Returns the class that the numpy interpreter finds in a picture."""
    held = Artifact.read(artifact)
    x = Preset.from_dict(held.info.transforms)(load_image(picture))
    assert held.info.classes is not None
    return held.info.classes[int(interpret(held.graph, x[None]).argmax())]


@pytest.mark.parametrize("artifact", [INT8, V3_SMALL])
def test_classify_finds_what_the_interpreter_finds(artifact: Path) -> None:
    options = ("--model", artifact, "--topk", 2, "--runtime", "onnxruntime", "--json")
    found = json.loads(qzoo("classify", *DIGITS[:3], *options))
    assert [Path(row["file"]) for row in found] == DIGITS[:3]
    for row, picture in zip(found, DIGITS[:3], strict=True):
        first, second = row["predictions"]
        assert first["name"] == best(artifact, picture)
        assert first["probability"] >= second["probability"]


def test_classify_refuses_what_is_no_picture(tmp_path: Path) -> None:
    (tmp_path / "no.png").write_text("no picture")
    assert "no.png" in qzoo("classify", tmp_path / "no.png", "--model", INT8, exit_code=2)


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


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_compiled_models_take_and_give_arrays(runtime: str) -> None:
    if runtime == "openvino":
        pytest.importorskip("openvino", reason="OpenVINO is not installed here")
    code = """
import sys
import numpy as np
import qzoo
from qzoo.artifact.interpret import interpret
from qzoo.pictures.images import load_image
from qzoo.pictures.preset import Preset
artifact = qzoo.Artifact.read(sys.argv[1])
compiled = qzoo.compile(sys.argv[1], runtime=sys.argv[2], threads=1)
assert compiled.float_layers == () and compiled.classes == list("0123456789")
preset = Preset.from_dict(artifact.info.transforms)
x = np.stack([preset(load_image(file)) for file in sys.argv[3:]])
logits, expected = compiled(x), interpret(artifact.graph, x)
assert type(logits) is np.ndarray and logits.dtype == np.float32
assert logits.shape == expected.shape == (len(sys.argv) - 3, 10)
# A step here and there along the way; the next class is far away.
assert np.abs(logits - expected).max() <= 0.1 * np.abs(expected).max()
assert (logits.argmax(1) == expected.argmax(1)).all()
large = np.random.default_rng(0).normal(size=(2, 3, 96, 96)).astype(np.float32)
np.testing.assert_allclose(compiled(large)[1:], compiled(large[1:]), atol=1e-4)
for wrong in (np.zeros((1, 3, 64), np.float32), np.zeros((1, 3, 64, 64), np.int64), [[1.0]]):
    try:
        compiled(wrong)
    except qzoo.QzooError as error:
        assert str(error)
    else:
        raise AssertionError("it was taken")
print(compiled.runtime)
"""
    assert python(code, INT8, runtime, *DIGITS).strip() == runtime


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_nodes_are_within_one_step_of_the_interpreter(runtime: str) -> None:
    pytest.importorskip(runtime, reason=f"{runtime} is not installed here")
    code = """
import sys
import numpy as np
from qzoo.artifact.format import Artifact
from qzoo.export.onnx.compare import compare_onnx_layers
x = np.random.default_rng(0).normal(size=(2, 3, 64, 64)).astype(np.float32)
found = compare_onnx_layers(Artifact.read(sys.argv[1]), x, None, sys.argv[2])
assert len(found) > 50
print(max(layer.max_steps for layer in found))
"""
    assert int(python(code, INT8, runtime)) <= 1


def test_any_graph_runs() -> None:
    code = """
import numpy as np
import qzoo
from qzoo.artifact.interpret import interpret
from tests.helpers.graphs import any_artifact
artifact = any_artifact()
x = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)
logits = qzoo.compile(artifact, runtime="onnxruntime", threads=1)(x)
assert np.abs(logits - interpret(artifact.graph, x)).max() <= 0.08
"""
    python(code)
