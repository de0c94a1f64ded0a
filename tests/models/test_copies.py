"""Int8 models are ordinary modules: they can be copied, pickled, and sent to other processes."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import qzoo
from qzoo.native.model import from_native, model_info
from tests.helpers import zoo
from tests.helpers.calling import python

NAMES = ("resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5")


def through_torch_save(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=False)


WAYS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": through_torch_save,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NAMES)
def test_copies_answer_to_the_bit(name: str, way: str) -> None:
    int8 = zoo.eager_ptq(zoo.float_model(name), zoo.small_images(name), zoo.ENGINES[0])
    model = qzoo.native.model.to_native(from_native(int8, backend=zoo.ENGINES[0]))
    images = zoo.small_images(name)
    with torch.no_grad(), zoo.quiet():
        expected = model(images)
        twin = WAYS[way](model)
        assert torch.equal(twin(images), expected) and float(expected.std()) > 0
    assert type(twin) is type(model) and not twin.training
    assert model_info(twin) == model_info(model)
    ours, theirs = from_native(twin), from_native(model)
    assert ours.layers == theirs.layers and ours.tensors.keys() == theirs.tensors.keys()
    assert all(torch.equal(ours.tensors[key], theirs.tensors[key]) for key in ours.tensors)


@pytest.mark.skipif("qnnpack" not in zoo.ENGINES, reason="this PyTorch lacks QNNPACK")
def test_copies_keep_the_engine_that_their_weights_were_packed_for() -> None:
    other = qzoo.backends.default_backend()
    model = zoo.uncalibrated("resnet18", backend="qnnpack", num_classes=5)
    images = zoo.small_images("resnet18")
    with torch.no_grad(), zoo.quiet(), zoo.engine(other):
        expected = model(images)
        for way in WAYS.values():
            assert torch.equal(way(model)(images), expected)
        assert torch.backends.quantized.engine == other


def test_a_pickled_model_loads_in_a_process_that_never_saw_qzoo(tmp_path: Path) -> None:
    model = zoo.uncalibrated("shufflenet_v2_x0_5", num_classes=5)
    images = zoo.small_images("shufflenet_v2_x0_5")
    with torch.no_grad(), zoo.quiet():
        torch.save((model, images, model(images)), tmp_path / "model.pth")
    code = (
        "import sys, torch; torch.set_num_threads(1);"
        "model, images, expected = torch.load(sys.argv[1], weights_only=False);"
        "assert torch.equal(model(images), expected)"
    )
    python("-W", "ignore", "-c", code, tmp_path / "model.pth")
