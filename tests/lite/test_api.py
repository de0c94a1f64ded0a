"""The Python interface without PyTorch: arrays in, arrays out."""

from __future__ import annotations

import pytest

from tests.helpers.places import DIGITS, INT8
from tests.helpers.without_torch import python

pytestmark = pytest.mark.lite


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "auto"])
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
    found = python(code, INT8, runtime, *DIGITS).strip()
    assert found == runtime or runtime == "auto"


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
