"""Files of torch.export, AOTInductor and ExecuTorch, each run by a fresh process without qzoo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import qzoo
from qzoo.export.aoti import export_aoti
from qzoo.export.executorch import export_executorch
from qzoo.export.torch_export import export_torch
from qzoo.native.model import from_native
from qzoo.reference import build_reference
from qzoo.registry import list_models
from qzoo.transforms import ImageClassification
from tests.helpers import zoo
from tests.helpers.calling import python

PIXELS = 64
TRANSFORMS = ImageClassification(crop_size=PIXELS, resize_size=72).to_dict()

LOAD = {
    "torch": """
extra = {"qzoo.json": ""}
program = torch.export.load(path, extra_files=extra)
model, about = program.module(), json.loads(extra["qzoo.json"])
assert {"int8"} <= {str(t.dtype)[6:] for t in program.state_dict.values()}
""",
    "aoti": """
model = torch._inductor.aoti_load_package(path)
about = json.loads(model.get_metadata()["qzoo"])
""",
    "executorch": """
from executorch.runtime import Runtime
program = Runtime.get().load_program(path)
forward = program.load_method("forward")
model = lambda x: torch.cat([forward.execute([part])[0].clone() for part in x.split(1)])
about = json.loads(program.load_method("qzoo").execute([])[0])
""",
}
RUN = """
import json, sys, torch
path, data = sys.argv[1:]
%s
images = torch.load(data)
with torch.no_grad():
    logits = model(images)
assert "qzoo" not in sys.modules and "torchvision" not in sys.modules
torch.save((logits, about), data)
"""


def run_elsewhere(kind: str, path: Path, images: Tensor) -> tuple[Tensor, dict[str, Any]]:
    """Runs a file by its own consumer in a fresh process; returns logits and metadata."""
    data = path.with_suffix(".data")
    torch.save(images, data)
    python("-c", RUN % LOAD[kind], path, data)
    return torch.load(data)


def model_of(name: str) -> qzoo.Artifact:
    native = zoo.uncalibrated(name, backend="onednn", num_classes=3)
    return from_native(native, classes=["cat", "dog", "gnu"], transforms=TRANSFORMS)


def reference_logits(artifact: qzoo.Artifact, images: Tensor) -> Tensor:
    with torch.no_grad():
        return build_reference(artifact)(images)


def normalized(pixels: Tensor) -> Tensor:
    """Normalizes [N, H, W, 3] bytes as the graphs do: one gain and one offset per channel."""
    mean, std = (
        torch.tensor(TRANSFORMS[k], dtype=torch.float64).view(3, 1, 1) for k in ("mean", "std")
    )
    planes = pixels.permute(0, 3, 1, 2)
    images = planes * (1 / (255 * std)).float() + (-mean / std).float()
    torch.testing.assert_close(images, ((planes / 255 - mean) / std).float())
    return images


def check_about(about: dict[str, Any], name: str) -> None:
    assert about["architecture"] == name
    assert about["classes"] == ["cat", "dog", "gnu"]
    assert about["transforms"] == TRANSFORMS
    assert about["backend"] == "onednn"
    assert about["exported_with"]["torch"] == torch.__version__
    assert about["input"]["height"] == about["input"]["width"] == PIXELS


@pytest.mark.extended
def test_torch_export_gives_the_references_numbers(tmp_path):
    name = "shufflenet_v2_x0_5"
    artifact, path = model_of(name), tmp_path / "model.pt2"
    export_torch(artifact, path)
    images = torch.randn(3, 3, PIXELS, PIXELS)
    logits, about = run_elsewhere("torch", path, images)
    assert torch.equal(logits, reference_logits(artifact, images))
    check_about(about, name)


def test_torch_export_can_keep_the_quantize_operators(tmp_path):
    artifact, path = model_of("shufflenet_v2_x0_5"), tmp_path / "model.pt2"
    export_torch(artifact, path, keep_quantize_ops=True, batch_size=2)
    program = torch.export.load(path)
    names = {str(n.target) for n in program.graph.nodes}
    assert "quantized_decomposed.dequantize_per_channel.default" in names
    images = torch.randn(2, 3, PIXELS, PIXELS)
    with torch.no_grad():
        assert torch.equal(program.module()(images), reference_logits(artifact, images))
    with pytest.raises((RuntimeError, AssertionError)):
        program.module()(images[:1])


@pytest.mark.extended
def test_preprocessing_goes_into_the_graph(tmp_path):
    artifact, path = model_of("shufflenet_v2_x0_5"), tmp_path / "model.pt2"
    export_torch(artifact, path, preprocess=True)
    pixels = torch.randint(0, 256, (2, PIXELS, PIXELS, 3), dtype=torch.uint8)
    logits, about = run_elsewhere("torch", path, pixels)
    assert about["input"]["dtype"] == "uint8" and about["input"]["layout"] == "NHWC"
    assert torch.equal(logits, reference_logits(artifact, normalized(pixels)))


@pytest.mark.extended
def test_aoti_package_runs_alone_with_preprocessing(tmp_path):
    artifact, path = model_of("resnet18"), tmp_path / "model.pt2"
    export_aoti(artifact, path, preprocess=True)
    pixels = torch.randint(0, 256, (3, PIXELS, PIXELS, 3), dtype=torch.uint8)
    logits, about = run_elsewhere("aoti", path, pixels)
    off = (logits - reference_logits(artifact, normalized(pixels))).abs().max()
    assert off <= 4 * artifact.layers["fc"].scale
    check_about(about, "resnet18")
    assert about["float_layers"] == []


@pytest.mark.extended
def test_executorch_program_runs_alone(tmp_path):
    pytest.importorskip("executorch")
    artifact, path = model_of("resnet18"), tmp_path / "model.pte"
    export_executorch(artifact, path)
    images = torch.randn(3, 3, PIXELS, PIXELS)
    logits, about = run_elsewhere("executorch", path, images)
    off = (logits - reference_logits(artifact, images)).abs().max()
    assert off <= 4 * artifact.layers["fc"].scale
    check_about(about, "resnet18")
    assert about["input"]["batch_size"] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"input_size": (64, 0)}, "input_size"),
        ({"input_size": 40}, "at least 75x75"),
        ({"preprocess": True}, "no transforms"),
    ],
)
@pytest.mark.parametrize(
    ("export", "suffix"),
    [(export_torch, ".pt2"), (export_aoti, ".pt2"), (export_executorch, ".pte")],
)
def test_impossible_arguments_are_refused(export, suffix, options, message, tmp_path):
    native = zoo.uncalibrated("inception_v3")
    with pytest.raises(qzoo.ArgumentError, match=message):
        export(native, tmp_path / f"x{suffix}", **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("export", [export_torch, export_aoti, export_executorch])
def test_paths_are_checked_first(export, tmp_path):
    native = zoo.uncalibrated("resnet18")
    with pytest.raises(qzoo.ArgumentError, match="must end in"):
        export(native, tmp_path / "model.bin")
    suffix = ".pte" if export is export_executorch else ".pt2"
    with pytest.raises(qzoo.ArgumentError, match="does not exist"):
        export(native, tmp_path / "missing" / f"model{suffix}")


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("name", list_models())
def test_torch_export_of_every_builder(name, tmp_path):
    size = 75 if name == "inception_v3" else PIXELS
    artifact, path = from_native(zoo.uncalibrated(name)), tmp_path / "model.pt2"
    export_torch(artifact, path, input_size=size)
    images = torch.randn(2, 3, size, size)
    logits, _ = run_elsewhere("torch", path, images)
    assert torch.equal(logits, reference_logits(artifact, images))
