"""Biases of channels of next to no weight stay within 32 bits wherever they become integers."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import qzoo
from qzoo.artifact.biases import BIAS_MAX, widened, with_room_for_biases
from qzoo.artifact.format import Artifact
from qzoo.export import executorch
from qzoo.export.onnx import to_onnx
from qzoo.export.plan import make_plan
from qzoo.native.model import from_native, to_native
from qzoo.quantize import ptq, state
from qzoo.reference import build_reference
from tests.helpers.zoo import ENGINES, float_model, small_images

#: Largest bias in steps; scales are float32.
MOST = BIAS_MAX * (1 + 1e-6)
CASES = [("resnet18", 1e-9), ("mobilenet_v3_small", 1e-5), ("shufflenet_v2_x0_5", 1e-20)]


def with_dead_channels(name: str, gamma: float) -> nn.Module:
    """Returns a float model where every fourth channel of a batch norm gives next to a constant."""
    model = float_model(name, num_classes=10)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight[::4], module.bias[::4] = gamma, 0.7
    return model


@pytest.fixture(scope="module", params=CASES, ids=[name for name, _ in CASES])
def case(request: Any) -> tuple[nn.Module, Artifact, Tensor, Tensor]:
    """Returns a float model, an artifact that was made without a thought of it, images, logits."""
    model, images = with_dead_channels(*request.param), small_images(request.param[0], 8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state, "with_room_for_biases", lambda artifact: artifact)
        int8 = ptq(model, images, recipe="fast", backend="onednn", progress=False)
    artifact = from_native(int8)
    return model, artifact, images, build_reference(artifact)(images)


def apart(given: Tensor, wanted: Tensor) -> float:
    return float((given - wanted).norm() / wanted.norm())


def steps(artifact: Artifact) -> float:
    """Returns the largest bias of a model as an integer of its sums' scale."""
    reference = build_reference(artifact)
    largest = 0.0
    for node in reference.graph.nodes:
        if "conv2d" in str(node.target) or "linear" in str(node.target):
            name = str(node.args[1].args[0].target).removesuffix(".weight")
            scale = artifact.tensors[f"{name}.weight_scale"] * node.args[0].meta["grid"].scale
            bias = artifact.tensors.get(f"{name}.bias", torch.zeros(1))
            largest = max(largest, float((bias / scale).abs().max()))
    return largest


@pytest.mark.parametrize(
    "runtime",
    # Lowering to ExecuTorch takes long, and that of every exported model the same way.
    ["onnxruntime", pytest.param("executorch", marks=pytest.mark.extended)],
)
def test_runtimes_with_integer_biases_answer_as_the_reference(runtime: str, case) -> None:
    pytest.importorskip(runtime)
    _, artifact, images, wanted = case
    compiled = qzoo.compile(artifact, runtime, batch_size=8, input_size=images.shape[-1])
    assert apart(compiled(images), wanted) < 0.03


def test_every_bias_fits_and_no_answer_changes(case) -> None:
    _, artifact, images, wanted = case
    assert steps(artifact) > 2**31
    changed = with_room_for_biases(artifact)
    assert steps(changed) <= MOST
    assert apart(build_reference(changed)(images), wanted) < 0.01
    assert with_room_for_biases(changed) is changed


def test_the_onnx_file_holds_the_biases(case) -> None:
    onnx = pytest.importorskip("onnx")
    _, artifact, images, _ = case
    proto = to_onnx(artifact, input_size=images.shape[-1])
    arrays = [onnx.numpy_helper.to_array(t) for t in proto.graph.initializer]
    biases = [a for a in arrays if a.dtype == "int32"]
    assert biases and max(abs(int(v)) for a in biases for v in a) <= MOST


def test_executorch_gets_them(case, monkeypatch) -> None:
    pytest.importorskip("executorch")
    _, artifact, images, _ = case
    exported: list[Any] = []

    def stop(reference: Any, _: Tensor) -> None:
        exported.append(reference.artifact)
        raise KeyboardInterrupt

    monkeypatch.setattr(executorch, "to_xnnpack", stop)
    with pytest.raises(KeyboardInterrupt):
        executorch.lower(make_plan(artifact, 1, images.shape[-1]))
    assert steps(exported[0]) <= MOST


@pytest.fixture(scope="module")
def new(case) -> tuple[Artifact, Tensor]:
    """Returns an artifact of the same model that is made as always, and its logits."""
    model, _, images, _ = case
    artifact = from_native(ptq(model, images, recipe="fast", backend="onednn", progress=False))
    return artifact, build_reference(artifact)(images)


@pytest.mark.parametrize("engine", ENGINES)
def test_new_artifacts_run_on_every_engine_of_pytorch(engine: str, case, new) -> None:
    images, (artifact, wanted) = case[2], new
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of sums of wide depthwise convolutions
        native = to_native(artifact, engine)
    assert apart(native(images), wanted) < 0.05


def test_only_what_is_too_large_changes() -> None:
    weight = np.random.default_rng(0).integers(-127, 128, (3, 4, 1, 1)).astype(np.int8)
    scale, bias = np.float32([1e-3, 1e-20, 1e-12]), np.float32([5.0, 0.0, 1.0])
    wide, scales, zeros = widened(weight, scale, None, bias, 0.1)
    assert zeros is None and np.array_equal(wide[:2], weight[:2])
    assert np.array_equal(scales[:2], scale[:2])
    assert float(scales[2]) == pytest.approx(1 / (BIAS_MAX * 0.1))


def test_zero_points_and_one_scale_for_all_are_kept_apart() -> None:
    weight = np.array([[-128, 127], [-128, 127]], np.int8)
    zero, bias = np.array(-100, np.int8), np.float32([0.5, 1e4])
    wide, scales, zeros = widened(weight, np.array(1e-6, np.float32), zero, bias, 1e-2)
    assert zeros is not None
    real = (wide.astype(float) - zeros.reshape(-1, 1)) * scales.reshape(-1, 1)
    wanted = (weight.astype(float) + 100) * 1e-6
    assert zeros.tolist() == [-100, -100] and np.array_equal(wide[0], weight[0])
    assert float(np.abs(real - wanted)[1].max()) <= float(scales[1])


@pytest.mark.parametrize("zero_point", [-128, -100, 0, 90, 127])
@pytest.mark.parametrize("too_small", [0.98, 0.5, 1e-4])
def test_no_weight_moves_further_than_the_rounding(zero_point: int, too_small: float) -> None:
    weight = np.arange(-128, 128).astype(np.int8)[None]
    bias, least = np.float32([1000.0]), 1000 / (BIAS_MAX * 0.1)
    zero, scale = np.array([zero_point], np.int8), np.float32([too_small * least])
    wide, scales, zeros = widened(weight, scale, zero, bias, 0.1)
    assert zeros is not None and float(scales[0]) == pytest.approx(least)
    real = (wide.astype(float) - zeros.astype(float)) * scales.astype(float)
    wanted = (weight.astype(float) - zero_point) * scale.astype(float)
    assert float(np.abs(real - wanted).max()) <= 0.501 * least


def test_models_without_such_channels_are_left_alone() -> None:
    model, images = float_model("resnet18", num_classes=5), small_images("resnet18", 4)
    artifact = from_native(ptq(model, images, recipe="fast", progress=False))
    assert with_room_for_biases(artifact) is artifact
    assert dataclasses.replace(artifact).digest() == artifact.digest()
