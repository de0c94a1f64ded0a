"""Numbers of a QAT checkpoint that are not finite, not real or of another shape are refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qzoo.artifact.format import Artifact, ModelInfo
from qzoo.artifact.layers import Layer
from qzoo.errors import ArtifactError
from qzoo.importers.pth import read_arrays
from qzoo.importers.qat_state import QatState

EPS = torch.tensor([torch.finfo(torch.float32).eps])


def entries() -> dict[str, Any]:
    """Returns a convolution with its batch norm as PyTorch's QAT stores them."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 3, 1, 1, generator=generator)
    state: dict[str, Any] = {"c.weight": weight, "c.bias": torch.ones(4)}
    for key in ("weight", "bias", "running_mean", "running_var"):
        state[f"c.bn.{key}"] = torch.rand(4, generator=generator) + 0.5
    for name, size in (("c.weight_fake_quant", 4), ("c.activation_post_process", 1)):
        inner = f"{name}.activation_post_process"
        state |= {
            f"{name}.scale": torch.full((size,), 0.02),
            f"{inner}.min_val": torch.full((size,), -2.0),
            f"{inner}.max_val": torch.full((size,), 2.0),
            f"{inner}.eps": EPS.clone(),
        }
    return state


def read(state: dict[str, Any]) -> tuple[Any, ...]:
    reader = QatState(state)
    return (*reader.weight("c", "conv2d", (4, 3, 1, 1)), reader.output_range("c", "onednn"))


OBSERVER = "c.activation_post_process.activation_post_process"
TENSORS = [key for key in entries() if not key.endswith((".weight_fake_quant.scale", "eps"))]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("key", TENSORS)
def test_what_is_not_finite_is_named(key: str, value: float) -> None:
    state = entries()
    state[key].view(-1)[0] = value
    with pytest.raises(ArtifactError, match=key.removesuffix(".min_val").removesuffix(".max_val")):
        read(state)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("c.bias", torch.ones(4, dtype=torch.complex64)),
        ("c.bias", torch.ones(4, dtype=torch.int64)),
        ("c.bias", torch.ones(3)),
        ("c.bias", torch.ones(4, 1)),
        ("c.bias", "text"),
        ("c.weight", torch.ones(4, 3, 1, 1, dtype=torch.complex64)),
        ("c.bn.running_mean", torch.ones(4, dtype=torch.bool)),
        (f"{OBSERVER}.min_val", torch.ones(1, dtype=torch.complex64)),
        (f"{OBSERVER}.eps", torch.ones(2)),
        (f"{OBSERVER}.eps", torch.tensor([math.nan])),
        (f"{OBSERVER}.eps", torch.ones(1, dtype=torch.complex64)),
        (f"{OBSERVER}.eps", "text"),
    ],
)
def test_what_is_no_real_number_is_named(key: str, value: Any) -> None:
    with pytest.raises(ArtifactError, match=key):
        read({**entries(), key: value})


@pytest.mark.parametrize("key", TENSORS)
def test_what_is_too_large_for_float32_is_named(key: str) -> None:
    state = entries()
    state[key] = state[key].double()
    state[key].view(-1)[0] = 1e300
    with pytest.raises(ArtifactError, match=key.removesuffix(".min_val").removesuffix(".max_val")):
        read(state)


def test_a_variance_below_zero_is_named() -> None:
    state = entries()
    state["c.bn.running_var"][2] = -3.0
    with pytest.raises(ArtifactError, match="batch norm of layer 'c'"):
        read(state)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("arrays", [False, True])
def test_sound_numbers_of_other_float_types_are_read(
    dtype: torch.dtype, arrays: bool, tmp_path: Path
) -> None:
    other: Any = {key: value.to(dtype) for key, value in entries().items()}
    wanted = read({key: value.float() for key, value in other.items()})
    if arrays:
        torch.save(other, tmp_path / "x.pth")
        other = read_arrays(tmp_path / "x.pth").entries
    for given, expected in zip(read(other), wanted, strict=True):
        assert np.array_equal(given, expected)


@pytest.mark.parametrize("scale", [math.nan, math.inf, 0.0, -1.0])
def test_an_artifact_has_no_such_range(scale: float) -> None:
    info = ModelInfo("resnet18", {}, "onednn")
    with pytest.raises(ArtifactError, match="'quant' has the impossible scale"):
        Artifact(info, {"quant": Layer("quantize", scale, 0)}, {})
