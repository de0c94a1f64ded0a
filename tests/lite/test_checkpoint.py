"""A checkpoint as torch.save writes int8 models, written and read without PyTorch."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest

from qzoo.artifact.format import Artifact
from tests.helpers.places import DIGITS, INT8
from tests.helpers.without_torch import python, qzoo

pytestmark = pytest.mark.lite

#: Writes the state dict of an artifact's eager module. Names such as torch.qint8 are pickled by
#: name; modules of these names, made here, have them.
WRITE = """
import functools, pickle, sys, types, zipfile
import numpy as np
from collections import OrderedDict
from qzoo.artifact.format import Artifact

held = Artifact.read(sys.argv[1])
torch, utils = (sys.modules.setdefault(n, types.ModuleType(n)) for n in ("torch", "torch._utils"))
@functools.cache
def make(module, name):
    function = lambda *arguments: None
    function.__module__, function.__qualname__ = module.__name__, name
    setattr(module, name, function)
    return function
rebuild, rebuild_quantized = (make(utils, n) for n in ("_rebuild_tensor_v2", "_rebuild_qtensor"))
STORAGES = {"int8": "QInt8Storage", "float32": "FloatStorage", "float64": "DoubleStorage",
            "int64": "LongStorage"}
stored = []
class Storage:
    def __init__(self, array):
        kind = make(torch, STORAGES[str(array.dtype)])
        self.id = ("storage", kind, str(len(stored)), "cpu", array.size)
        stored.append(np.ascontiguousarray(array).tobytes())
class Call:
    def __init__(self, function, *arguments): self.parts = function, arguments
    def __reduce__(self): return self.parts
def place(array):
    strides = tuple(n // array.itemsize for n in np.asarray(array, order="C").strides)
    return Storage(array), 0, array.shape, strides
def tensor(value, dtype):
    return Call(rebuild, *place(np.asarray(value, dtype)), False, OrderedDict())
def quantized(array, scales):
    zeros = tensor(np.zeros(len(scales)), "int64")
    how = make(torch, "per_channel_affine"), tensor(scales, "float64"), zeros, 0
    return Call(rebuild_quantized, *place(array), how, False, OrderedDict())

state = OrderedDict()
for name, layer in held.layers.items():
    if layer.op == "dequantize":
        continue
    if layer.op in ("conv2d", "linear"):
        weight = quantized(held.arrays[f"{name}.weight"], held.arrays[f"{name}.weight_scale"])
        bias = tensor(held.arrays[f"{name}.bias"], "float32")
        if layer.op == "conv2d":
            state |= {f"{name}.weight": weight, f"{name}.bias": bias}
        else:
            state[f"{name}._packed_params.dtype"] = make(torch, "qint8")
            state[f"{name}._packed_params._packed_params"] = (weight, bias)
    shape = (1,) if layer.op == "quantize" else ()
    state[f"{name}.scale"] = tensor(np.full(shape, layer.scale), "float32")
    state[f"{name}.zero_point"] = tensor(np.full(shape, layer.zero_point), "int64")

class Pickler(pickle._Pickler):
    def persistent_id(self, value):
        return value.id if isinstance(value, Storage) else None
with zipfile.ZipFile(sys.argv[2], "w") as archive:
    with archive.open("archive/data.pkl", "w") as file:
        Pickler(file, 2).dump(state)
    archive.writestr("archive/version", "3")
    for number, content in enumerate(stored):
        archive.writestr(f"archive/data/{number}", content)
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "digits.pth"
    python(WRITE, INT8, path)
    return path


def test_it_becomes_the_artifact(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "digits.safetensors"
    qzoo("convert", checkpoint, out)
    expected, found = Artifact.read(INT8), Artifact.read(out)
    assert found.info.architecture == expected.info.architecture
    assert found.arrays.keys() == expected.arrays.keys()
    for name, array in expected.arrays.items():
        np.testing.assert_array_equal(found.arrays[name], array, strict=True)


def test_it_classifies(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "digits.safetensors"
    like = ("--like", "ShuffleNet_V2_X0_5_QuantizedWeights.DIGITS_X86_V1")
    qzoo("convert", checkpoint, out, *like)
    options = ("--runtime", "onnxruntime", "-k", 1, "--json")
    for row in json.loads(qzoo("classify", *DIGITS, "--model", out, *options)):
        assert str(row["predictions"][0]["index"]) == Path(row["file"]).name.split("-")[1]


def test_it_is_what_torch_loads(checkpoint: Path) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed here")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of quantized tensors, once in a process
        state = torch.load(checkpoint, weights_only=True)
    arrays = Artifact.read(INT8).arrays
    np.testing.assert_array_equal(state["conv1.0.weight"].int_repr(), arrays["conv1.0.weight"])
