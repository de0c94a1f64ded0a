"""The process's default dtype and device change no int8 result: qzoo names its own everywhere."""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import qzoo
from qzoo.analysis import compare
from qzoo.datasets.evaluate import evaluate
from qzoo.export import to_onnx
from qzoo.export.torch_export import export_torch
from qzoo.importers.checkpoint import load_float, save_float
from qzoo.importers.pth import read_checkpoint
from qzoo.native.model import from_native, to_native
from qzoo.quantize import ptq, qat, quantize_dynamic, quantize_weight_only
from qzoo.reference import build_reference
from tests.helpers import zoo
from tests.helpers.places import PACKAGE
from tests.helpers.zoo import quiet

NAME = "shufflenet_v2_x0_5"


@contextlib.contextmanager
def default(value: torch.dtype | str) -> Iterator[None]:
    """Has the process use another default dtype or device inside a block."""
    if value == "meta context":
        with torch.device("meta"):
            yield
        return
    if isinstance(value, torch.dtype):
        torch.set_default_dtype(value)
    else:
        torch.set_default_device(value)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)


class Things:
    """What the jobs work on, made under the usual defaults."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.images = zoo.small_images(NAME, 8)
        self.labels = torch.arange(8) % 5
        self.data = [(x, int(y)) for x, y in zip(self.images, self.labels, strict=True)]
        self.model: Any = zoo.float_model(NAME, num_classes=5)
        self.artifact = from_native(ptq(self.model, self.images, recipe="fast", progress=False))
        self.int8: Any = to_native(self.artifact)
        self.file, self.float_file = folder / "int8.safetensors", folder / "float.safetensors"
        qzoo.save(self.int8, self.file)
        save_float(self.model, self.float_file)
        pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        self.picture = Image.fromarray(pixels)
        self.matrix = nn.Sequential(nn.Linear(96, 64), nn.ReLU(), nn.Linear(64, 32)).eval()


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory) -> Things:
    return Things(tmp_path_factory.mktemp("defaults"))


def trained(t: Things, **options: Any) -> bytes:
    """Trains for some steps and returns the int8 artifact."""
    model = qat.prepare(t.model, progress=False, **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(t.images), t.labels).backward()
        optimizer.step()
    with quiet():  # PT2E says where int8 rounds otherwise
        return qat.to_artifact(model).to_bytes()


def quantized(t: Things, **options: Any) -> bytes:
    return from_native(ptq(t.model, t.images, progress=False, **options)).to_bytes()


def compiled(t: Things, runtime: str) -> Tensor:
    return qzoo.compile(t.file, runtime, threads=1, input_size=32)(t.images)


def exported(t: Things) -> str:
    path = t.folder / "model.pt2"
    export_torch(t.artifact, path, input_size=32)
    return str(path)


def loaded(engine: str, t: Things) -> Tensor:
    return qzoo.load(t.file, backend=engine)(t.images)


def runs(path: str, t: Things) -> Tensor:
    return torch.export.load(path).module()(t.images)


JOBS: dict[str, Callable[[Things], Any]] = {
    **{f"load for {engine}": partial(loaded, engine) for engine in zoo.ENGINES},
    "build": lambda t: zoo.uncalibrated("mobilenet_v3_small")(t.images),
    "torch": lambda t: compiled(t, "torch"),
    "onnxruntime": lambda t: compiled(t, "onnxruntime"),
    "openvino": lambda t: compiled(t, "openvino"),
    "reference": lambda t: build_reference(t.artifact)(t.images),
    "straight through": lambda t: build_reference(t.artifact, ste=True)(t.images).detach(),
    "ptq": quantized,
    "ptq best": lambda t: quantized(t, recipe="best"),
    "ptq torchvision": lambda t: quantized(t, recipe="torchvision", backend="x86"),
    "ptq fx": lambda t: quantized(t, flow="fx", backend="x86"),
    "qat": trained,
    "qat keep": lambda t: trained(t, batch_norm="keep", backend="qnnpack"),
    "qat learned": lambda t: trained(t, learn_ranges=True, data=t.images),
    "qat from ptq": lambda t: trained(t, from_ptq=t.artifact),
    "onnx": lambda t: to_onnx(t.artifact, input_size=32).SerializeToString(),
    "torch.export": exported,
    "analysis": lambda t: str(compare(t.model, t.artifact, t.images, progress=False)),
    "evaluate": lambda t: evaluate(t.int8, t.data, topk=(1, 2), progress=False).correct,
    "checkpoint": lambda t: load_float(t.float_file).fc.weight.float(),
    "dynamic": lambda t: quantize_dynamic(t.matrix)[0](t.images.reshape(-1, 96)),
    "weights 8": lambda t: quantize_weight_only(t.matrix, progress=False)[0](t.images.view(-1, 96)),
    "transforms": lambda t: qzoo.transforms.ImageClassification(crop_size=32)(t.picture),
    "ptq pt2e": lambda t: quantized(t, flow="pt2e", backend="x86"),
    "qat pt2e": lambda t: trained(t, flow="pt2e", data=t.images),
    "inductor": lambda t: compiled(t, "inductor"),
    "executorch": lambda t: compiled(t, "executorch"),
}
#: What takes many seconds.
LONG = (
    *("ptq fx", "ptq torchvision", "ptq pt2e", "qat pt2e", "torch.export"),
    *("openvino", "inductor", "executorch"),
)
DEFAULTS = (torch.bfloat16, torch.float16, torch.float64, "meta", "meta context")


@pytest.fixture(scope="module")
def usual() -> dict[str, Any]:
    """What jobs gave under the usual defaults."""
    return {}


def cases() -> Iterator[Any]:
    for number, value in enumerate(DEFAULTS):
        for job in JOBS:
            # Every default is tried by a job in three, and every job by one or two defaults.
            often = (number + list(JOBS).index(job)) % 3 == 0
            marks = [] if often and job not in LONG else [pytest.mark.extended]
            yield pytest.param(value, job, marks=marks, id=f"{job}-{value}")


@pytest.mark.filterwarnings("ignore::qzoo.errors.BackendWarning")
@pytest.mark.parametrize(("value", "job"), [*cases()])
def test_defaults_change_no_result(
    value: torch.dtype | str, job: str, things: Things, usual: dict[str, Any]
) -> None:
    if job in ("inductor", "executorch", "onnxruntime", "openvino"):
        if job not in qzoo.available_runtimes():
            pytest.skip(f"{job} is not installed")
    if job not in usual:
        usual[job] = JOBS[job](things)
    with default(value):
        given = JOBS[job](things)
    if job == "torch.export":
        given, usual[job] = runs(given, things), runs(exported(things), things)
        assert torch.equal(given, usual.pop(job))
    elif isinstance(given, Tensor):
        assert given.dtype == usual[job].dtype and torch.equal(given, usual[job])
    else:
        assert given == usual[job]


@pytest.mark.parametrize("value", [torch.bfloat16, torch.float64])
def test_float_models_follow_the_default_and_become_the_same_int8_model(
    value: torch.dtype, things: Things
) -> None:
    with default(value):
        model: Any = qzoo.resnet18(num_classes=3).eval()
        assert model.conv1.weight.dtype == value
        int8 = ptq(model, things.images, recipe="fast", progress=False)
    plain = model.float().eval()
    again = ptq(plain, things.images, recipe="fast", progress=False)
    assert from_native(int8).to_bytes() == from_native(again).to_bytes()


def test_models_and_images_without_values_are_refused(things: Things) -> None:
    with torch.device("meta"):
        model, images = qzoo.resnet18(), torch.zeros(2, 3, 32, 32)
    for call in (ptq, qat.prepare):
        with pytest.raises(qzoo.ArgumentError, match='on the device "meta"'):
            call(model, data=things.images)
    with pytest.raises(qzoo.ArgumentError, match='on the device "meta"'):
        ptq(things.model, images)


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime", "openvino"])
def test_inputs_of_another_kind_are_refused_by_every_runtime(runtime: str, things: Things) -> None:
    if runtime not in qzoo.available_runtimes():
        pytest.skip(f"{runtime} is not installed")
    model = qzoo.compile(things.artifact, runtime, threads=1, input_size=32)
    for dtype in (torch.bfloat16, torch.float16, torch.float64, torch.uint8, torch.complex64):
        with default(torch.bfloat16), pytest.raises(qzoo.ArgumentError, match="float32"):
            model(things.images.to(dtype))
    with pytest.raises(qzoo.ArgumentError, match="on meta"):
        model(things.images.to("meta"))


#: Functions that make tensors of the default dtype or on the default device.
MAKING = (
    *("arange", "as_tensor", "asarray", "empty", "empty_strided", "eye", "full", "linspace"),
    *("logspace", "ones", "rand", "randint", "randn", "randperm", "scalar_tensor", "tensor"),
    "zeros",
)


def test_every_tensor_names_its_dtype_and_device() -> None:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            if node.func.attr in MAKING and ast.unparse(node.func.value) == "torch":
                # What looks at values of others may want to know their dtype.
                wanted = {"device"} if node.func.attr == "as_tensor" else {"dtype", "device"}
                missing = wanted - {keyword.arg for keyword in node.keywords}
                if missing:
                    found.append(f"{path.relative_to(PACKAGE)}:{node.lineno} {sorted(missing)}")
    assert not found


def test_checkpoints_are_read_onto_the_cpu(tmp_path: Path) -> None:
    """The reader of `torch.save` files makes its tensors itself."""
    state = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1, 2], dtype=torch.int8)}
    path = tmp_path / "state.pth"
    torch.save(state, path)
    with default("meta"):
        read: Any = read_checkpoint(path).entries
    assert all(torch.equal(read[name], value) for name, value in state.items())
