"""The runtime `inductor`: every layer on integers, the int8 engines' answers, clear refusals."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor

import qzoo
from qzoo.artifact.format import Artifact
from qzoo.datasets import Digits
from qzoo.export.aoti import compile_package
from qzoo.export.plan import make_plan
from qzoo.native.model import from_native, to_native
from qzoo.registry import list_models
from qzoo.runtimes.inductor import InductorModel
from tests.helpers import zoo
from tests.helpers.inductor import kernels

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN"
)
PIXELS = 64


def native_logits(artifact: Artifact, images: Tensor) -> Tensor:
    """Returns what PyTorch's engine of the same library, oneDNN, answers."""
    if "onednn" not in qzoo.backends.available_engines():
        pytest.skip("this PyTorch has no onednn engine to compare with")
    with torch.no_grad(), zoo.engine("onednn"):
        return to_native(artifact, "onednn")(images)


@pytest.fixture(scope="module")
def resnet() -> tuple[Artifact, Tensor, InductorModel]:
    artifact, images = zoo.calibrated("resnet18", 8)
    return artifact, images, InductorModel(artifact, threads=1, input_size=PIXELS)


def test_answers_as_the_int8_engine_for_any_batch(resnet):
    artifact, images, compiled = resnet
    expected = native_logits(artifact, images)
    step = artifact.layers["fc"].scale
    for batch in (images, images[:1], images[:3]):
        given = compiled(batch)
        assert given.dtype == torch.float32 and not given.is_inference()
        assert (given - expected[: len(batch)]).abs().max() <= 2.01 * step
    assert compiled.float_layers == ()


def test_threads_of_the_caller_stay_as_they_are(resnet):
    _, images, compiled = resnet
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        compiled(images)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_eight_threads_share_it(resnet):
    _, images, compiled = resnet
    assert zoo.same_in_threads(compiled, images)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(1, 3, 32, 64), r"32x64 pixels.*compiled for 64x64.*input_size=\(32, 64\)"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "float32"),
        (torch.zeros(5000, 3, 1, 1).expand(5000, 3, 64, 64), "at most 4096"),
    ],
)
def test_other_inputs_are_refused(resnet, x, message):
    with pytest.raises(qzoo.ArgumentError, match=message):
        resnet[2](x)


def test_missing_compiler_is_one_clear_sentence(resnet, tmp_path):
    from torch._inductor import config, cpp_builder

    cpp_builder.cpp_compiler_search.cache_clear()
    try:
        with (
            config.patch({"cpp.cxx": ("no-such-compiler",)}),
            pytest.raises(qzoo.MissingDependencyError, match=r"C\+\+ compiler.*g\+\+.*CXX"),
        ):
            compile_package(make_plan(resnet[0], 1, PIXELS), tmp_path / "x.pt2")
    finally:
        cpp_builder.cpp_compiler_search.cache_clear()


def test_sizes_below_the_models_are_refused_before_compiling():
    artifact = from_native(zoo.uncalibrated("inception_v3"))
    with pytest.raises(qzoo.ArgumentError, match="at least 75x75"):
        InductorModel(artifact, input_size=64)


@pytest.mark.extended
def test_no_layer_of_the_digits_model_is_float_and_all_digits_get_the_same_class(tmp_path):
    member = qzoo.ShuffleNet_V2_X0_5_QuantizedWeights.DIGITS_X86_V1
    artifact = member.artifact()
    transform = member.transforms()
    digits = Digits("test", transform=transform)
    images = torch.stack([digits[i][0] for i in range(len(digits))])
    package = tmp_path / "digits.pt2"
    plan = make_plan(artifact, None, images.shape[2:])
    assert compile_package(plan, package) == ()
    ops = Counter(layer.op for layer in artifact.layers.values())
    assert kernels(package) == {
        "_qconv_pointwise_tensor": ops["conv2d"],
        "_qlinear_pointwise_tensor": ops["linear"],
    }
    with torch.no_grad():
        expected = to_native(artifact)(images)
        given = torch._inductor.aoti_load_package(str(package))(images)
    assert (given.argmax(1) == expected.argmax(1)).all()


@pytest.mark.slow
def test_weights_with_zero_points_stay_float_and_are_named(tmp_path):
    artifact, images = zoo.calibrated("resnet18", 8)
    name = "layer2.0.conv1"
    zero_points = torch.zeros(128, dtype=torch.int8)
    zero_points[3] = 2
    tensors = {**artifact.tensors, f"{name}.weight_zero_point": zero_points}
    changed = Artifact(artifact.info, artifact.layers, tensors, artifact.versions)
    package = tmp_path / "x.pt2"
    assert compile_package(make_plan(changed, None, PIXELS), package) == (name,)
    called = kernels(package)
    assert called["_qconv_pointwise_tensor"] == 19
    with torch.no_grad():
        given = torch._inductor.aoti_load_package(str(package))(images)
        expected = qzoo.reference.build_reference(changed)(images)
    assert (given - expected).abs().max() <= 2.01 * artifact.layers["fc"].scale


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("name", list_models())
def test_every_builder_runs_on_integers(name, tmp_path):
    artifact, images = zoo.calibrated(name, 8)
    package = tmp_path / "model.pt2"
    assert compile_package(make_plan(artifact, None, images.shape[2:]), package) == ()
    ops = Counter(layer.op for layer in artifact.layers.values())
    called = kernels(package)
    assert called["_qconv_pointwise_tensor"] == ops["conv2d"]
    assert called["_qlinear_pointwise_tensor"] == ops["linear"]
    assert len(called) == 2
    with torch.no_grad():
        given = torch._inductor.aoti_load_package(str(package))(images)
    expected = native_logits(artifact, images)
    spread = (expected.max() - expected.min()).item()
    assert (given - expected).abs().max() <= 0.1 * spread
