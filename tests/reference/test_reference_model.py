"""Reference models against the native int8 models that they stand for, and what they promise."""

from __future__ import annotations

import copy
import dataclasses
import gc
import linecache
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.fx import graph_module

import qzoo
from qzoo.native.model import from_native, to_native
from qzoo.reference import ReferenceModel, build_reference, compare_layers
from qzoo.reference.ops import DEQUANTIZE, QUANTIZE, Grid, fake_quantize
from tests.helpers import zoo

SMALL = "shufflenet_v2_x0_5"


def count(model: ReferenceModel, target: object) -> int:
    return sum(node.target is target for node in model.graph.nodes)


@pytest.fixture(scope="module")
def shuffle() -> qzoo.Artifact:
    return from_native(zoo.uncalibrated(SMALL, num_classes=10, backend="onednn"))


@given(st.floats(1e-6, 1e3), st.integers(0, 255), st.integers(0, 2**32 - 1))
def test_a_value_goes_to_its_nearest_neighbour_on_the_grid_and_stays(
    scale: float, zero_point: int, seed: int
) -> None:
    grid = Grid(scale, zero_point).single()
    x = torch.randn(64, generator=torch.Generator().manual_seed(seed)) * 200 * grid.scale
    once = fake_quantize(x, *grid.arguments)
    values = grid.scale * (torch.arange(256.0, dtype=torch.float64) - zero_point)
    nearest = (x.double()[:, None] - values).abs().amin(1)
    torch.testing.assert_close((once.double() - x).abs(), nearest, rtol=1e-5, atol=1e-5 * scale)
    assert torch.equal(fake_quantize(once, *grid.arguments), once)
    integers = torch.quantize_per_tensor(x, grid.scale, zero_point, torch.quint8)
    assert torch.equal(integers.dequantize(), once)


@pytest.mark.parametrize("name", zoo.by_definition())
def test_every_layer_agrees_with_the_native_model_to_one_step(name: str) -> None:
    x = zoo.small_images(name)
    native = zoo.eager_ptq(zoo.float_model(name, slim=True), x)
    reference = build_reference(native)
    layers = compare_layers(native, reference, x)
    assert [d for d in layers if d.max_steps > 1] == []
    outputs = sum(d.outputs for d in layers)
    assert sum(d.differing * d.outputs for d in layers) < 1e-3 * outputs
    always = ("quantize", "conv2d", "linear", "hardswish")  # a functional may lie idle in a block
    ranged = {n for n, layer in reference.artifact.layers.items() if layer.op in always}
    assert {n for n in ranged if "aux" not in n.lower()} <= {d.name for d in layers}
    logits = reference(x)
    assert logits.shape == (2, 1000) and logits.dtype == torch.float32
    assert not reference.training


@pytest.mark.parametrize("backend", zoo.ENGINES)
@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", "mobilenet_v3_small"])
def test_layers_agree_on_every_engine(name: str, backend: str) -> None:
    x = zoo.small_images(name)
    native = to_native(from_native(zoo.eager_ptq(zoo.float_model(name), x), backend="x86"), backend)
    layers = compare_layers(native, build_reference(native), x)
    assert max(d.max_steps for d in layers) <= 1


def test_nothing_of_a_model_outlives_it(shuffle: qzoo.Artifact) -> None:
    def sources() -> set[str]:
        gc.collect()
        kept = set(graph_module._loader.eval_cache) | set(linecache.cache)
        return {name for name in kept if name.startswith("<eval_with_key>")}

    before = sources()
    reference = build_reference(shuffle)
    assert len(sources() - before) == 1  # else PyTorch keeps them elsewhere now: look there
    reference.recompile()
    del reference
    assert sources() <= before


def test_the_artifact_comes_back_bit_for_bit(shuffle: qzoo.Artifact) -> None:
    native = to_native(shuffle)
    reference = build_reference(native)
    again = build_reference(reference)
    for model in (reference, again, copy.deepcopy(reference)):
        assert model.artifact.to_bytes() == from_native(native).to_bytes()
    state = build_reference(shuffle).state_dict()
    assert state.keys() == shuffle.tensors.keys()
    assert all(torch.equal(state[k], v) for k, v in shuffle.tensors.items())


@pytest.mark.parametrize("name", zoo.WITH_AUX)
def test_what_happens_before_the_first_rounding_is_kept(name: str) -> None:
    kwargs = {"transform_input": True, "aux_logits": True}
    native = zoo.uncalibrated(name, backend="onednn", **kwargs)
    reference = build_reference(native)
    x = zoo.small_images(name)
    first = compare_layers(native, reference, x)[0]
    assert (first.op, first.max_steps) == ("quantize", 0)
    assert {k for k in native._modules if "aux" in k.lower()}
    assert not any("aux" in k.lower() for k in reference.state_dict())


def test_other_forms_give_the_same_values(shuffle: qzoo.Artifact) -> None:
    x = zoo.small_images(SMALL)
    plain = build_reference(shuffle)
    expected = plain(x)
    assert torch.equal(build_reference(shuffle, explicit=True)(x), expected)
    assert torch.equal(build_reference(shuffle, activations=torch.int8)(x), expected)
    with torch.no_grad():
        assert torch.equal(build_reference(shuffle, ste=True)(x), expected)


def test_moving_operations_are_not_quantized_again(shuffle: qzoo.Artifact) -> None:
    plain = build_reference(shuffle)
    assert count(plain, QUANTIZE) == count(plain, DEQUANTIZE)
    ranged = [x for x in shuffle.layers.values() if x.op not in ("dequantize", "identity")]
    mean = 1
    assert count(plain, QUANTIZE) == len(ranged) + mean
    assert count(build_reference(shuffle, explicit=True), QUANTIZE) > count(plain, QUANTIZE)


def test_concatenation_on_one_grid_is_not_quantized(shuffle: qzoo.Artifact) -> None:
    shared = zoo.on_one_grid(shuffle)
    reference = build_reference(shared)
    cats = sum(layer.op == "functional" for layer in shared.layers.values())
    assert count(build_reference(shuffle), QUANTIZE) - count(reference, QUANTIZE) == cats
    differences = compare_layers(to_native(shared), reference, zoo.small_images(SMALL))
    assert max(d.max_steps for d in differences) <= 1


def test_relu_is_kept_where_the_zero_point_does_not_imply_it(shuffle: qzoo.Artifact) -> None:
    layers = {
        name: dataclasses.replace(layer, zero_point=20) if layer.relu else layer
        for name, layer in shuffle.layers.items()
    }
    shifted = dataclasses.replace(shuffle, layers=layers)
    reference = build_reference(shifted)
    relu = torch.ops.aten.relu.default
    assert count(reference, relu) == sum(x.relu for x in layers.values())
    assert count(build_reference(shuffle), relu) == 0
    differences = compare_layers(to_native(shifted), reference, zoo.small_images(SMALL))
    assert max(d.max_steps for d in differences) <= 1


def test_weights_with_zero_points_and_one_scale(shuffle: qzoo.Artifact) -> None:
    per_tensor = from_native(zoo.uncalibrated(SMALL, backend="qnnpack"))
    tensors = dict(per_tensor.tensors)
    for name in per_tensor.tensors:
        if name.endswith("weight_scale"):
            tensors[name.replace("scale", "zero_point")] = torch.tensor(3, dtype=torch.int8)
    artifact = dataclasses.replace(per_tensor, tensors=tensors)
    x = zoo.small_images(SMALL)
    layers = compare_layers(to_native(artifact), build_reference(artifact), x)
    assert max(d.max_steps for d in layers) <= 1


def test_gradients_pass_straight_through() -> None:
    grid = Grid(0.5, 10, 0, 20)
    x = torch.tensor([-5.2, -5.0, -1.3, 0.26, 5.0, 5.3], requires_grad=True)
    y = fake_quantize(x, *grid.arguments)
    y.sum().backward()
    assert y.tolist() == [-5.0, -5.0, -1.5, 0.5, 5.0, 5.0]
    assert x.grad is not None and x.grad.tolist() == [1.0, 1.0, 1.0, 1.0, 1.0, 0.0]


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "resnet18", "googlenet"])
def test_gradients_reach_the_input(name: str) -> None:
    reference = build_reference(zoo.uncalibrated(name), ste=True)
    x = zoo.small_images(name).requires_grad_()
    reference(x).square().sum().backward()
    assert x.grad is not None and bool(x.grad.isfinite().all()) and bool((x.grad != 0).any())


def test_torch_export_takes_any_batch(shuffle: qzoo.Artifact) -> None:
    reference = build_reference(shuffle)
    x = zoo.small_images(SMALL, batch=3)
    batch = torch.export.Dim("batch", min=1, max=8)
    program = torch.export.export(reference, (x[:2],), dynamic_shapes=({0: batch},))
    assert torch.equal(program.module()(x), reference(x))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_runs_on_cuda(shuffle: qzoo.Artifact) -> None:
    native = to_native(shuffle)
    with torch.backends.cudnn.flags(allow_tf32=False):
        layers = compare_layers(native, build_reference(native).cuda(), zoo.small_images(SMALL))
    assert max(d.max_steps for d in layers) <= 1


def test_building_disturbs_no_model_that_runs_meanwhile(shuffle: qzoo.Artifact) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    x, stop, errors = torch.randn(1, 3, 8, 8), threading.Event(), []

    def run() -> None:
        expected = model(x)
        while not stop.is_set():
            try:
                assert torch.equal(model(x), expected)
            except Exception as error:
                errors.append(error)
                return

    thread = threading.Thread(target=run)
    thread.start()
    for _ in range(3):
        build_reference(shuffle)
    stop.set()
    thread.join()
    assert errors == []


def _with_info(**changes: Any) -> Callable[[qzoo.Artifact], qzoo.Artifact]:
    def change(artifact: qzoo.Artifact) -> qzoo.Artifact:
        return dataclasses.replace(artifact, info=dataclasses.replace(artifact.info, **changes))

    return change


def _incomplete(artifact: qzoo.Artifact) -> qzoo.Artifact:
    layers = {k: v for k, v in artifact.layers.items() if k != "fc"}
    tensors = {k: v for k, v in artifact.tensors.items() if not k.startswith("fc.")}
    return dataclasses.replace(artifact, layers=layers, tensors=tensors)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_with_info(architecture="resnet18"), "lacks"),
        (_with_info(builder_kwargs={"num_classes": 11}), "fc"),
        (_with_info(architecture="nosuchnet"), "unknown"),
        (_with_info(builder_kwargs={"nonsense": 1}), "builder arguments"),
        (_incomplete, "fc"),
    ],
)
def test_an_artifact_that_does_not_fit_is_refused(
    shuffle: qzoo.Artifact, change: Callable[[qzoo.Artifact], qzoo.Artifact], message: str
) -> None:
    with pytest.raises(qzoo.ArtifactError, match=message):
        build_reference(change(shuffle))


def test_what_is_not_int8_is_refused(shuffle: qzoo.Artifact) -> None:
    with pytest.raises(qzoo.ArtifactError, match="float"):
        build_reference(qzoo.get_model(SMALL))
    with pytest.raises(qzoo.ArtifactError, match="builders"):
        build_reference(nn.Linear(2, 2))
    with pytest.raises(qzoo.ArgumentError, match="uint8"):
        build_reference(shuffle, activations=torch.int16)
    with pytest.raises(qzoo.ArgumentError, match="ste"):
        compare_layers(
            to_native(shuffle), build_reference(shuffle, ste=True), zoo.small_images(SMALL)
        )


def test_nothing_global_changes(shuffle: qzoo.Artifact) -> None:
    before = (torch.backends.quantized.engine, torch.get_rng_state(), list(warnings.filters))
    build_reference(shuffle)
    assert torch.backends.quantized.engine == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    assert list(warnings.filters) == before[2]
