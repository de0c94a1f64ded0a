"""PyTorch's page "Quantization" and its recipe on dynamic quantization."""

from __future__ import annotations

import io
from typing import Any

import torch
from torch import nn
from torch.ao.nn.quantized import dynamic as nnqd

from qzoo.quantize import quantize_dynamic
from tests.helpers import snippets as cases
from tests.helpers import trained, zoo


def test_page() -> None:
    """https://docs.pytorch.org/docs/2.7/quantization.html, "Post Training Dynamic Quantization"."""
    model_fp32 = trained.digits_model("mobilenet_v3_small")
    input_fp32, labels = cases.digits(count=64)
    with zoo.engine(cases.ENGINE), zoo.quiet():
        model_int8 = torch.ao.quantization.quantize_dynamic(
            model_fp32, {torch.nn.Linear}, dtype=torch.qint8
        )
        res = model_int8(input_fp32)
    heads = [m for m in model_int8.modules() if isinstance(m, nnqd.Linear)]
    assert len(heads) == 2 and all(m.weight().dtype is torch.qint8 for m in heads)
    assert float((res.argmax(1) == labels).float().mean()) > 0.95
    with torch.no_grad():
        assert cases.sqnr_db(res, model_fp32(input_fp32)) > 25
        mine, report = quantize_dynamic(model_fp32, backend=cases.ENGINE)
        assert torch.equal(mine(input_fp32), res) and len(report.layers) == 2


class LstmForDemonstration(nn.Module):
    """The recipe's model: qzoo's call is for any model, not only for those of its zoo."""

    def __init__(self, in_dim: int, out_dim: int, depth: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(in_dim, out_dim, depth)

    def forward(self, inputs: Any, hidden: Any) -> Any:
        return self.lstm(inputs, hidden)


def size_of(model: nn.Module) -> int:
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    return file.tell()


def test_lstm_recipe() -> None:
    """https://docs.pytorch.org/tutorials/recipes/recipes/dynamic_quantization.html.

    With the model dimension of 80 that the recipe proposes to see the size fall.
    """
    model_dimension, sequence_length, batch_size, lstm_depth = 80, 20, 1, 1
    inputs = torch.randn(sequence_length, batch_size, model_dimension)
    hidden = (
        torch.randn(lstm_depth, batch_size, model_dimension),
        torch.randn(lstm_depth, batch_size, model_dimension),
    )
    float_lstm = LstmForDemonstration(model_dimension, model_dimension, lstm_depth)
    with zoo.engine(cases.ENGINE), zoo.quiet(), torch.no_grad():
        quantized_lstm = torch.quantization.quantize_dynamic(
            float_lstm, {nn.LSTM, nn.Linear}, dtype=torch.qint8
        )
        mine, report = quantize_dynamic(float_lstm, backend=cases.ENGINE)
        out1, hidden1 = float_lstm(inputs, hidden)
        out2, hidden2 = quantized_lstm(inputs, hidden)
        out3, hidden3 = mine(inputs, hidden)
    assert float((out1 - out2).abs().mean() / out1.abs().mean()) < 0.05
    assert torch.equal(out3, out2) and all(map(torch.equal, hidden3, hidden2))
    assert cases.sqnr_db(hidden2[1], hidden1[1]) > 25
    assert size_of(float_lstm) > 3 * size_of(quantized_lstm)
    assert [(layer.name, layer.kind) for layer in report.layers] == [("lstm", "LSTM")]
