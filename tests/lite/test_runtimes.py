"""Int8 models are compiled, chosen and run in processes that have no PyTorch."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import qzoo
from qzoo.libqzoo.binding import libqzoo_files
from tests.helpers.places import DIGITS, EMBEDDED
from tests.helpers.without_torch import python

pytestmark = pytest.mark.lite

MODELS = sorted(EMBEDDED.glob("*.safetensors"))
assert len(MODELS) == 2
BOTH = ("onnxruntime", "openvino")

RUN = """
import copy, pickle, sys
import numpy as np
import qzoo
from qzoo.pictures.images import load_image

path, out, *pictures = sys.argv[1:]
answers = {}
for runtime in qzoo.available_runtimes():
    model = qzoo.compile(path, runtime, threads=1)
    images = np.stack([model.transforms(load_image(picture)) for picture in pictures])
    answers[runtime] = model(images)
    names = [model.classes[n] for n in answers[runtime].argmax(1)]
    assert names == [picture.split("-")[-2] for picture in pictures], names
    assert model.runtime == runtime and model.float_layers == ()
    twins = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    assert all(np.array_equal(twin(images), answers[runtime]) for twin in twins)
np.savez(out, images=images, **answers)
assert "torch" not in sys.modules
"""


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.name.partition("_digits")[0])
def test_models_run_as_where_pytorch_is(path: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.npz"
    python(RUN, path, out, *DIGITS)
    found = dict(np.load(out))
    images = found.pop("images")
    installed = {name for name in BOTH if importlib.util.find_spec(name)}
    assert set(found) == installed | {"libqzoo" for _ in libqzoo_files()}
    for runtime, logits in found.items():
        assert np.array_equal(logits, qzoo.compile(path, runtime, threads=1)(images)), runtime


CHOOSE = """
import sys
import numpy as np
import qzoo
from qzoo.runtimes import api, measure

path, home = sys.argv[1:]
measure.BUDGET_S = 0.05
model = qzoo.compile(path, threads=1)
assert {m.name for m in model.why.measured} >= {"onnxruntime", "openvino"}, model.why
assert "needs PyTorch" in model.why.skipped["torch"]
assert qzoo.compile(path, threads=1).why.remembered
GONE, missing = ("openvino", "libqzoo"), api.Runtime.missing
api.Runtime.missing = lambda row: "is gone" if row.module in GONE else missing(row)
measure._time = None
model = qzoo.compile(path, threads=1)
assert model.runtime == "onnxruntime" and model.why.measured == ()
assert not model.why.remembered
print(model.why)
assert model(np.zeros((3, 3, 64, 64), np.float32)).shape == (3, 10)
assert "torch" not in sys.modules
"""


def test_auto_chooses_among_the_others(tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed here: nothing to choose")
    printed = python(CHOOSE, MODELS[1], tmp_path, QZOO_HOME=str(tmp_path)).splitlines()
    assert printed[0] == "onnxruntime: the only runtime to choose from, so nothing was measured"
    assert any(line.startswith("  torch ") and "pip install qzoo" in line for line in printed)


ERRORS = """
import sys
import numpy as np
import qzoo

path = sys.argv[1]
def said(call, kind):
    try:
        call()
    except kind as error:
        print(str(error).replace("\\n", "|"))
for name in ("torch", "inductor", "executorch"):
    said(lambda: qzoo.compile(path, name), qzoo.MissingDependencyError)
said(lambda: qzoo.compile(path, candidates=["torch"]), qzoo.MissingDependencyError)
said(lambda: qzoo.compile(qzoo, "onnxruntime"), qzoo.ArgumentError)
model = qzoo.compile(path, "onnxruntime", threads=1)
x = np.zeros((1, 3, 64, 64), np.float32)
for wrong in (x.tolist(), x[0], x.astype(np.float64), x + np.nan):
    said(lambda: model(wrong), qzoo.ArgumentError)
"""


def test_what_cannot_be_done_is_said_in_a_sentence() -> None:
    said = python(ERRORS, MODELS[1]).splitlines()
    assert len(said) == 9
    for name, line in zip(("torch", "inductor", "executorch", "torch"), said, strict=False):
        assert line == (
            f"The runtime {name!r} needs PyTorch, which is not installed here: pip install qzoo "
            "brings it (qzoo-lite is the part of qzoo that does without)."
        )
    assert said[4].startswith("Expected an int8 model, an artifact or the path of one, not module")
    assert "NumPy array" in said[5] and "[N, 3, H, W]" in said[6]
    assert "np.float32" in said[7] and "NaN" in said[8]


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="there is no PyTorch")
def test_nothing_imports_pytorch_where_it_is() -> None:
    code = """
import sys
import numpy as np
import qzoo
assert "torch" in qzoo.available_runtimes()
for runtime in ("onnxruntime", "openvino"):
    model = qzoo.compile(sys.argv[1], runtime, threads=1)
    model(np.zeros((1, 3, 64, 64), np.float32))
    assert model.classes and model.float_layers == ()
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code, str(MODELS[1])], check=True)
