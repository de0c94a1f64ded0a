"""Every builder goes to int8 in one call, answers as in float, and comes back from a file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import qzoo
from qzoo.backends import default_backend, get_backend
from qzoo.native.model import from_native
from qzoo.quantize import ptq
from tests.helpers.zoo import WITH_AUX, by_definition, float_model, small_images

#: Least power of what tells the images' logits apart over that of the int8 model's error, in dB. A
#: layer's rounding leaves about 40, of which every layer on the way takes something. Measured: 10
#: (inception_v3) to 20 (resnet18).
LEAST_SQNR = 8.0


def normalized(name: str, images: Tensor) -> nn.Module:
    """Returns a model of random weights whose batch norms have seen the images, as trained ones.

    Their biases leave most ReLUs open: deep networks of random weights are chaotic otherwise, which
    means that they make any error as large as the signal, one in float16 just as well.
    """
    kwargs = {"aux_logits": False} if name in WITH_AUX else {}
    model = float_model(name, varied=False, slim=True, num_classes=10, **kwargs)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
            nn.init.ones_(module.bias)
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    with torch.no_grad():
        model.train()(images)
    return model.eval()


def sqnr(wanted: Tensor, given: Tensor) -> float:
    """Returns the power of the logits' differences between images over that of the error, in dB."""
    signal = wanted - wanted.mean(dim=0)
    return float(10 * torch.log10(signal.square().sum() / (given - wanted).square().sum()))


@pytest.mark.parametrize("name", by_definition())
def test_fast_works_for_every_builder(name: str, tmp_path: Path) -> None:
    images = small_images(name, 16)
    model = normalized(name, images)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    int8 = ptq(model, images, recipe="fast", progress=False)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    with torch.inference_mode():
        wanted, given = model(images), int8(images)
    seven_bits = get_backend(default_backend()).reduce_range
    assert sqnr(wanted, given) > LEAST_SQNR - (6 if seven_bits else 0)
    assert sqnr(wanted, given.roll(1, dims=0)) < 0  # of answers to other images
    artifact = from_native(int8)
    weighted = [n for n, layer in artifact.layers.items() if layer.op in ("conv2d", "linear")]
    kinds = (nn.Conv2d, nn.Linear)
    assert weighted == [n for n, m in model.named_modules() if isinstance(m, kinds)]
    assert {artifact.tensors[f"{n}.weight"].dtype for n in weighted} == {torch.int8}
    qzoo.save(int8, tmp_path / "int8.safetensors")
    loaded = qzoo.load(tmp_path / "int8.safetensors")
    with torch.inference_mode():
        assert torch.equal(loaded(images), given)
    qzoo.save(loaded, tmp_path / "again.safetensors")
    assert len({file.read_bytes() for file in tmp_path.iterdir()}) == 1
