"""torchao's PT2E flow of quantization-aware training, behind the same functions."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import qzoo
from qzoo.native.model import from_native
from qzoo.quantize import qat
from tests.helpers import zoo

pytest.importorskip("torchao", reason="the pt2e extra is not installed")
SMALL = "mobilenet_v3_small"


def prepared(**options: Any) -> Any:
    options = {"flow": "pt2e", "data": zoo.small_images(SMALL, 4), "progress": False, **options}
    return qat.prepare(zoo.float_model(SMALL, num_classes=7), **options)


def test_a_mobilenet_v3_trains_and_converts():
    x = zoo.small_images(SMALL, 4)
    model = prepared()
    assert model.training
    with pytest.raises(qzoo.ArgumentError, match="no ranges yet"):
        qat.convert(model)
    nn.functional.cross_entropy(model(x), torch.arange(4)).backward()
    assert all(p.grad is not None for p in model.parameters())
    torch.optim.SGD(model.parameters(), 1e-4).step()
    model(x)

    model.eval()
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        wanted = model(x)
        assert torch.equal(model(x), wanted)  # dropout is off
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    with pytest.warns(qzoo.errors.QuantizationWarning, match="round in int8 where PT2E"):
        int8 = qat.convert(model)
    assert from_native(int8).info.recipe["method"] == "QAT (pt2e)"
    with torch.no_grad():
        noise = (int8(x) - wanted).abs().max()
        assert noise < 0.2 * wanted.abs().max()

    other = prepared()
    other.load_state_dict(before)
    with torch.no_grad():
        assert torch.equal(other.eval()(x), wanted)
    other.train()
    qat.Schedule(observer_epochs=1).apply(other, epoch=1)
    frozen = {k: v.clone() for k, v in other.state_dict().items() if "min_val" in k}
    other(3 * x)
    assert all(torch.equal(other.state_dict()[k], v) for k, v in frozen.items())
    qat.Schedule().apply(other)
    other(3 * x)
    assert any(not torch.equal(other.state_dict()[k], v) for k, v in frozen.items())


def test_what_pt2e_cannot_do_is_refused():
    with pytest.raises(qzoo.ArgumentError, match=r"epsilon of 1e-5.*114859.*fold"):
        prepared(batch_norm="keep")
    with pytest.raises(qzoo.ArgumentError, match="needs calibration images"):
        prepared(data=None)
    with pytest.raises(qzoo.ArgumentError, match="neither from_ptq= nor learn_ranges="):
        prepared(learn_ranges=True)
