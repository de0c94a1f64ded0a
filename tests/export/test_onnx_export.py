"""ONNX files: their form, their answers, and that the runtimes compute every layer in int8."""

from __future__ import annotations

import collections
import dataclasses
import functools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import qzoo
from qzoo.artifact.compare import integers
from qzoo.export.onnx import export_onnx, to_onnx
from qzoo.export.onnx.compare import compare_onnx_layers
from qzoo.native.model import from_native, to_native
from qzoo.transforms import ImageClassification
from tests.helpers import zoo

onnx = pytest.importorskip("onnx")

SMALL = "shufflenet_v2_x0_5"
RUNTIMES = ("onnxruntime", "openvino")


@pytest.fixture(scope="module")
def shuffle() -> qzoo.Artifact:
    transforms = ImageClassification(crop_size=64, resize_size=64).to_dict()
    native = zoo.uncalibrated(SMALL, num_classes=3, backend="onednn")
    return from_native(native, transforms=transforms, classes=["cat", "dog", "emu"])


@functools.cache
def case(name: str) -> tuple[qzoo.Artifact, Tensor]:
    x = zoo.small_images(name)
    kwargs = {"aux_logits": False} if name in zoo.WITH_AUX else {}
    model = zoo.float_model(name, slim=True, **kwargs)
    return from_native(zoo.eager_ptq(model, x, "onednn")), x


def run_session(proto: Any, feeds: dict[str, np.ndarray], outputs: list[str]) -> list[Tensor]:
    ort = pytest.importorskip("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(proto.SerializeToString(), options)
    return [torch.from_numpy(array) for array in session.run(outputs, feeds)]


def run_onnxruntime(proto: Any, x: Tensor) -> Tensor:
    return run_session(proto, {"input": x.numpy()}, ["logits"])[0]


def compile_openvino(proto: Any) -> Any:
    ov = pytest.importorskip("openvino")
    core = ov.Core()
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    return core.compile_model(core.read_model(proto.SerializeToString()), "CPU", options)


def run_openvino(proto: Any, x: Tensor) -> Tensor:
    return torch.from_numpy(np.array(compile_openvino(proto)(x.numpy())[0]))


RUN = {"onnxruntime": run_onnxruntime, "openvino": run_openvino}


def weighted(artifact: qzoo.Artifact) -> list[str]:
    return [node.name for node in artifact.graph.nodes if node.weighted]


@pytest.mark.parametrize("name", zoo.by_definition())
def test_onnxruntime_agrees_and_fuses_every_layer(name: str, tmp_path: Path) -> None:
    ort = pytest.importorskip("onnxruntime")
    artifact, x = case(name)
    layers = compare_onnx_layers(artifact, x, None, "onnxruntime")
    assert [d for d in layers if d.max_steps > 1] == []
    assert set(weighted(artifact)) <= {d.name for d in layers}

    proto = to_onnx(artifact, input_size=x.shape[-1])
    onnx.checker.check_model(proto, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True)
    named = {v.name for v in inferred.graph.value_info} | {"logits"}
    assert all(out in named for node in proto.graph.node for out in node.output)
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(proto.SerializeToString(), options)
    nodes = onnx.load(options.optimized_model_filepath).graph.node
    kinds = collections.Counter(node.op_type for node in nodes)
    assert not kinds["Conv"] + kinds["FusedConv"] + kinds["Gemm"] + kinds["MatMul"]
    assert kinds["QLinearConv"] + kinds["QGemm"] == len(weighted(artifact))


@pytest.mark.parametrize("name", zoo.by_definition())
def test_openvino_agrees_on_every_layer(name: str) -> None:
    pytest.importorskip("openvino")
    artifact, x = case(name)
    layers = compare_onnx_layers(artifact, x, None, "openvino")
    assert [d for d in layers if d.max_steps > 1] == []
    assert set(weighted(artifact)) <= {d.name for d in layers}


@pytest.mark.parametrize("name", ["googlenet", "mobilenet_v3_small", "resnet18", SMALL])
def test_openvino_computes_every_layer_in_int8(name: str) -> None:
    artifact, x = case(name)
    proto = to_onnx(artifact, input_size=x.shape[-1], runtime="openvino")
    model = compile_openvino(proto).get_runtime_model()
    inputs = []
    for node in model.get_ordered_ops():
        kind = node.get_rt_info()["layerType"].astype(str)
        if "Convolution" in kind or "FullyConnected" in kind:
            inputs.append(
                {i.get_source_output().get_element_type().to_string() for i in node.inputs()}
            )
    assert len(inputs) >= len(weighted(artifact))
    assert all(types & {"u8", "i8"} and "i8" in types for types in inputs)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_batches_fixed_and_free(shuffle: qzoo.Artifact, runtime: str) -> None:
    x = torch.randn(3, 3, 64, 64)
    free = to_onnx(shuffle, runtime=runtime)
    fixed = to_onnx(shuffle, runtime=runtime, batch_size=3)
    expected = RUN[runtime](fixed, x)
    assert expected.shape == (3, 3)
    assert torch.equal(RUN[runtime](free, x), expected)
    assert torch.equal(RUN[runtime](free, x[:1]), expected[:1])
    shape = fixed.graph.input[0].type.tensor_type.shape
    assert [d.dim_value for d in shape.dim] == [3, 3, 64, 64]


def test_both_shapes_of_the_graph_give_the_same_answers() -> None:
    artifact, x = case(SMALL)
    by_steps = run_onnxruntime(to_onnx(artifact, input_size=32), x)
    shaped = to_onnx(artifact, input_size=32, runtime="openvino")
    assert "Transpose" not in {node.op_type for node in shaped.graph.node}
    assert torch.equal(run_onnxruntime(shaped, x), by_steps)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("name", [SMALL, "googlenet"])
def test_concatenation_on_one_grid_moves_integers(name: str, runtime: str) -> None:
    artifact, x = zoo.on_one_grid(case(name)[0]), zoo.small_images(name)
    proto = to_onnx(artifact, input_size=32, runtime=runtime)
    for node in proto.graph.node:
        if node.op_type == "Concat":
            assert not any(i.endswith(".real") for i in node.input)
    layers_found = compare_onnx_layers(artifact, x, None, runtime)
    assert max(d.max_steps for d in layers_found) <= 1


@pytest.mark.parametrize("opset", [14, 17, 21])
def test_opsets(opset: int) -> None:
    artifact, x = case("mobilenet_v3_small")
    proto = to_onnx(artifact, input_size=32, opset=opset)
    assert proto.opset_import[0].version == opset
    onnx.checker.check_model(proto, full_check=True)
    expected = run_onnxruntime(to_onnx(artifact, input_size=32), x)
    assert torch.equal(run_onnxruntime(proto, x), expected)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("name", [SMALL, "googlenet"])
def test_preprocessing_in_the_graph(name: str, runtime: str) -> None:
    kwargs = {"transform_input": True} if name == "googlenet" else {}
    preset = ImageClassification(crop_size=64, resize_size=64)
    native = zoo.uncalibrated(name, backend="onednn", **kwargs)
    artifact = from_native(native, transforms=preset.to_dict())
    proto = to_onnx(artifact, runtime=runtime, preprocess=True)
    onnx.checker.check_model(proto, full_check=True)
    shape = proto.graph.input[0].type.tensor_type
    assert shape.elem_type == onnx.TensorProto.UINT8
    assert [d.dim_value for d in shape.shape.dim][1:] == [64, 64, 3]
    pixels = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    assert RUN[runtime](proto, pixels).shape == (2, 1000)

    # Later layers would blow up single steps, so only the input's integers can be compared.
    cut = to_onnx(artifact, runtime=runtime, preprocess=True, isolate=True)
    images = preset(pixels.permute(0, 3, 1, 2))
    expected = integers(artifact.graph, images.numpy())
    feeds = {i.name: expected[i.name[:-3]] for i in cut.graph.input[1:]}
    given = run_session(cut, {"input": pixels.numpy(), **feeds}, ["quant.out"])[0]
    gap = (given.int() - torch.from_numpy(expected["quant"]).int()).abs()
    # The placeholder range makes one pixel value in some hundred an exact tie.
    assert gap.max() <= 1 and (gap > 0).float().mean() < 1e-2


def test_what_the_file_says_about_itself(shuffle: qzoo.Artifact, tmp_path: Path) -> None:
    export_onnx(shuffle, tmp_path / "a.onnx")
    export_onnx(to_native(shuffle), tmp_path / "b.onnx")
    content = (tmp_path / "a.onnx").read_bytes()
    assert content == (tmp_path / "b.onnx").read_bytes()
    proto = onnx.load_from_string(content)
    assert proto.producer_name == "qzoo" and proto.producer_version
    assert proto.opset_import[0].version == 17
    said = {p.key: p.value for p in proto.metadata_props}
    assert json.loads(said["classes"]) == ["cat", "dog", "emu"]
    assert json.loads(said["transforms"]) == shuffle.info.transforms
    assert said["architecture"] == SMALL and said["backend"] == "onednn"
    assert said["artifact_sha256"] == shuffle.digest()
    assert said["input_layout"] == "NCHW" and json.loads(said["input_size"]) == [64, 64]
    assert said["qzoo_version"]
    # int8 weights and little else: no float copy of any weight.
    weights = sum(t.numel() for n, t in shuffle.tensors.items() if n.endswith(".weight"))
    assert weights < len(content) < 2 * weights + 200_000
    dtypes = {i.data_type for i in proto.graph.initializer if len(i.dims) == 4}
    assert dtypes == {onnx.TensorProto.INT8}


def test_default_sizes(shuffle: qzoo.Artifact) -> None:
    def size(artifact: Any, **options: Any) -> list[int]:
        shape = to_onnx(artifact, **options).graph.input[0].type.tensor_type.shape
        return [d.dim_value for d in shape.dim][2:]

    assert size(shuffle) == [64, 64]
    assert size(shuffle, input_size=(32, 96)) == [32, 96]
    assert size(zoo.uncalibrated("mobilenet_v3_small")) == [224, 224]
    assert size(zoo.uncalibrated("inception_v3")) == [299, 299]


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("backend", ["onednn", "qnnpack"])
def test_a_bias_too_large_for_its_scale(backend: str, runtime: str) -> None:
    artifact = from_native(zoo.uncalibrated(SMALL, num_classes=3, backend=backend))
    tensors = dict(artifact.tensors)
    scale = tensors["fc.weight_scale"].clone()
    scale[...] *= 1e-9  # as of channels that training left dead, whose bias lives on
    tensors |= {"fc.weight_scale": scale, "fc.bias": torch.tensor([1.0, -2.0, 3.0])}
    artifact = dataclasses.replace(artifact, tensors=tensors)
    logits = RUN[runtime](
        to_onnx(artifact, input_size=32, runtime=runtime), torch.randn(1, 3, 32, 32)
    )
    step = artifact.layers["fc"].scale
    assert logits.flatten().tolist() == pytest.approx([1.0, -2.0, 3.0], abs=step)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": True}, "batch_size"),
        ({"input_size": 0}, "input_size"),
        ({"input_size": (1, 2, 3)}, "input_size"),
        ({"opset": 13}, "opset"),
        ({"opset": 10_000}, "opset"),
        ({"runtime": "tensorrt"}, "runtime"),
    ],
)
def test_bad_options(shuffle: qzoo.Artifact, options: dict[str, Any], message: str) -> None:
    with pytest.raises(qzoo.ArgumentError, match=message):
        to_onnx(shuffle, **options)


def test_what_cannot_be_exported(shuffle: qzoo.Artifact, tmp_path: Path) -> None:
    bare = dataclasses.replace(shuffle, info=dataclasses.replace(shuffle.info, transforms=None))
    with pytest.raises(qzoo.ArgumentError, match="transforms"):
        to_onnx(bare, preprocess=True)
    with pytest.raises(qzoo.ArtifactError, match="float"):
        to_onnx(qzoo.get_model(SMALL))
    with pytest.raises(qzoo.ArtifactError, match="Cannot write"):
        export_onnx(shuffle, tmp_path / "nowhere" / "model.onnx")


def test_a_missing_package_is_named(
    shuffle: qzoo.Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = np.zeros((1, 3, 64, 64), np.float32)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(qzoo.MissingDependencyError, match=r"qzoo\[onnx\]"):
        to_onnx(shuffle)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(qzoo.MissingDependencyError, match=r"qzoo\[onnxruntime\]"):
        compare_onnx_layers(shuffle, images, None, "onnxruntime")
    with pytest.raises(qzoo.ArgumentError, match="runtime"):
        compare_onnx_layers(shuffle, images, None, "tensorrt")
