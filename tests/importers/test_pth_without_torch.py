"""Checkpoints become the same artifacts without PyTorch, and without importing it."""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

import qzoo
from qzoo.artifact.format import ModelInfo
from qzoo.importers.pth import read_checkpoint
from qzoo.importers.published import from_checkpoint
from tests.helpers import published as ph
from tests.helpers import reading, zoo
from tests.helpers.artifact_parts import old_parts, put_together
from tests.helpers.places import ROOT
from tests.helpers.without_torch import python

MAIN = "import runpy; runpy.run_module('tests.helpers.reading', run_name='__main__')"


def saved(state: Any, path: Path, zipped: bool = True) -> str:
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    return str(path)


def test_checkpoints_without_torch(tmp_path: Path) -> None:
    """Int8 and QAT, per tensor and per channel, other classes, auxiliary classifiers."""
    trained = functools.partial(ph.qat_model, steps=1)
    made: list[tuple[str, Any, str, dict[str, int]]] = [
        ("shufflenet_v2_x0_5", ph.int8_model, "fbgemm", {}),
        ("mobilenet_v2", ph.int8_model, "qnnpack", {"num_classes": 7}),
        ("mobilenet_v3_large", trained, "qnnpack", {}),
        ("shufflenet_v2_x0_5", trained, "fbgemm", {"num_classes": 5}),
        ("googlenet", ph.int8_model, "fbgemm", {}),
    ]
    wanted: dict[str, Any] = {}
    for number, (name, make, backend, classes) in enumerate(made):
        state = make(name, backend, **classes).state_dict()
        path = saved(state, tmp_path / f"{number}.pth", zipped=number % 2 == 0)
        known = {**classes, **({"transform_input": True} if name in ph.TRANSFORMED else {})}
        artifact = from_checkpoint(read_checkpoint(path), ModelInfo(name, known))
        assert artifact.info.backend == backend
        wanted[path] = reading.told(artifact)
    floats = saved({"model": zoo.float_model("resnet18").state_dict()}, tmp_path / "float.pth")
    wanted[floats] = ["float", "resnet18", {}]
    with zoo.quiet():
        wide: Any = qzoo.get_model("mobilenet_v2", quantize=True, width_mult=0.35)
    unusual = saved(wide.state_dict(), tmp_path / "wide.pth")
    found = json.loads(python(MAIN, *wanted, unusual))
    said = found.pop(unusual)
    assert found == wanted
    assert said.startswith("MissingDependencyError: Telling the widths of a mobilenet_v2")
    assert "needs PyTorch, which is not installed" in said


def test_what_is_wrong_is_said_without_torch(tmp_path: Path) -> None:
    state = {key: value.half() for key, value in zoo.float_model("resnet18").state_dict().items()}
    gray = {**state, "conv1.weight": torch.ones(64, 1, 7, 7)}
    files = {
        "gray": (gray, "ArtifactError: The first convolution 'conv1' .* 1 channel"),
        "other": (
            {"a.weight": torch.ones(3, 3, 1, 1)},
            "ArgumentError: .* fit no model",
        ),
        "wide": (
            {**state, "conv1.weight": torch.ones(32, 3, 7, 7)},
            "MissingDependencyError: Telling the widths of a resnet18 .* needs PyTorch",
        ),
        "linear": ({"fc.weight": torch.ones(3, 3)}, "ArgumentError: .* holds no convolutions"),
    }
    paths = {saved(content, tmp_path / name): words for name, (content, words) in files.items()}
    (tmp_path / "damaged").write_bytes((tmp_path / "gray").read_bytes()[:-9])
    paths[str(tmp_path / "damaged")] = "ArtifactError: .* is cut short"
    found = json.loads(python(MAIN, *paths))
    for path, words in paths.items():
        assert re.match(words, found[path]) and "\n" not in found[path]


def test_calls_that_need_torch_say_so(tmp_path: Path) -> None:
    path = saved({"conv1.weight": torch.ones(64, 3, 7, 7)}, tmp_path / "x.pth")
    code = """
import sys
from qzoo import ModelInfo
from qzoo.errors import QzooError
from qzoo.importers.pth import read_arrays, read_checkpoint
from qzoo.importers.published import from_checkpoint

def said(call, *words):
    try:
        call(*words)
    except QzooError as error:
        print(type(error).__name__, error)

said(read_checkpoint, sys.argv[1])
for kwargs in ({"width_per_group": 96}, {"surprise": 1}, {"num_classes": 0}):
    said(from_checkpoint, read_arrays(sys.argv[1]), ModelInfo("resnet50", kwargs))
"""
    tensors, width, surprise, classes = python(code, path).splitlines()
    assert tensors.startswith("MissingDependencyError Reading a checkpoint as tensors needs")
    assert width.startswith("MissingDependencyError Building resnet50 with width_per")
    assert surprise.startswith("ArgumentError Cannot build resnet50 with surprise=1")
    assert classes.startswith("ArgumentError Cannot build resnet50 with num_classes=0")


def test_old_artifacts_of_unusual_keywords_need_torch(tmp_path: Path) -> None:
    with zoo.quiet():
        wide: Any = qzoo.get_model("mobilenet_v2", quantize=True, width_mult=0.35)
    (tmp_path / "old").write_bytes(put_together(old_parts(qzoo.as_artifact(wide))))
    code = """
import sys, qzoo
artifact = qzoo.Artifact.read(sys.argv[1])
try:
    artifact.graph
except qzoo.errors.MissingDependencyError as error:
    print(error)
"""
    said = python(code, tmp_path / "old")
    assert said.startswith("Building mobilenet_v2 with width_mult=0.35 needs PyTorch, which is not")


def test_torch_is_not_imported_where_it_is_installed(tmp_path: Path) -> None:
    model = ph.int8_model("shufflenet_v2_x0_5", num_classes=3)
    path = saved(model.state_dict(), tmp_path / "x.pth")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.helpers.reading", path]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == {path: json.loads(json.dumps(reading.read(path)))}
