"""One call to int8: bad input, reproducibility, and a process left as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import qzoo
from qzoo.errors import ArgumentError, QuantizationWarning
from qzoo.quantize import ptq
from qzoo.quantize.data import stratified
from tests.helpers.zoo import float_model, small_images

NAME = "shufflenet_v2_x0_5"


def quantized(data: Any, model: Any = None, **options: Any) -> Any:
    options = {"recipe": "fast", "progress": False, **options}
    return ptq(float_model(NAME) if model is None else model, data, **options)


def changed(images: Tensor, value: float) -> Tensor:
    images[0, 0, 0, 0] = value
    return images


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ([], "no calibration images|should be"),
        (torch.empty(0, 3, 32, 32), "no calibration images"),
        (torch.randn(4, 1, 32, 32), "float tensors"),
        (torch.randn(4, 3, 32), "float tensors"),
        (torch.zeros(4, 3, 32, 32, dtype=torch.uint8), "evaluation transforms"),
        (255 * torch.rand(4, 3, 32, 32), "raw pixels"),
        (changed(torch.randn(4, 3, 32, 32), float("nan")), "not finite"),
        (17, "Calibration data"),
    ],
)
def test_bad_data_is_one_clear_error(data: Any, says: str) -> None:
    model = float_model(NAME)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ArgumentError, match=says):
        quantized(data, model)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_other_bad_input() -> None:
    images = small_images(NAME, 4)
    with pytest.raises(ArgumentError, match="already int8"):
        quantized(images, quantized(images))
    with pytest.raises(ArgumentError, match="matches no layer"):
        quantized(images, keep_float=["stage9.*"])
    with pytest.warns(QuantizationWarning, match="single image"):
        quantized(images[:1])
    with pytest.warns(QuantizationWarning, match="train mode"):
        quantized(images, float_model(NAME).train())


@pytest.mark.parametrize("recipe", ["fast", "default", "best"])
def test_twice_the_same_bytes_and_nothing_else_changed(recipe: str, tmp_path: Path) -> None:
    model, images = float_model(NAME), small_images(NAME, 8)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = (
        torch.get_rng_state(),
        torch.get_num_threads(),
        torch.backends.quantized.engine,
        torch.get_default_dtype(),
    )
    for file in ("a", "b"):
        qzoo.save(quantized(images, model, recipe=recipe), tmp_path / file)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state[0])
    assert (
        torch.get_num_threads(),
        torch.backends.quantized.engine,
        torch.get_default_dtype(),
    ) == state[1:]


def test_the_forms_of_data_give_the_same_model() -> None:
    images = small_images(NAME, 8)
    labelled = TensorDataset(images, torch.zeros(8, dtype=torch.int64))
    model = float_model(NAME)
    wanted = quantized(images, model, batch_size=4)(images)
    for data in (list(images.split(4)), DataLoader(labelled, 4), labelled):
        assert torch.equal(quantized(data, model, batch_size=4)(images), wanted)


def test_every_class_has_its_share() -> None:
    targets = [0] * 100 + [1] * 10 + [2] * 30
    chosen = stratified(targets, 30, seed=3)
    assert len(set(chosen)) == 30
    assert [sum(targets[i] == c for i in chosen) for c in range(3)] == [10, 10, 10]
    assert chosen == stratified(targets, 30, seed=3) != stratified(targets, 30, seed=4)
