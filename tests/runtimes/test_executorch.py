"""The runtime `executorch`: one delegate, the int8 engines' answers, clear refusals."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from torch import Tensor

import qzoo
from qzoo.artifact.format import Artifact
from qzoo.native.model import from_native
from qzoo.reference import build_reference
from qzoo.registry import list_models
from tests.helpers import zoo

pytest.importorskip("executorch")

from qzoo.export import executorch as export
from qzoo.export._xnnpack import to_xnnpack
from qzoo.export.plan import make_plan
from qzoo.export.torch_plan import TorchPlan
from qzoo.runtimes.executorch import ExecutorchModel

PIXELS = 64


def reference_logits(artifact: Artifact, images: Tensor) -> Tensor:
    with torch.no_grad():
        return build_reference(artifact)(images)


@pytest.fixture(scope="module")
def resnet() -> tuple[Artifact, Tensor, ExecutorchModel]:
    artifact, images = zoo.calibrated("resnet18")
    return artifact, images, ExecutorchModel(artifact, threads=1, input_size=PIXELS)


def test_answers_as_the_reference_for_any_batch(resnet):
    artifact, images, compiled = resnet
    expected = reference_logits(artifact, images)
    step = artifact.layers["fc"].scale
    for batch in (images, images[:1], images[:3]):
        assert (compiled(batch) - expected[: len(batch)]).abs().max() <= 2.01 * step
    assert compiled.float_layers == ()
    before = compiled(images[:1])
    kept = before.clone()
    compiled(images[1:2])
    assert torch.equal(before, kept)  # its memory is its own


def test_eight_threads_share_it(resnet):
    _, images, compiled = resnet
    assert zoo.same_in_threads(compiled, images)


def test_models_of_different_threads_take_turns(resnet):
    _artifact, images, one = resnet
    two = copy.copy(one)
    two.threads, two._loaded_at = 2, -1
    expected = one(images)
    for _ in range(3):
        assert torch.equal(two(images), expected)
        assert two._native._threadpool_get_thread_count() == 2
        assert torch.equal(one(images), expected)
        assert one._native._threadpool_get_thread_count() == 1


def test_other_sizes_are_refused(resnet):
    with pytest.raises(qzoo.ArgumentError, match=r"32x64 pixels.*input_size=\(32, 64\)"):
        resnet[2](torch.zeros(1, 3, 32, 64))


def test_weights_with_zero_points_are_refused():
    artifact = from_native(zoo.uncalibrated("resnet18", backend="onednn"))
    zero_points = torch.ones(64, dtype=torch.int8)
    tensors = {**artifact.tensors, "conv1.weight_zero_point": zero_points}
    changed = Artifact(artifact.info, artifact.layers, tensors, artifact.versions)
    with pytest.raises(qzoo.ArgumentError, match="'conv1' has weights with zero points"):
        export.lower(make_plan(changed, 1, PIXELS))


def test_missing_package_names_the_extra(monkeypatch):
    artifact = from_native(zoo.uncalibrated("resnet18"))
    monkeypatch.setitem(sys.modules, "executorch.runtime", None)
    with pytest.raises(qzoo.MissingDependencyError, match=r"qzoo\[executorch\]"):
        ExecutorchModel(artifact)


@pytest.mark.parametrize(
    "name", ["shufflenet_v2_x0_5", "mobilenet_v3_small", "googlenet", "inception_v3"]
)
def test_the_rewriting_for_xnnpack_changes_no_value(name):
    native = zoo.uncalibrated(name, backend="onednn")
    size = 75 if name == "inception_v3" else PIXELS
    plan = TorchPlan.of(make_plan(native, 2, size))
    images = torch.randn(2, 3, size, size)
    graph = plan.graph(explicit=True, activations=torch.int8)
    with torch.no_grad():
        given = to_xnnpack(graph, plan.images())(images)
        expected = build_reference(native)(images)
    assert torch.equal(given, expected)


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("name", list_models())
def test_every_builder_is_one_delegate(name, monkeypatch):
    artifact, images = zoo.calibrated(name)
    seen = []
    check = export._check_delegated

    def note(lowered):
        seen.append([n.name for n in lowered.graph.nodes if n.op == "call_function"])
        check(lowered)

    monkeypatch.setattr(export, "_check_delegated", note)
    compiled = ExecutorchModel(artifact, threads=1, input_size=images.shape[2:])
    assert seen == [["executorch_call_delegate", "getitem"]]
    expected = reference_logits(artifact, images)
    spread = (expected.max() - expected.min()).item()
    assert (compiled(images) - expected).abs().max() <= 0.1 * spread
