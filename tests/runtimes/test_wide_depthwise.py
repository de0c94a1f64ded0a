"""Depthwise convolutions of 8-bit activations, which some of PyTorch's engines get wrong."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

import qzoo
from qzoo.backends import SATURATING_ENGINES, available_engines
from qzoo.errors import BackendWarning
from qzoo.native.model import from_native, has_wide_depthwise, to_native
from qzoo.reference import build_reference, compare_layers

BOTH = {"onednn", "x86"} <= set(available_engines())


@pytest.fixture(scope="module")
def artifact() -> qzoo.Artifact:
    """A MobileNetV2 for 8-bit activations whose first depthwise sums overflow 16 bits."""
    with pytest.warns(qzoo.UncalibratedWarning):
        model = qzoo.mobilenet_v2(quantize=True, num_classes=5, backend="onednn")
    found = from_native(model)
    first = next(n for n, la in found.layers.items() if la.op == "conv2d" and la.groups > 1)
    found.tensors[f"{first}.weight"] = torch.full_like(found.tensors[f"{first}.weight"], 127)
    return found


def worst_steps(native: nn.Module, artifact: qzoo.Artifact) -> int:
    """Returns how far a layer is from the reference model's at most, given the same integers."""
    x = 4 * torch.rand(2, 3, 64, 64)
    return max(d.max_steps for d in compare_layers(native, build_reference(artifact), x))


def test_knows_which_models_are_concerned(artifact: qzoo.Artifact) -> None:
    assert has_wide_depthwise(artifact)
    narrow = dataclasses.replace(artifact.info, backend="x86")
    assert not has_wide_depthwise(dataclasses.replace(artifact, info=narrow))
    with pytest.warns(qzoo.UncalibratedWarning):
        resnet = qzoo.resnet18(quantize=True, backend="onednn")
    assert not has_wide_depthwise(from_native(resnet))


@pytest.mark.skipif(not BOTH, reason="this PyTorch lacks an engine")
def test_torch_runtime_takes_an_exact_engine(artifact: qzoo.Artifact) -> None:
    compiled: Any = qzoo.compile(artifact, "torch", threads=1, input_size=64)
    assert compiled.engine not in SATURATING_ENGINES
    assert worst_steps(compiled.model, artifact) <= 1


@pytest.mark.skipif(not BOTH, reason="this PyTorch lacks an engine")
def test_a_saturating_engine_is_announced(artifact: qzoo.Artifact) -> None:
    with pytest.warns(BackendWarning, match="cut large sums"):
        wrong = to_native(artifact, "x86")
    assert worst_steps(wrong, artifact) > 1, "the warning is out of date"


def test_another_engine_goes_first(
    artifact: qzoo.Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qzoo.native.engines.available_engines", lambda: ["x86", "qnnpack"])
    with pytest.warns(BackendWarning, match="runs on qnnpack"):
        to_native(artifact)
    monkeypatch.setattr("qzoo.native.engines.available_engines", lambda: ["x86"])
    with pytest.warns(BackendWarning, match="cut large sums"):
        to_native(artifact)
