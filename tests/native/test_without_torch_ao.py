"""qzoo works on a PyTorch that has no `torch.ao` any more, in a process of its own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.helpers.calling import python
from tests.helpers.places import ROOT

BUILDERS = ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5"]

END_TO_END = """
import sys, warnings
import tests.helpers.without_torch_ao
import torch, qzoo
from PIL import Image
from qzoo.quantize import ptq, qat
from qzoo.transforms import ImageClassification
folder, builder = sys.argv[1:]
torch.manual_seed(0)
torch.set_num_threads(1)
model = getattr(qzoo, builder)(num_classes=4).eval()
pictures = torch.rand(8, 3, 48, 48)
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    int8 = ptq(model, pictures, images=8, recipe="fast", progress=False)
assert sum("torch.ao" in str(w.message) for w in seen) == 1, [str(w.message) for w in seen]
warnings.simplefilter("ignore", qzoo.BackendWarning)
assert "torch" not in qzoo.available_runtimes()
expected = model(pictures)
assert (int8(pictures) - expected).abs().max() < 0.15 * expected.abs().max()

path = folder + "/model.safetensors"
preset = ImageClassification(crop_size=48, resize_size=48).to_dict()
qzoo.save(int8, path, classes=["a", "b", "c", "d"], transforms=preset)
again = qzoo.load(path)
assert torch.equal(again(pictures), int8(pictures))
assert again.classes == ["a", "b", "c", "d"] and again.transforms.to_dict() == preset
assert again.artifact.tensors.keys() == int8.artifact.tensors.keys()
assert all(not t.is_quantized for t in again.state_dict().values())
compiled = qzoo.compile(path, runtime="onnxruntime", threads=1)
assert (compiled(pictures) - int8(pictures)).abs().max() < 1e-5
image = folder + "/one.png"
Image.new("RGB", (60, 60), (200, 30, 40)).save(image)
from qzoo.cli import main
sys.argv = ["qzoo", "classify", image, "--model", path, "--topk", "2"]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code

training = qat.prepare(getattr(qzoo, builder)(num_classes=4), data=pictures, images=8,
                       progress=False)
optimizer = torch.optim.SGD(training.parameters(), lr=0.01)
training(pictures).square().mean().backward()
optimizer.step()
assert qat.convert(training.eval())(pictures).shape == (8, 4)
print("done")
"""

READY_MADE = """
import warnings
import tests.helpers.without_torch_ao
import copy, torch, qzoo
from qzoo.analysis import analyze
from qzoo.export.onnx import export_onnx
from qzoo.quantize import ptq
warnings.simplefilter("ignore", qzoo.BackendWarning)
weights = qzoo.ShuffleNet_V2_X0_5_QuantizedWeights.DIGITS_X86_V1
model = qzoo.shufflenet_v2_x0_5(weights=weights, quantize=True)
x = torch.rand(2, 3, 64, 64)
assert model(x).shape == (2, 10)
artifact = weights.artifact()
assert model.artifact.digest() == artifact.digest()
twin = copy.deepcopy(model)
twin.load_state_dict(model.state_dict())
assert torch.equal(twin(x), model(x))
export_onnx(model, "model.onnx")
for call in (
    lambda: qzoo.compile(model, runtime="torch"),
    lambda: qzoo.BACKENDS["x86"].qconfig(),
):
    try:
        call()
    except qzoo.MissingDependencyError as error:
        assert "torch.ao" in str(error), error
    else:
        raise AssertionError("nothing was raised")
float_model = qzoo.mobilenet_v2(num_classes=10).eval()
int8 = ptq(float_model, x, images=2, recipe="fast", progress=False)
analyze(float_model, int8, x, progress=False)
print("done")
"""


def run(code: str, *arguments: str, folder: Path) -> None:
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    assert python("-c", code, *arguments, cwd=folder, PYTHONPATH=path).stdout.endswith("done\n")


@pytest.mark.parametrize(
    "builder",
    [b if b == "resnet18" else pytest.param(b, marks=pytest.mark.extended) for b in BUILDERS],
)
def test_models_are_quantized_saved_run_classified_and_trained(
    builder: str, tmp_path: Path
) -> None:
    run(END_TO_END, str(tmp_path), builder, folder=tmp_path)


@pytest.mark.extended
def test_a_model_of_the_zoo_runs_is_copied_exported_and_analyzed(tmp_path: Path) -> None:
    run(READY_MADE, folder=tmp_path)
