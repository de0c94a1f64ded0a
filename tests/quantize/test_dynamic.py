"""`quantize_dynamic` gives what PyTorch's own gives, of any model."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.ao.nn.quantized import dynamic as nnqd
from torch.ao.quantization import quantize_dynamic as pytorch_dynamic

import qzoo
from qzoo.errors import QuantizationWarning
from qzoo.quantize import quantize_dynamic
from tests.helpers import zoo


class Speech(nn.Module):
    """A model of someone's own, with every layer that can run dynamically."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 16, num_layers=2, bidirectional=True, dropout=0.1)
        self.gru = nn.GRU(32, 12, batch_first=False)
        self.cells = nn.ModuleList([nn.GRUCell(12, 12), nn.LSTMCell(12, 6), nn.RNNCell(6, 6)])
        self.head = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 5, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        hidden: Any = self.gru(self.lstm(x)[0])[0][-1]
        for cell in self.cells:
            found = cell(hidden)
            hidden = found[0] if isinstance(found, tuple) else found
        return self.head(hidden)


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7))


KINDS = {nn.Linear, nn.LSTM, nn.GRU, nn.LSTMCell, nn.GRUCell, nn.RNNCell}


@pytest.mark.parametrize("engine", [e for e in ("x86", "qnnpack") if e in zoo.ENGINES])
def test_answers_are_pytorchs_own(engine: str) -> None:
    model, x = Speech().eval(), noise(5, 3, 8)
    with zoo.engine(engine), zoo.quiet():
        theirs = pytorch_dynamic(copy.deepcopy(model), KINDS)
    mine, report = quantize_dynamic(model, backend=engine)
    with torch.no_grad():
        assert torch.equal(mine(x), theirs(x))
        off = (mine(x) - model(x)).abs().max()
    assert 0 < off < 0.05 * model(x).abs().max()
    assert [(layer.name, layer.kind) for layer in report.layers] == [
        ("lstm", "LSTM"), ("gru", "GRU"), ("cells.0", "GRUCell"), ("cells.1", "LSTMCell"),
        ("cells.2", "RNNCell"), ("head.0", "Linear"), ("head.2", "Linear"),
    ]  # fmt: skip
    assert not report.skipped
    matrices = [p for p in model.parameters() if p.dim() == 2]
    assert report.bytes_before == sum(p.nbytes for p in matrices) == 4 * report.bytes_after
    assert str(report).splitlines()[0] == "lstm: LSTM"


def test_only_the_layers_asked_for() -> None:
    model, x = Speech().eval(), noise(5, 3, 8)
    mine, report = quantize_dynamic(model, ["head.*", "gru"])
    with zoo.quiet():
        theirs = pytorch_dynamic(copy.deepcopy(model), {"head", "gru"})
    with torch.no_grad():
        assert torch.equal(mine(x), theirs(x))
    assert [layer.name for layer in report.layers] == ["gru", "head.0", "head.2"]
    assert type(mine.lstm) is nn.LSTM and type(mine.gru) is nnqd.GRU


def test_the_head_of_a_zoo_model_and_a_layer_alone() -> None:
    model, images = zoo.float_model("resnet18"), zoo.small_images("resnet18")
    mine, report = quantize_dynamic(model)
    assert [layer.name for layer in report.layers] == ["fc"]
    with torch.no_grad():
        assert 0 < (mine(images) - model(images)).abs().max() < 0.05
    alone, report = quantize_dynamic(nn.Linear(8, 4))
    assert isinstance(alone, nnqd.Linear) and report.layers[0].name == ""


def test_transformers_run_though_pytorchs_fast_path_cannot() -> None:
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    model, x = nn.TransformerEncoder(layer, 2).eval(), noise(2, 5, 32)
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    mine, report = quantize_dynamic(model)
    assert [layer.name for layer in report.layers] == [
        f"layers.{i}.linear{j}" for i in range(2) for j in (1, 2)
    ]
    with torch.no_grad(), zoo.quiet():
        for mask in (None, padding):
            wanted = model(x, src_key_padding_mask=mask)
            given = mine(x, src_key_padding_mask=mask)
            used = ~padding if mask is not None else torch.ones(2, 5, dtype=torch.bool)
            assert (given - wanted)[used].abs().max() < 0.1


def test_nothing_else_changes() -> None:
    model = Speech()
    model.eval()
    before = copy.deepcopy(model.state_dict())
    random, engine = torch.get_rng_state(), torch.backends.quantized.engine
    mine, _ = quantize_dynamic(model, backend="qnnpack" if "qnnpack" in zoo.ENGINES else None)
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.backends.quantized.engine == engine
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert type(model.lstm) is nn.LSTM and not mine.training
    assert all(p.requires_grad for p in model.parameters())


def test_what_has_no_int8_form_is_told() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.LSTM(4, 4, proj_size=2), nn.GRU(4, 4, bias=False))
    with pytest.warns(QuantizationWarning, match=r"2 layers stay float.*projections.*biases"):
        mine, report = quantize_dynamic(model)
    assert list(report.skipped) == ["1", "2"] and len(report.layers) == 1
    assert type(mine[1]) is nn.LSTM
    assert "1: float, PyTorch has no int8 LSTM with projections" in str(report)
    with pytest.raises(qzoo.ArgumentError, match=r"'1' has no dynamic int8 form.*projections"):
        quantize_dynamic(model, ["0", "1"])
    with pytest.raises(qzoo.ArgumentError, match="None of the layers"):
        quantize_dynamic(model[2])


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        (nn.Conv2d(3, 3, 3), {}, "nothing to quantize"),
        (nn.Linear(4, 4).double(), {}, "torch.float64, not float32"),
        (nn.Linear(4, 4, device="meta"), {}, "on meta"),
        (nn.Sequential(nn.Linear(4, 4)), {"layers": "head"}, "'head' matches no layer"),
        (nn.Sequential(nn.Linear(4, 4)), {"layers": []}, "no layers"),
        (nn.Linear(4, 4), {"backend": "x87"}, "Did you mean 'x86'"),
    ],
)
def test_bad_input(model: nn.Module, options: dict[str, Any], words: str) -> None:
    with pytest.raises(qzoo.QzooError, match=words):
        quantize_dynamic(model, **options)


def test_values_that_are_not_finite_are_refused() -> None:
    model = nn.Linear(4, 4)
    model.weight.data[1, 2] = float("nan")
    with pytest.raises(qzoo.ArgumentError, match="not finite"):
        quantize_dynamic(model)
