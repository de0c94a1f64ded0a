"""Weight-only quantization computes with the numbers that its formulas give, and reports them."""

from __future__ import annotations

import copy
import importlib
import json
import math
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qzoo
from qzoo.errors import QuantizationWarning
from qzoo.quantize import quantize_weight_only
from tests.helpers import zoo

pytest.importorskip("torchao", reason="the pt2e extra is not installed")


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7))


def linear(inputs: int, outputs: int, **options: Any) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, **options)
    spread = torch.linspace(0.1, 2, outputs)[:, None]
    # The largest weights are positive: negative ones would be ties between -127 and -128.
    layer.weight.data = noise(outputs, inputs).clamp(min=-1) * spread
    return layer


def int8_by_hand(weight: Tensor, group: int) -> Tensor:
    """Symmetric, the largest weight of a group at 127.5 steps."""
    groups = weight.double().unflatten(1, (-1, group))
    scale = (groups.abs().amax(2, keepdim=True).float() / 127.5).double()
    return ((groups / scale).round().clamp(-128, 127) * scale).flatten(1)


def int4_by_hand(weight: Tensor, group: int) -> Tensor:
    """The group's least and largest weight at integers 0 and 15."""
    groups = weight.double().unflatten(1, (-1, group))
    low, high = groups.amin(2, keepdim=True), groups.amax(2, keepdim=True)
    step = (high - low) / 15
    return (((groups - low) / step).round() * step + low).flatten(1)


@pytest.mark.parametrize(
    ("bits", "group", "inputs", "outputs"),
    [(8, None, 100, 10), (8, 32, 96, 7), (8, 128, 256, 33), (4, 32, 96, 16), (4, 32, 64, 10),
     (4, 128, 256, 40), (4, None, 128, 1000)],
)  # fmt: skip
def test_layers_compute_with_the_formulas_numbers(
    bits: int, group: int | None, inputs: int, outputs: int
) -> None:
    layer, x = linear(inputs, outputs), noise(9, inputs)
    mine, report = quantize_weight_only(layer, bits, group_size=group, progress=False)
    by_hand = int8_by_hand if bits == 8 else int4_by_hand
    assert report.group_size == (128 if bits == 4 and group is None else group)
    weight = by_hand(layer.weight.data, report.group_size or inputs)
    with torch.no_grad():
        given = mine(x)
    wanted = x.double() @ weight.T + layer.bias.double()
    assert given.shape == (9, outputs)
    torch.testing.assert_close(given.double(), wanted, rtol=1e-4, atol=1e-4)
    real = layer.weight.data.double()
    error = weight - real
    sqnr = 10 * math.log10(float(real.square().sum() / error.square().sum()))
    (done,) = report.layers
    assert done.shape == (outputs, inputs)
    assert done.sqnr_db == pytest.approx(sqnr, abs=0.01) == report.sqnr_db
    assert done.max_error == pytest.approx(float(error.abs().max()), rel=1e-3)


def test_sizes_are_those_of_what_is_stored() -> None:
    model = nn.Sequential(linear(128, 64), nn.ReLU(), linear(64, 1000, bias=False))
    sizes = {}
    for bits, group in ((8, None), (8, 32), (4, 32)):
        _, report = quantize_weight_only(model, bits, group_size=group, progress=False)
        first, last = report.layers
        assert (first.name, last.name) == ("0", "2")
        assert report.bytes_before == 4 * (128 * 64 + 64 * 1000)
        assert report.bytes_after == first.bytes_after + last.bytes_after
        assert report.max_error == max(first.max_error, last.max_error)
        assert min(first.sqnr_db, last.sqnr_db) < report.sqnr_db < max(first.sqnr_db, last.sqnr_db)
        sizes[bits, group] = [first.bytes_after, last.bytes_after]
    # Integers, float scales, and zero points of one byte; int4 has two floats a group.
    assert sizes[8, None] == [128 * 64 + 5 * 64, 64 * 1000 + 5 * 1000]
    assert sizes[8, 32] == [128 * 64 + 5 * 4 * 64, 64 * 1000 + 5 * 2 * 1000]
    assert sizes[4, 32] == [64 * 64 + 8 * 4 * 64, (32 + 8 * 2) * 1008]
    assert [layer.padded_rows for layer in report.layers] == [0, 8]
    assert report.kernel == "aten::_weight_int4pack_mm_for_cpu"
    assert "total" in str(report) and "KiB" in str(report)
    assert json.loads(json.dumps(report.to_dict()))["layers"][1]["padded_rows"] == 8


def test_zoo_models_and_transformers() -> None:
    model, images = zoo.float_model("mobilenet_v3_small"), zoo.small_images("mobilenet_v3_small")
    mine, report = quantize_weight_only(model, 4, group_size=32, progress=False)
    assert [layer.name for layer in report.layers] == ["classifier.0", "classifier.3"]
    assert 20 < report.sqnr_db < 30
    with torch.no_grad():
        wanted, given = model(images), mine(images)
    assert 0 < (given - wanted).abs().max() < 0.3 * wanted.abs().max()
    layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
    encoder, x = nn.TransformerEncoder(layer, 2).eval(), noise(2, 5, 64)
    for bits in (8, 4):
        mine, _ = quantize_weight_only(encoder, bits, group_size=32, progress=False)
        with torch.no_grad():
            assert (mine(x) - encoder(x)).abs().max() < 0.3


def test_quantized_models_copy_and_their_weights_save(tmp_path: Any) -> None:
    model, x = nn.Sequential(linear(64, 10)), noise(3, 64)
    for bits in (8, 4):
        mine, _ = quantize_weight_only(model, bits, group_size=32, progress=False)
        torch.save(mine.state_dict(), tmp_path / "weights.pt")
        again = copy.deepcopy(mine)
        again.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True), assign=True)
        assert torch.equal(again(x), mine(x))


def test_nothing_else_changes() -> None:
    from torch._inductor import config

    model = nn.Sequential(linear(64, 10), nn.Dropout())
    before, settings = copy.deepcopy(model.state_dict()), config.save_config()
    random, precision = torch.get_rng_state(), torch.get_float32_matmul_precision()
    for bits in (8, 4):
        mine, _ = quantize_weight_only(model, bits, group_size=32, progress=False)
        assert not mine.training and model.training
    assert config.save_config() == settings
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.get_float32_matmul_precision() == precision
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert type(model[0].weight.data) is Tensor


def test_layers_that_do_not_fit_are_told() -> None:
    model = nn.Sequential(linear(64, 8), linear(40, 8), linear(96, 8))
    with pytest.warns(QuantizationWarning, match="'1', because groups of 32 do not divide its 40"):
        mine, report = quantize_weight_only(model, 4, group_size=32, progress=False)
    assert [layer.name for layer in report.layers] == ["0", "2"] and list(report.skipped) == ["1"]
    assert type(mine[1].weight.data) is Tensor
    with pytest.raises(qzoo.ArgumentError, match="'1', because groups of 32"):
        quantize_weight_only(model, 8, group_size=32, layers=["0", "1"])
    with pytest.raises(qzoo.ArgumentError, match="3 linear layers cannot"):
        quantize_weight_only(model, 4)
    mine, report = quantize_weight_only(model, 4, group_size=32, layers="2", progress=False)
    assert [layer.name for layer in report.layers] == ["2"] and not report.skipped
    with pytest.raises(qzoo.ArgumentError, match="quantized already"):
        quantize_weight_only(mine, 8, layers="2")


def test_weights_without_error() -> None:
    layer = nn.Linear(32, 2)
    layer.weight.data.zero_()
    _, report = quantize_weight_only(layer, 8, progress=False)
    assert report.sqnr_db == math.inf and report.to_dict()["sqnr_db"] is None
    assert report.max_error == 0


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        (nn.Conv2d(3, 3, 3), {}, "no float linear layers"),
        (nn.Linear(32, 2), {"bits": 3}, "8 or 4, not 3"),
        (nn.Linear(32, 2), {"group_size": 16}, "one of 32, 64, 128, not 16"),
        (nn.Linear(32, 2), {"layers": ["f*"]}, r"'f\*' matches no layer"),
        (nn.Linear(32, 2), {"layers": []}, "no layers"),
        (nn.Linear(32, 2, device="meta"), {}, "on meta"),
    ],
)
def test_bad_input(model: nn.Module, options: dict[str, Any], words: str) -> None:
    with pytest.raises(qzoo.ArgumentError, match=words):
        quantize_weight_only(model, **{"progress": False, **options})


def test_missing_torchao_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(qzoo.MissingDependencyError, match=r"qzoo\[pt2e\]"):
        quantize_weight_only(nn.Linear(32, 2))
    monkeypatch.undo()
    importlib.import_module("torchao.quantization")
    monkeypatch.setitem(sys.modules, "torchao.prototype.quantization.int4", None)
    with pytest.raises(qzoo.MissingDependencyError, match=r"torchao>=0\.18"):
        quantize_weight_only(nn.Linear(128, 2), 4)
