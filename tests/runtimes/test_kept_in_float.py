"""Layers that an artifact keeps in float: all realisations agree, and none rounds their weights."""

from __future__ import annotations

import collections
import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import qzoo
from qzoo._torch.threads import torch_threads
from qzoo.export.aoti import compile_package
from qzoo.export.onnx import to_onnx
from qzoo.export.onnx.compare import compare_onnx_layers
from qzoo.export.plan import make_plan
from qzoo.export.torch_export import export_torch
from qzoo.native.model import from_native, to_native
from qzoo.reference import build_reference, compare_layers, native_outputs
from qzoo.runtimes.base import CompiledModel
from qzoo.runtimes.choice import choice_key
from qzoo.runtimes.torch_native import TorchModel
from qzoo.transforms import ImageClassification
from tests.helpers.inductor import kernels
from tests.helpers.mixed import KEPT, Mixed, mixed
from tests.helpers.zoo import quiet

case = functools.cache(mixed)
#: Single steps that realisations round apart grow from layer to layer.
MAX_STEPS = 3


def logits(model: Any, x: Tensor) -> Tensor:
    with quiet(), torch.no_grad():
        return model(x)


def steps_apart(m: Mixed, given: Tensor, expected: Tensor) -> float:
    head = next(x for x in reversed(m.artifact.layers.values()) if x.op == "linear")
    return float((given - expected).abs().max() / head.scale)


def ranged(m: Mixed) -> set[str]:
    return {n for n, x in m.artifact.layers.items() if x.op in ("conv2d", "linear")}


@pytest.mark.parametrize("name", KEPT)
def test_the_reference_agrees_on_every_layer(name: str) -> None:
    m = case(name)
    native, reference = to_native(m.artifact), build_reference(m.artifact)
    layers = compare_layers(native, reference, m.images)
    assert [d for d in layers if d.max_steps > 1] == []
    assert ranged(m) <= {d.name for d in layers}
    assert {d.name: d.op for d in layers}[m.kept[-1]] == "linear"
    signed = build_reference(m.artifact, activations=torch.int8, explicit=True)
    assert [d for d in compare_layers(native, signed, m.images) if d.max_steps > 1] == []
    again = build_reference(native)
    assert again.artifact.to_bytes() == m.artifact.to_bytes()
    state = again.state_dict()
    assert state.keys() == m.artifact.tensors.keys()
    assert {n for n in ranged(m) if state[f"{n}.weight"].dtype == torch.float32} == set(m.kept)


@pytest.mark.parametrize("name", KEPT)
def test_gradients_pass_straight_through(name: str) -> None:
    m = case(name)
    x = m.images.clone().requires_grad_()
    given = build_reference(m.artifact, ste=True)(x)
    assert torch.equal(given.detach(), logits(build_reference(m.artifact), m.images))
    given.square().sum().backward()
    assert x.grad is not None and bool(x.grad.isfinite().all()) and bool((x.grad != 0).any())


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("name", KEPT)
def test_onnx_agrees_on_every_layer(name: str, runtime: str) -> None:
    pytest.importorskip(runtime)
    m = case(name)
    native, reference = to_native(m.artifact), build_reference(m.artifact)
    expected = native_outputs(native, reference, m.images)
    found = {d.name: d for d in compare_onnx_layers(reference, m.images, expected, runtime)}
    assert [d for d in found.values() if d.max_steps > 1] == []
    assert ranged(m) <= set(found)
    # Weights rounded to int8 would move 1 to 20 % of the results by one step.
    assert [n for n in m.kept if found[n].differing > 5e-3] == []


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime", "openvino"])
@pytest.mark.parametrize("name", KEPT)
def test_runtimes_answer_alike_and_blame_themselves_for_nothing(name: str, runtime: str) -> None:
    m = case(name)
    expected = logits(build_reference(m.artifact), m.images)
    if runtime == "torch":  # choosing an engine has a test of its own
        model: CompiledModel = TorchModel(m.artifact, 1, None, 32, engine="x86")
    else:
        pytest.importorskip(runtime)
        model = qzoo.compile(m.artifact, runtime, threads=1, input_size=32)
    assert steps_apart(m, model(m.images), expected) < MAX_STEPS + 0.5
    assert model.float_layers == ()


@pytest.mark.parametrize("name", KEPT)
def test_onnxruntime_multiplies_them_in_float_and_the_others_not(name: str, tmp_path: Path) -> None:
    ort = pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    m = case(name)
    proto = to_onnx(m.artifact, input_size=32)
    onnx.checker.check_model(proto, full_check=True)
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    assert json.loads(metadata["kept_in_float"]) == m.artifact.float_layers
    options = ort.SessionOptions()  # as any user of the file has them
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(proto.SerializeToString(), options)
    nodes = onnx.load(options.optimized_model_filepath).graph.node
    kinds = collections.Counter(node.op_type for node in nodes)
    linear = sum(m.artifact.layers[n].op == "linear" for n in m.kept)
    assert kinds["Gemm"] == linear
    assert kinds["Conv"] + kinds["FusedConv"] == len(m.kept) - linear
    assert kinds["QLinearConv"] + kinds["QGemm"] == len(ranged(m)) - len(m.kept)


@pytest.mark.parametrize("name", KEPT)
def test_openvino_multiplies_them_in_float_and_the_others_not(name: str) -> None:
    pytest.importorskip("openvino")
    m = case(name)
    model: Any = qzoo.compile(m.artifact, "openvino", threads=1, input_size=32)
    form = next(iter(model._forms.values()))
    precision = {}
    for op in form.compiled.get_runtime_model().get_ordered_ops():
        facts = {k: getattr(v, "value", v) for k, v in op.get_rt_info().items()}
        if str(facts["layerType"]) not in ("Convolution", "FullyConnected"):
            continue
        for name_of_part in str(facts["originalLayersNames"]).split(","):
            layer = name_of_part.partition("/")[0]
            if layer in ranged(m):
                precision[layer] = str(facts["primitiveType"]).lower().rpartition("_")[2]
    assert {n for n, kind in precision.items() if kind != "i8"} == set(m.kept)
    assert {precision[n] for n in m.kept} == {"f32"}
    assert precision.keys() == ranged(m)


def test_preprocessing_in_front_of_a_first_layer_in_float() -> None:
    """resnet18's first convolution reads the rounded picture itself."""
    ort = pytest.importorskip("onnxruntime")
    m = case("resnet18")
    transforms = ImageClassification(crop_size=32, resize_size=32).to_dict()
    native = to_native(m.artifact)
    artifact = from_native(native, transforms=transforms)
    pixels = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    mean, std = (torch.tensor(transforms[k]).view(3, 1, 1) for k in ("mean", "std"))
    expected = logits(native, (pixels.permute(0, 3, 1, 2) / 255 - mean) / std)
    proto = to_onnx(artifact, preprocess=True)
    session = ort.InferenceSession(proto.SerializeToString())
    (given,) = session.run(None, {"input": pixels.numpy()})
    assert steps_apart(m, torch.from_numpy(given), expected) < 2 * MAX_STEPS


@pytest.mark.extended
def test_torch_export_gives_the_references_numbers(tmp_path: Path) -> None:
    m = case("shufflenet_v2_x0_5")
    export_torch(m.artifact, tmp_path / "model.pt2", input_size=32)
    extra = {"qzoo.json": ""}
    program = torch.export.load(tmp_path / "model.pt2", extra_files=extra)
    expected = logits(build_reference(m.artifact), m.images)
    assert torch.equal(logits(program.module(), m.images), expected)
    assert json.loads(extra["qzoo.json"])["kept_in_float"] == m.artifact.float_layers


@pytest.mark.slow
@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN")
@pytest.mark.parametrize("name", KEPT)
def test_inductor_multiplies_them_in_float_and_the_others_not(name: str, tmp_path: Path) -> None:
    m = case(name)
    package = tmp_path / "model.pt2"
    assert compile_package(make_plan(m.artifact, None, 32), package) == ()
    ops = collections.Counter(m.artifact.layers[n].op for n in ranged(m) - set(m.kept))
    called = kernels(package)
    assert called["_qconv_pointwise_tensor"] == ops["conv2d"]
    assert called["_qlinear_pointwise_tensor"] == ops["linear"]
    assert sum(called.values()) == len(ranged(m))
    model = torch._inductor.aoti_load_package(str(package))
    about = json.loads(model.get_metadata()["qzoo"])
    assert (about["float_layers"], about["kept_in_float"]) == ([], m.artifact.float_layers)
    with torch_threads(1):
        given = logits(model, m.images)
    assert steps_apart(m, given, logits(build_reference(m.artifact), m.images)) < MAX_STEPS + 0.5


@pytest.mark.slow
@pytest.mark.parametrize("name", KEPT)
def test_executorch_delegates_them_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("executorch")
    from qzoo.export import executorch as export
    from qzoo.runtimes.executorch import ExecutorchModel

    seen = []
    check = export._check_delegated

    def note(lowered: Any) -> None:
        seen.append([n.name for n in lowered.graph.nodes if n.op == "call_function"])
        check(lowered)

    monkeypatch.setattr(export, "_check_delegated", note)
    m = case(name)
    model = ExecutorchModel(m.artifact, threads=1, input_size=32)
    assert seen == [["executorch_call_delegate", "getitem"]]
    expected = logits(build_reference(m.artifact), m.images)
    assert steps_apart(m, model(m.images), expected) < MAX_STEPS + 0.5
    assert model.float_layers == ()


def test_what_a_choice_of_runtimes_depends_on() -> None:
    """The machine's memory of what is fastest must tell the two models apart."""
    m = case("resnet18")
    rest: tuple[Any, ...] = (["torch"], 1, (32, 32), 1)
    assert choice_key("x", m.artifact, *rest) != choice_key("x", m.int8, *rest)
