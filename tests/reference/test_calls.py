"""One name for what a call computes, however a graph writes it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from qzoo.reference.calls import AVERAGES, MOVES, kind

aten = torch.ops.aten


@pytest.mark.parametrize(
    ("name", "module", "function", "method", "exported"),
    [
        ("relu", nn.ReLU(), F.relu, "relu_", aten.relu_.default),
        ("flatten", None, torch.flatten, "flatten", aten.flatten.using_ints),
        ("max_pool2d", nn.MaxPool2d(2), F.max_pool2d, None, aten.max_pool2d.default),
        ("avg_pool2d", nn.AvgPool2d(2), F.avg_pool2d, None, aten.avg_pool2d.default),
        ("adaptive_avg_pool2d", nn.AdaptiveAvgPool2d(1), F.adaptive_avg_pool2d, None,
         aten.adaptive_avg_pool2d.default),
        ("mean", None, torch.mean, "mean", aten.mean.dim),
        ("chunk", None, torch.chunk, "chunk", aten.chunk.default),
        ("dropout", nn.Dropout(), F.dropout, None, aten.dropout.default),
    ],
)  # fmt: skip
def test_every_spelling_has_one_name(
    name: str, module: nn.Module | None, function: Any, method: str | None, exported: Any
) -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    found = {kind(graph.call_function(target, (x,))) for target in (function, exported)}
    if module is not None:
        found.add(kind(graph.call_module("layer", (x,)), module))
    if method is not None:
        found.add(kind(graph.call_method(method, (x,))))
    assert found == {name}
    assert (name in MOVES) != (name in AVERAGES)


def test_calls_that_are_no_operation_have_no_name() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    assert kind(x) == "" == kind(graph.call_module("stub", (x,)), nn.Softmax())
    assert kind(graph.call_module("sum", ("add_relu", x, x)), nn.Identity()) == "add_relu"
