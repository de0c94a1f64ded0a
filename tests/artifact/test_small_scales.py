"""Weight scales of channels that training has switched off: raised at making and at loading."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import qzoo
from qzoo.artifact.layers import SMALLEST_SCALE, raised
from qzoo.native.model import from_native, to_native
from qzoo.quantize import ptq, qat
from tests.helpers.artifact_parts import old_parts, put_together, take_apart, tiny_artifact
from tests.helpers.trained import digits, digits_model
from tests.helpers.zoo import quiet, small_images

BACKENDS = ["fbgemm", "x86", "onednn", "qnnpack"]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return digits_model("shufflenet_v2_x0_5")


@pytest.fixture(scope="module")
def images(model: nn.Module) -> dict[str, Tensor]:
    return {
        split: torch.stack([x for x, _ in digits(split, model, count)])
        for split, count in (("train", 32), ("test", 32))
    }


def switched_off(model: nn.Module, gamma: float) -> nn.Module:
    """A copy in which batch norm leaves next to nothing of every fifth channel."""
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for module in twin.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight[::5] = gamma
    return twin


def scales_of(artifact: qzoo.Artifact) -> Tensor:
    return torch.cat(
        [t.double().flatten() for n, t in artifact.tensors.items() if n.endswith("weight_scale")]
    )


def agreement(model: nn.Module, want: Tensor, images: Tensor) -> int:
    with quiet(), torch.no_grad():
        return int((model(images).argmax(1) == want.argmax(1)).sum())


@pytest.mark.parametrize(
    "gamma", [1e-40, *(pytest.param(g, marks=pytest.mark.extended) for g in (1e-35, 1e-20, 0.0))]
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_ptq(backend: str, gamma: float, model: nn.Module, images: dict[str, Tensor]) -> None:
    edited = switched_off(model, gamma)
    with quiet(), torch.no_grad():
        want = edited(images["test"])
        quantized = ptq(edited, [images["train"]], backend=backend, progress=False)
    assert agreement(quantized, want, images["test"]) == 32
    artifact = from_native(quantized)
    assert float(scales_of(artifact).min()) >= SMALLEST_SCALE


@pytest.mark.extended
@pytest.mark.parametrize("flow", ["fx", "pt2e"])
def test_pytorchs_flows(flow: str, model: nn.Module, images: dict[str, Tensor]) -> None:
    edited = switched_off(model, 1e-40)
    with quiet(), torch.no_grad():
        want = edited(images["test"])
        quantized = ptq(edited, [images["train"]], backend="x86", flow=flow, progress=False)
    assert agreement(quantized, want, images["test"]) == 32
    assert float(scales_of(from_native(quantized)).min()) >= SMALLEST_SCALE


def test_qat(model: nn.Module, images: dict[str, Tensor]) -> None:
    edited = switched_off(model, 1e-40)
    with quiet(), torch.no_grad():
        want = edited(images["test"])
        prepared = qat.prepare(edited, "fbgemm", data=[images["train"]])
        quantized = qat.convert(prepared)
    assert agreement(quantized, want, images["test"]) == 32
    assert float(scales_of(from_native(quantized)).min()) >= SMALLEST_SCALE


@pytest.mark.parametrize("backend", BACKENDS)
def test_artifacts_of_earlier_versions(
    backend: str, model: nn.Module, images: dict[str, Tensor], tmp_path: Path
) -> None:
    """Written without a floor, as they lie on people's disks."""
    edited = switched_off(model, 0.0)
    with quiet(), torch.no_grad():
        want = edited(images["test"])
        good = from_native(ptq(edited, [images["train"]], backend=backend, progress=False))
    parts = old_parts(good)
    for name, scale in list(parts.tensors.items()):
        weight = parts.tensors.get(name.removesuffix("_scale"))
        if name.endswith(".weight_scale") and scale.dim() and weight is not None:
            dead = weight.flatten(1).abs().amax(1) == 0
            integers = weight.clone()
            integers[dead] = 127
            parts.tensors[name.removesuffix("_scale")] = integers
            parts.tensors[name] = torch.where(dead, 1.2e-38, scale)
    path = tmp_path / "old.safetensors"
    path.write_bytes(put_together(parts))
    with quiet():
        loaded = qzoo.load(path)
    assert agreement(loaded, want, images["test"]) == 32
    assert float(scales_of(from_native(loaded)).min()) >= SMALLEST_SCALE


@pytest.mark.parametrize("old", [True, False])
def test_files_without_a_floor(old: bool, tmp_path: Path) -> None:
    parts = take_apart(tiny_artifact(old=old))
    name = next(name for name in parts.tensors if name.endswith("weight_scale"))
    parts.tensors[name][0] = 1e-37
    path = tmp_path / "m.safetensors"
    path.write_bytes(put_together(parts))
    artifact = qzoo.Artifact.read(path)
    graph = artifact.graph.tensors
    assert float(artifact.tensors[name].min()) >= SMALLEST_SCALE
    assert float(graph[name].min()) >= SMALLEST_SCALE
    weight = graph[name.removesuffix("_scale")]
    assert not weight[0].any() and weight[1:].any()
    for backend in BACKENDS:
        with quiet(), torch.no_grad():
            qzoo.load(path, backend)(torch.rand(1, 3, 32, 32))


def test_what_is_raised_keeps_its_value() -> None:
    values = np.array([[100, -7], [100, -128], [3, 0]], np.int8)
    scale = np.array([SMALLEST_SCALE / 4, 1e-38, 0.5], np.float32)
    zero_point = np.array([0, 0, 2])
    steps, higher = raised(values, scale, zero_point)
    assert steps.tolist() == [[25, -2], [0, 0], [3, 0]]
    assert higher.tolist() == [SMALLEST_SCALE, SMALLEST_SCALE, 0.5]
    same = raised(values, np.full(3, 0.5, np.float32), None)
    assert same[0] is values
    whole, one = raised(values, np.array(SMALLEST_SCALE / 2, np.float32), np.array(4))
    assert whole.tolist() == [[52, -2], [52, -62], [4, 2]] and one.item() == SMALLEST_SCALE


def test_good_artifacts_stay_what_they_are(tmp_path: Path) -> None:
    content = tiny_artifact()
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    assert qzoo.Artifact.read(path).to_bytes() == content


def test_a_sum_that_qnnpack_cannot_compute() -> None:
    """PyTorch's engine would end in an internal error in the middle of a forward pass."""
    torch.manual_seed(0)
    model = qzoo.mobilenet_v2(num_classes=3, width_mult=0.25).eval()
    pictures = small_images("mobilenet_v2", 2)
    with quiet():
        made = from_native(ptq(model, [pictures], backend="qnnpack", progress=False))
    block = "features.3.skip_add"
    with quiet(), torch.no_grad():
        to_native(made)(pictures)
        for factor in (2.0**-16, 2.0**20):
            layers = dict(made.layers)
            layers[block] = dataclasses.replace(layers[block], scale=layers[block].scale * factor)
            changed = dataclasses.replace(made, layers=layers)
            with pytest.raises(qzoo.ArtifactError, match="cannot compute the sum"):
                to_native(changed)
            to_native(changed, "x86")(pictures)
